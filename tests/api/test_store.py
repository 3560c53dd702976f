"""What --state keeps: asynchronous requests over kill -9, results, Idempotency-Key, backup, the disk reserve."""
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time

import pytest

from boxes import Box
from conftest import environment
from serving import A_WHILE, BINARY, MANY, PATIENCE, SANITIZED, Serving, decoded, f32, make_models, spoil, st_write, together

BASE = {"model": "tiny", "seed": 7, "steps": 6, "class_label": "b", "sampler": "ddim"}
LONG = {"model": "tiny", "seed": 1, "steps": 1000, "n": MANY, "class_label": 0, "sampler": "ddim"}
GIB = 1 << 30


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def box(models, tmp_path):
    box = Box(models, tmp_path / "state")
    yield box
    box.stop()


def unfinish(box):
    """As if the daemon had been killed just before their ends were kept."""
    box.sql("UPDATE requests SET tries = 1, finished = NULL, state = 'queued', file = NULL, ended = NULL, bytes = 0")


def keyed(key, **more):
    return dict({"Idempotency-Key": key}, **more)


def shas_of(info):
    return [image["sha256"] for image in info["images"]]


def pictures(d, info):
    return [d.ask("GET", image["url"]).body for image in info["images"]]


# ---- kill -9 ----


def test_every_accepted_request_is_answered_after_kill_9(box):
    asked = [dict(BASE, seed=s, n=1 + s % 3, steps=(60 + 40 * s) // (4 if SANITIZED else 1), class_label=s % 9, eta=s % 2, sampler="ddim")
             for s in range(5)] + [{"model": "plain", "seed": 3, "n": 2, "steps": 30}, dict(BASE, guidance={"cfg": {"scale": 2}}),
                                   dict(BASE, sampler="ddpm", steps=50, n=4, output={"layout": "grid"})]
    d = box.start()
    whole = [d.result(**fields) for fields in asked]
    ids = [d.submit(**fields) for fields in asked]
    unseeded = d.submit(model="tiny", steps=80)
    seed = d.info(unseeded)["seed"]
    moments = random.Random(5)
    for _ in range(2 if SANITIZED else 4):  # at random moments: the release build has the most of them
        time.sleep(moments.uniform(0.02, 0.4))
        box.kill()
        d = box.start(wait=False)
        assert d.info(ids[0])["id"] == ids[0]  # it is known from the first moment
    for id, fields, before in zip(ids, asked, whole):
        info = d.wait_state(id, "succeeded")
        assert shas_of(info) == [i["sha256"] for i in before["images"]] if "output" not in fields else True
        assert pictures(d, info) == [decoded(i) for i in before["images"]]
        assert info["numerics"] == before["numerics"] and info["seed"] == fields["seed"] and "numerics_before" not in info
    info = d.wait_state(unseeded, "succeeded")
    assert info["seed"] == seed and shas_of(info) == d.shas(model="tiny", steps=80, seed=seed)


def test_what_waits_for_its_model_is_kept_too(box):
    d = box.start("--load", "none")
    id = d.submit(**dict(BASE, seed=11))
    box.kill()
    d = box.start("--load", "none")
    info = d.wait_state(id, "succeeded")
    assert shas_of(info) == d.shas(**dict(BASE, seed=11))


def test_the_stored_form_has_every_default(box):
    d = box.start()
    d.submit(**LONG)
    id = d.submit(**dict(LONG, timesteps=list(range(900, 100, -1)), steps=800, seed=3))
    (spec,), = box.sql("SELECT spec FROM requests WHERE id = ?", id)
    spec = json.loads(spec)
    assert spec["model"] == "tiny@1" and spec["seed"] == 3 and spec["temperature"] == 1 and spec["rng"] == "philox"
    assert spec["height"] == spec["width"] == 16 and spec["output"] == {"format": "png", "layout": "list", "trajectory_every": 0}
    assert spec["eta"] == 0 and len(spec["timesteps"]) == 800 and "guidance" not in spec


def test_a_later_default_of_the_model_changes_nothing_accepted(box, tmp_path):
    box.models = make_models(tmp_path / "models")
    d = box.start()
    busy = d.submit(**LONG)
    fields = {k: v for k, v in BASE.items() if k != "steps"}
    id = d.submit(**fields)
    box.kill()
    path = box.models + "/tiny/denoised.json"
    with open(path) as f:
        card = json.load(f)
    with open(path, "w") as f:
        json.dump(dict(card, defaults={"steps": 5, "guidance": {"cfg": {"scale": 4}}}), f)
    d = box.start()
    d.ask("DELETE", "/requests/" + busy)
    info = d.wait_state(id, "succeeded")
    assert info["steps"] == 50 and shas_of(info) == d.shas(**dict(BASE, steps=50, guidance={"cfg": {"scale": 1}}))


def test_other_weights_are_not_taken_for_the_same(box, tmp_path):
    box.models = make_models(tmp_path / "models")
    d = box.start()
    id = d.submit(**LONG)
    box.kill()
    spoil(box.models + "/tiny/diffusion_pytorch_model.safetensors")
    d = box.start()
    info = d.wait_state(id, "failed")
    assert info["error"]["code"] == "conflict" and "weights" in info["error"]["message"]
    id = d.submit(model="plain", steps=1000, n=64)
    box.kill()
    shutil.rmtree(box.models + "/plain")
    d = box.start()
    assert d.wait_state(id, "failed")["error"]["code"] == "model_not_found"


def test_another_way_to_compute_begins_anew_and_says_so(box):
    d = box.start()
    fields = dict(BASE, steps=3)
    id = d.submit(**fields)
    before = d.wait_state(id, "succeeded")["numerics"]
    box.kill()
    unfinish(box)
    d = box.start("--devices", "ref")
    info = d.wait_state(id, "succeeded")
    assert info["numerics_before"] == before != info["numerics"] and info["numerics"].startswith("ref/")
    assert shas_of(info) == d.shas(**fields)
    d = box.again()
    assert d.info(id) == info


# ---- crash loops ----


def test_three_starts_without_a_step_are_a_crash_loop(box):
    d = box.start()
    id, other = d.submit(**LONG), d.submit(**dict(LONG, n=2, seed=5))
    box.kill()
    box.sql("UPDATE requests SET tries = CASE id WHEN ? THEN 3 ELSE 2 END", id)
    d = box.start()
    info = d.wait_state(id, "failed")
    assert info["error"]["code"] == "crash_loop" and "3" in info["error"]["message"]
    end = time.monotonic() + PATIENCE
    while box.sql("SELECT tries FROM requests WHERE id = ?", other) != [(0,)]:  # its first step has cleared it
        assert time.monotonic() < end
        time.sleep(0.02)
    d = box.again()
    assert d.info(id)["error"]["code"] == "crash_loop"
    assert d.info(other)["state"] in ("queued", "running")


def test_starts_are_counted_before_the_run(box):
    d = box.start()
    id = d.submit(**LONG)
    assert box.sql("SELECT starts FROM requests WHERE id = ?", id) == [(1,)]
    for n in (2, 3):
        box.kill()
        d = box.start()
        d.wait_status(running=1, timeout=PATIENCE)
        assert box.sql("SELECT starts FROM requests WHERE id = ?", id) == [(n,)]
    box.kill()
    box.sql("UPDATE requests SET starts = 100, tries = 0")
    d = box.start()
    assert d.wait_state(id, "failed")["error"]["code"] == "crash_loop"


def test_suspects_are_begun_one_at_a_time(box):
    d = box.start()
    ids = [d.submit(**dict(BASE, steps=20, seed=s)) for s in range(4)]
    whole = [shas_of(d.wait_state(id, "succeeded")) for id in ids]
    box.kill()
    unfinish(box)
    d = box.start("--devices", "cpu", wait=False)
    assert [shas_of(d.wait_state(id, "succeeded")) for id in ids] == whole
    order = [row[0] for row in box.sql("SELECT id FROM requests ORDER BY finished")]
    assert order[0] == ids[0] and box.sql("SELECT DISTINCT starts, tries FROM requests") == [(2, 0)]


# ---- what is kept ----


def test_results_survive_a_restart_and_have_bounds(box):
    d = box.start()
    plain = d.result(**dict(BASE, n=3))
    ids = {"list": d.submit(**dict(BASE, n=3)), "npy": d.submit(**dict(BASE, output={"format": "npy"})),
           "bad": d.submit(model="spoilt", steps=4)}
    before = {k: d.wait_state(id, "succeeded", "failed") for k, id in ids.items()}
    files = {k: pictures(d, before[k]) for k in ("list", "npy")}
    assert files["list"] == [decoded(i) for i in plain["images"]]
    events = list(d.events(path="/requests/%s/events" % ids["list"]))
    stop, again = box.kill, box.start
    for _ in range(2):
        stop()
        d = again()
        for k, id in ids.items():
            assert d.info(id) == before[k]
        assert {k: pictures(d, before[k]) for k in files} == files
        later = list(d.events(path="/requests/%s/events" % ids["list"]))
        assert later == [e for e in events if e[1] in ("queued", "image", "done")]
        last = later[1][0]
        resumed = d.events(path="/requests/%s/events" % ids["list"], headers={"Last-Event-ID": str(last)})
        assert list(resumed) == later[2:]
        listed = [r["id"] for r in d.ask("GET", "/requests").json()["requests"]]
        assert [id for id in listed if id in ids.values()] == [ids["bad"], ids["npy"], ids["list"]]
        stop = box.stop
    assert len(os.listdir(box.state + "/results")) == 2
    with open(box.state + "/results/" + ids["npy"], "ab") as f:  # not what its row says: it is not served
        f.write(b"more")
    d = box.again()
    assert d.ask("GET", "/requests/" + ids["npy"]).code == "expired"
    d = box.again("--result-bytes", "0")
    end = time.monotonic() + PATIENCE
    while d.ask("GET", "/requests/" + ids["list"]).status == 200:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert d.ask("GET", "/requests/" + ids["list"]).code == "expired"
    d = box.again()
    assert d.ask("GET", "/requests/" + ids["list"]).code == "expired"  # 410, not 404, after a restart too
    assert d.ask("GET", "/requests/" + "0" * 32).code == "not_found"
    assert os.listdir(box.state + "/results") == [] and box.sql("SELECT count(*) FROM requests") == [(0,)]


def test_results_leave_the_memory(box):
    d = box.start()
    id = d.submit(**dict(BASE, n=64, output={"format": "npy"}, steps=1))
    info = d.wait_state(id, "succeeded")
    assert d.memory()["results"] < 64 * 1024 < sum(len(p) for p in pictures(d, info))


def test_a_cancelled_request_stays_cancelled(box):
    d = box.start()
    id = d.submit(**LONG)
    assert d.ask("DELETE", "/requests/" + id).json()["state"] == "cancelled"
    box.kill()
    d = box.start()
    info = d.info(id)
    assert info["state"] == "cancelled" and info["error"]["code"] == "cancelled"
    assert d.wait_status(running=0, waiting=0)
    assert d.ask("DELETE", "/requests/" + id).json()["state"] == "cancelled"


def test_sigterm_leaves_them_queued(box):
    d = box.start()
    whole = d.shas(**dict(BASE, seed=2))
    busy, id = d.submit(**LONG), d.submit(**dict(BASE, seed=2, steps=1000, n=8))
    reader = d.events(path="/requests/%s/events" % busy)
    assert next(reader)[1] == "queued"
    d.proc.send_signal(signal.SIGTERM)
    names = [name for _, name, _ in reader]
    assert "error" not in names and "done" not in names  # its story is not over
    d.stop(sig=None)
    assert box.sql("SELECT count(*) FROM requests WHERE finished IS NULL AND tries = 0") == [(2,)]
    d = box.start()
    assert d.info(id)["state"] in ("queued", "running")
    events = d.events(path="/requests/%s/events" % busy, headers={"Last-Event-ID": "999999"})
    assert next(events)[0] > 1000000  # a client that had heard of the first run misses nothing of the second
    d.ask("DELETE", "/requests/" + busy)
    d.ask("DELETE", "/requests/" + id)
    assert d.shas(**dict(BASE, seed=2)) == whole


def test_a_deadline_counts_from_the_first_arrival(box):
    d = box.start()
    d.submit(**LONG)
    id = d.submit(**dict(LONG, deadline_ms=86400000))
    box.kill()
    box.sql("UPDATE requests SET created = created - 90000 WHERE id = ?", id)
    d = box.start()
    assert d.wait_state(id, "failed")["error"]["code"] == "deadline"


def test_without_a_state_nothing_is_kept_but_everything_works(models):
    d = Serving(BINARY, ["--listen", "127.0.0.1:0", "--models", models]).started()
    try:
        info = d.wait_state(d.submit(**BASE), "succeeded")
        assert pictures(d, info) and shas_of(info) == d.shas(**BASE)
        first, second = (d.generate(keyed("k"), **dict(BASE, seed=9)) for _ in range(2))
        assert first.status == 200 and first.body == second.body
        assert d.metrics()["denoised_disk_free_bytes"] == d.metrics()["denoised_disk_reserve_bytes"] == 0
    finally:
        d.stop()


# ---- metrics ----


def test_store_and_disk_have_metrics(box):
    d = box.start("--disk-reserve", "12345678")
    before = d.metrics()
    for k in range(3):
        d.wait_state(d.submit(**dict(BASE, seed=k)), "succeeded")
    after = d.metrics()
    commits = "denoised_store_commit_seconds_count"
    assert after[commits] >= before[commits] + 3 * 2  # each request's begin and end wait for one
    assert after["denoised_store_operations_total"] >= before["denoised_store_operations_total"] + 3 * 2
    assert after["denoised_store_operations_total"] >= after[commits] and after["denoised_store_commit_seconds_sum"] > 0
    assert after["denoised_store_failed_total"] == 0
    free = shutil.disk_usage(box.state).free
    assert after["denoised_disk_reserve_bytes"] == 12345678 and abs(after["denoised_disk_free_bytes"] - free) < GIB
    db = sqlite3.connect(box.state + "/denoised.db", isolation_level=None)
    db.execute("BEGIN IMMEDIATE")  # nobody else can write
    asking = threading.Thread(target=lambda: d.submit(**dict(BASE, seed=9)))
    try:
        asking.start()
        end = time.monotonic() + PATIENCE
        while d.metrics()["denoised_store_waiting"] == 0:
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        db.execute("ROLLBACK")
        db.close()
        asking.join()
    while d.metrics()["denoised_store_waiting"]:
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- Idempotency-Key ----


def test_the_same_key_gets_the_same_answer(box):
    d = box.start()
    fields = {"model": "tiny", "steps": 5}  # no seed: done twice, it would differ
    first = d.generate(keyed("a"), **fields)
    assert first.status == 200
    for _ in range(2):
        again = d.generate(keyed("a"), **fields)
        assert again.status == 200 and again.body == first.body
        assert again.headers["content-type"] == first.headers["content-type"]
    other = d.generate(keyed("a"), **dict(fields, steps=6))
    assert other.status == 422 and other.code == "idempotency_mismatch"
    assert d.generate(keyed("b"), **fields).body != first.body
    bare = d.generate(keyed("c", Accept="image/png"), **fields)
    again = d.generate(keyed("c", Accept="image/png"), **fields)
    assert bare.body == again.body and bare.headers["x-seed"] == again.headers["x-seed"]
    box.kill()
    d = box.start()
    assert d.generate(keyed("a"), **fields).body == first.body
    assert d.generate(keyed("a"), **dict(fields, steps=6)).code == "idempotency_mismatch"
    box.stop()
    box.sql("UPDATE answers SET created = created - 86400")
    d = box.start()
    late = d.generate(keyed("a"), **dict(fields, steps=6))  # a day later the key is anybody's
    assert late.status == 200
    box.again("--result-bytes", "0")  # no room for answers: the keys stay
    end = time.monotonic() + PATIENCE
    while box.d.generate(keyed("a"), **dict(fields, steps=6)).status == 200:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert box.d.generate(keyed("a"), **dict(fields, steps=6)).code == "expired"


def test_a_key_in_flight_is_attached_to(box):
    d = box.start()
    fields = {"model": "tiny", "steps": 200}
    before = d.metrics()["denoised_row_steps_total"]
    replies = together([lambda: d.generate(keyed("k"), **fields)] * 4 +
                       [lambda: d.generate(keyed("k"), **dict(fields, steps=201))])
    assert sorted(r.status for r in replies) in ([200] * 4 + [422], [200, 422, 422, 422, 422])
    good = [r for r in replies if r.status == 200]
    assert len({r.body for r in good}) == 1
    ran = d.metrics()["denoised_row_steps_total"] - before
    assert ran in (200, 201)  # once


def test_denoise_with_a_key(box):
    """The same mechanism: one evaluation, one answer, whoever asks again, after kill -9 too."""
    d = box.start()
    x, t = f32([2, 16, 16, 3], [i % 7 - 3 for i in range(1536)]), f32([2], [10, 500])
    body = st_write({"sample": x, "timestep": t})
    kind = {"Content-Type": "application/x-safetensors"}

    def ask(key, body=body, query="?model=tiny"):
        return box.d.post("/denoise" + query, body, keyed(key, **kind))

    def evaluated():
        return box.d.metrics()["denoised_row_steps_total"]

    before = evaluated()
    first = ask("a")
    assert first.status == 200 and first.headers["content-type"] == kind["Content-Type"] and first.headers["x-model"] == "tiny@1"
    ran = evaluated() - before
    assert ran == 2
    for reply in [ask("a")] + together([lambda: ask("a")] * 3):
        assert reply.status == 200 and reply.body == first.body and reply.headers["x-model"] == "tiny@1"
    assert evaluated() - before == ran
    other = st_write({"sample": x, "timestep": f32([2], [10, 501])})
    for reply in (ask("a", other), ask("a", query="?model=tiny@1"), ask("a", query="")):
        assert (reply.status, reply.code) == (422, "idempotency_mismatch")
    assert evaluated() - before == ran
    assert ask("bad", st_write({"sample": x})).status == 400 and ask("bad").status == 200  # a refusal is not kept
    assert ask("b").body == first.body and evaluated() - before == 3 * ran
    box.kill()
    box.start()
    assert ask("a").body == first.body and evaluated() == 0
    assert ask("a", other).code == "idempotency_mismatch"
    large = st_write({"sample": f32([64, 16, 16, 3], [0.5] * 49152), "timestep": f32([64], [7] * 64)})  # comes in pieces
    assert ask("l", large).body == ask("l", large).body and ask("l", large[:-1] + b"\x41").code == "idempotency_mismatch"
    assert evaluated() == 64


def test_a_refusal_is_not_kept(box):
    d = box.start()
    for body, code in (({"steps": 0}, "out_of_range"), (dict(BASE, model="nobody"), "model_not_found")):
        assert d.generate(keyed("r"), **body).code == code
    assert d.generate(keyed("r"), **BASE).status == 200
    for key in ("", "a b", "x" * 256):
        reply = d.generate(keyed(key), **BASE)
        assert reply.status == 400 and reply.code == "bad_header"
    assert d.generate(keyed("s"), **dict(BASE, stream=True)).code == "contradiction"
    assert d.generate(keyed("s", Accept="text/event-stream"), **BASE).code == "contradiction"


def test_when_the_first_leaves_the_next_is_served(box):
    d = box.start()
    fields = dict(LONG, n=1, steps=A_WHILE)
    client = d.client()
    body = json.dumps(fields).encode()
    client.send(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body)
    d.wait_status(running=1, timeout=PATIENCE)

    def leave():
        time.sleep(0.1)
        client.close()

    reply, _ = together([lambda: d.generate(keyed("k"), **fields), leave])
    assert reply.status == 200 and [i["sha256"] for i in reply.json()["images"]] == d.shas(**fields)


def test_an_accepted_request_and_its_key_are_kept_together(box):
    d = box.start()
    fields = dict(LONG, n=2)
    del fields["seed"]
    first = d.generate(keyed("j", Prefer="respond-async"), **fields)
    assert first.status == 202
    box.kill()
    d = box.start()
    again = d.generate(keyed("j", Prefer="respond-async"), **fields)
    assert again.status == 202 and again.body == first.body and again.headers["location"] == first.headers["location"]
    assert len(d.ask("GET", "/requests").json()["requests"]) == 1
    d.ask("DELETE", again.headers["location"])


def test_keys_belong_to_their_owner(models, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("a" * 32 + " alice\n" + "b" * 32 + " bob\n")
    box = Box(models, tmp_path / "state")
    d = Serving(BINARY, ["--listen", "127.0.0.1:0", "--models", box.models, "--state", box.state, "--token-file",
                         str(tokens)]).started()
    try:
        who = [{"Authorization": "Bearer " + c * 32} for c in "ab"]
        end = time.monotonic() + PATIENCE
        while d.ask("GET", "/readyz").status != 200:
            assert time.monotonic() < end
            time.sleep(0.01)
        a, b = (d.generate(dict(w, **keyed("k")), model="tiny", steps=3) for w in who)
        assert a.status == b.status == 200 and a.json()["seed"] != b.json()["seed"]
        assert d.generate(dict(who[0], **keyed("k")), model="tiny", steps=4).code == "idempotency_mismatch"
    finally:
        d.stop()


# ---- the folder ----


def refused(*args):
    done = subprocess.run([BINARY, "--listen", "127.0.0.1:0", *args], capture_output=True, timeout=60, env=environment())
    assert done.returncode == 1, done
    return done.stderr.decode()


def test_two_daemons_never_share_a_state(box):
    box.start()
    assert "is in use by another denoised" in refused("--models", box.models, "--state", box.state)


def test_a_newer_database_is_refused(box):
    box.start()
    box.stop()
    box.sql("PRAGMA user_version = 99")
    assert "newer denoised" in refused("--models", box.models, "--state", box.state)


def backup(box, to):
    return subprocess.run([BINARY, "--state", box.state, "--backup", str(to)], capture_output=True, timeout=60,
                          env=environment(), text=True)


def test_a_backup_of_a_running_daemon_opens(box, tmp_path, models):
    d = box.start()
    done = d.wait_state(d.submit(**dict(BASE, n=2)), "succeeded")
    files = pictures(d, done)
    waits = d.submit(**dict(BASE, steps=400))
    made = backup(box, tmp_path / "copy")
    assert made.returncode == 0 and "complete" in made.stdout, made
    assert backup(box, tmp_path / "copy").returncode == 1  # never over another
    whole = shas_of(d.wait_state(waits, "succeeded"))
    copy = Box(models, tmp_path / "copy")
    try:
        e = copy.start()
        assert e.info(done["id"]) == done and pictures(e, done) == files
        assert shas_of(e.wait_state(waits, "succeeded")) == whole
    finally:
        copy.stop()
    assert "--backup needs --state" in subprocess.run([BINARY, "--backup", str(tmp_path / "x")], capture_output=True, text=True,
                                                      timeout=60, env=environment()).stderr


def test_below_the_disk_reserve(box):
    free = os.statvfs(os.path.dirname(box.state)).f_bavail * os.statvfs(os.path.dirname(box.state)).f_frsize
    d = box.start("--disk-reserve", str(free + 64 * GIB))
    reply = d.generate({"Prefer": "respond-async"}, **BASE)
    assert reply.status == 507 and reply.code == "disk_reserve" and "disk-reserve" in reply.json()["error"]["message"]
    assert d.generate(**BASE).status == 200
    d = box.again("--disk-reserve", "0")
    assert d.wait_state(d.submit(**BASE), "succeeded")


def test_a_full_disk_loses_nothing(box):
    """No file may grow beyond a bound: the database, then the results, cannot be written."""
    import resource
    d = box.start()
    whole = d.shas(**dict(BASE, n=2))
    id = d.submit(**dict(BASE, n=2, steps=100 if SANITIZED else 1000))
    resource.prlimit(d.proc.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    reply = d.generate({"Prefer": "respond-async"}, **BASE)
    assert reply.status == 500 and reply.code == "io"
    assert d.shas(**dict(BASE, n=2)) == whole  # sampling goes on
    info = d.wait_state(id, "succeeded")  # in memory
    files = pictures(d, info)
    resource.prlimit(d.proc.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    late = d.wait_state(d.submit(**dict(BASE, n=2)), "succeeded")  # the store goes on
    assert shas_of(late) == whole
    box.kill()
    d = box.start()
    again = d.wait_state(id, "succeeded")  # run once more
    assert shas_of(again) == shas_of(info) and pictures(d, again) == files
    assert d.info(late["id"]) == late
