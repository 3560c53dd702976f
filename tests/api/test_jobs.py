"""Training over HTTP: jobs from submission to their end, kill -9, pauses, sampling beside them, what is refused."""
import csv
import glob
import io
import json
import mmap
import os
import random
import re
import struct
import tarfile
import time

import pytest

from boxes import Box
from serving import BINARY, PATIENCE, SANITIZED, THREAD_SANITIZED, make_models, png_write

SIDE = 16
STEPS = 32 if SANITIZED else 240  # a second or so
HALF = STEPS // 2
KILLS = 3 if SANITIZED else 6  # at random moments: the release build has the most of them
STRIDE = 6 if THREAD_SANITIZED else 2 if SANITIZED else 1  # of the writes that fail once: it has them all
UNET = {"_class_name": "UNet2DModel", "sample_size": SIDE, "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
        "block_out_channels": [8, 16], "norm_num_groups": 4, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "attention_head_dim": 8, "num_class_embeds": 4}
JOB = {"name": "t", "dataset": "dots", "model": UNET, "steps": STEPS, "batch_size": 8, "micro_batch": 4,
       "checkpoint": {"every_steps": STEPS // 8}, "eval": {"fraction": 0.1, "every_steps": HALF},
       "objective": {"label_dropout": 0.1, "low_discrepancy": True}, "augment": [{"kind": "flip", "p": 0.5}], "ema": {"every": 2}}
BIG = {"model": dict(UNET, block_out_channels=[48, 96], norm_num_groups=8), "micro_batch": 1, "eval": {}}
PREVIEWS = {"every_steps": HALF, "labels": "all", "seeds": [5], "steps": 3}


def dots(n=60, classes=3):
    """A tar of class folders: squares at random places."""
    out, rng = io.BytesIO(), random.Random(1)
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i in range(n):
            pixels = bytearray(SIDE * SIDE * 3)
            x, y, c = rng.randrange(SIDE - 4), rng.randrange(SIDE - 4), i % classes
            for k in range(16):
                pixels[((y + k // 4) * SIDE + x + k % 4) * 3 + c] = 255
            png = png_write(SIDE, SIDE, 3, bytes(pixels))
            info = tarfile.TarInfo("%s/%03d.png" % (["blue", "green", "red"][c], i))
            info.size = len(png)
            tar.addfile(info, io.BytesIO(png))
    return out.getvalue()


def put_dataset(d, name="dots", body=None):
    reply = d.ask("PUT", "/datasets/" + name, body or dots(), {"Content-Type": "application/x-tar"})
    assert reply.status in (200, 201), reply.body
    return reply.json()


def submit(d, **fields):
    reply = d.ask("POST", "/jobs", dict(JOB, **fields))
    assert reply.status == 201, reply.body
    assert reply.headers["location"] == "/jobs/" + reply.json()["id"]
    return reply.json()["id"]


def job(d, id):
    reply = d.ask("GET", "/jobs/" + id)
    assert reply.status == 200, reply.body
    return reply.json()


def wait(d, id, *states, step=0):
    end = time.monotonic() + PATIENCE
    while True:
        info = job(d, id)
        if info["state"] in (states or ("succeeded",)) and info["step"] >= step:
            return info
        assert info["state"] in ("queued", "running") + states and time.monotonic() < end, info
        time.sleep(0.02)


def weights(box, id, step):
    with open("%s/jobs/%s/checkpoints/%d" % (box.state, id, step), "rb") as f:
        return f.read()


def lines(d, id):
    """metrics.csv without what is of the clock: throughput."""
    text = d.ask("GET", "/jobs/%s/metrics.csv" % id).body.decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    return [{k: v for k, v in row.items() if k not in ("attempt", "images_per_s")} for row in rows]


def samples(d, id):
    return [(s["step"], s["seed"], s["label"], s["sha256"]) for s in d.ask("GET", "/jobs/%s/samples" % id).json()["samples"]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def box(models, tmp_path):
    box = Box(models, tmp_path / "state")
    yield box
    box.stop()


# ---- a job's way ----


def test_a_job_trains_evaluates_shows_and_saves(box):
    d = box.start()
    card = put_dataset(d)
    id = submit(d, preview=PREVIEWS)
    info = wait(d, id)
    assert info["step"] == info["steps"] == STEPS and info["attempt"] == 1 and info["dataset"] == "dots@" + card["hash"]
    assert info["plan"]["micro_batch"] == 4 and info["plan"]["total"] > 0 and 0 < info["loss"] < 10 and info["eval_loss"] > 0
    rows = lines(d, id)
    assert [int(r["step"]) for r in rows if r["kind"] == "step"] == list(range(1, STEPS + 1))
    assert [int(r["step"]) for r in rows if r["kind"] == "eval"] == [HALF, STEPS]
    kept = d.ask("GET", "/jobs/%s/checkpoints" % id).json()["checkpoints"]
    assert kept[0]["step"] == STEPS and len(kept) in (2, 3) and sum(c["best"] for c in kept) == 1
    shown = d.ask("GET", "/jobs/%s/samples" % id).json()["samples"]
    assert {s["label"] for s in shown} == {"blue", "green", "red"} and {s["step"] for s in shown} <= {HALF, STEPS}
    pages, after = [], ""
    while after is not None:
        page = d.ask("GET", "/jobs/%s/samples?limit=2%s" % (id, after and "&after=" + after)).json()
        pages, after = pages + [page["samples"]], page["next"]
    assert [s for page in pages for s in page] == shown and len(pages) == (len(shown) + 1) // 2
    assert d.ask("GET", "/jobs/%s/samples?after=1-1-1" % id).status == 404
    for s in shown:
        reply = d.ask("GET", s["url"])
        assert reply.status == 200 and reply.headers["content-type"] == "image/png" and reply.body[:4] == b"\x89PNG"


def test_the_resolved_request_gives_the_same_weights_again(box):
    d = box.start()
    put_dataset(d)
    first = submit(d)
    wait(d, first)
    reply = d.ask("POST", "/jobs", job(d, first)["request"])
    assert reply.status == 201, reply.body
    again = reply.json()["id"]
    wait(d, again)
    assert weights(box, first, STEPS) == weights(box, again, STEPS)
    assert weights(box, first, STEPS) != weights(box, submit_and_wait(d, seed=1), STEPS)


def test_another_network_like_a_model(box):
    """Its config, schedule and prediction are what a job begins with; weights are not read, and no model is loaded for it."""
    d = box.start("--load", "none")
    put_dataset(d)
    schedule = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50}
    first = submit(d, steps=2, eval={}, schedule=schedule, objective={"prediction": "v"})
    wait(d, first)
    assert d.ask("POST", "/jobs/%s/publish" % first, {"as": "made"}).status == 200
    recipe = d.ask("GET", "/models/made/config").json()
    assert recipe["model"] == UNET and recipe["objective"] == {"prediction": "v"}
    assert recipe["schedule"] == schedule
    second = submit(d, **{**recipe, "steps": 2, "eval": {}})
    assert wait(d, second)["plan"] == job(d, first)["plan"]
    assert weights_of(d, second) == weights_of(d, first)
    assert d.ask("GET", "/models/made@1/config").json() == recipe
    assert (lambda r: (r.status, r.code))(d.ask("GET", "/models/nothing/config")) == (404, "model_not_found")
    assert {m["state"] for m in d.ask("GET", "/models").json()["models"]} == {"available"}
    plain = d.ask("GET", "/models/plain/config").json()  # of a scheduler_config.json as diffusers writes it
    assert plain["objective"] == {"prediction": "epsilon"} and "trained_betas" not in plain["schedule"]
    assert not [key for key in plain["schedule"] if key.startswith("_")]
    assert "variance_type" in plain["schedule"]  # DDPM's own: the previews' sampler, DDIM, does not know it
    third = submit(d, schedule=plain["schedule"], steps=2, eval={}, preview=dict(PREVIEWS, every_steps=2))
    wait(d, third)
    assert len(samples(d, third)) == 3


def weights_of(d, id):
    """What it learned, as a model's hash."""
    reply = d.ask("POST", "/jobs/%s/publish" % id, {"as": "hashed"})
    assert reply.status == 200, reply.body
    return next(v["hash"] for v in d.ask("GET", "/models/hashed").json()["versions"] if v["live"])


def submit_and_wait(d, **fields):
    id = submit(d, **fields)
    wait(d, id)
    return id


def test_from_a_model_and_every_precision(box):
    d = box.start()
    put_dataset(d)
    fields = {"model": None, "from": "tiny", "steps": 2, "batch_size": 4, "objective": {}, "eval": {}, "augment": None}
    body = {k: v for k, v in dict(JOB, **fields).items() if v is not None}
    losses = []
    for precision in ("fp32", "bf16", "fp16"):
        reply = d.ask("POST", "/jobs", dict(body, precision=precision))
        assert reply.status == 201, reply.body
        losses.append(wait(d, reply.json()["id"])["loss"])
    assert max(losses) - min(losses) < 0.1 * max(losses)


# ---- nothing is lost ----


def saved_past(d, id, step):
    """Wait for a checkpoint of at least so many steps; false: the job is over."""
    end = time.monotonic() + PATIENCE
    while True:
        kept = d.ask("GET", "/jobs/%s/checkpoints" % id).json()["checkpoints"]
        if kept and kept[0]["step"] >= step or not step:
            return True
        if job(d, id)["state"] not in ("queued", "running"):
            return False
        assert time.monotonic() < end
        time.sleep(0.01)


def undisturbed(box, **fields):
    d = box.start()
    put_dataset(d)
    id = submit(d, preview=PREVIEWS, **fields)
    wait(d, id)
    return weights(box, id, STEPS), lines(d, id), samples(d, id)


def test_kill_9_gives_the_same_weights(box):
    want, rows, shown = undisturbed(box)
    d, rng = box.d, random.Random(7)
    id, kills = submit(d, preview=PREVIEWS), 0
    while kills < KILLS and saved_past(d, id, kills * STEPS // 8):  # each start makes progress
        time.sleep(rng.random() * 0.1)
        box.kill()
        d, kills = box.start(), kills + 1
    info = wait(d, id)
    assert kills and info["attempt"] > 1
    assert weights(box, id, STEPS) == want
    assert lines(d, id) == rows
    assert set(samples(d, id)) <= set(shown)  # those under way at a kill are lost


def test_kill_9_while_snapshots_are_copied(box):
    """Snapshots after each step, copied a piece at a time."""
    fields = dict(BIG, steps=4, batch_size=1, checkpoint={"every_steps": 1})
    d = box.start("--yield-ms", "1")
    put_dataset(d)
    straight, rng = submit(d, **fields), random.Random(3)
    wait(d, straight)
    id = submit(d, **fields)
    for kills in range(2):
        saved_past(d, id, 2 * kills)
        time.sleep(rng.random() * 0.1)
        box.kill()
        d = box.start("--yield-ms", "1")
    assert wait(d, id)["attempt"] > 1
    assert weights(box, id, 4) == weights(box, straight, 4) and lines(d, id) == lines(d, straight)


def test_pause_sampling_and_threads_change_no_bit(box):
    want, rows, _ = undisturbed(box)
    box.again("--devices", "cpu:0")
    d = box.d
    reply = d.ask("POST", "/jobs", dict(JOB, device="cpu:0"))
    id = reply.json()["id"]
    for _ in range(3):
        wait(d, id, "running", "succeeded", step=1)
        d.ask("POST", "/generate", {"model": "tiny", "n": 4, "steps": 20, "class_label": 0})
        assert d.ask("POST", "/jobs/%s/pause" % id, {}).status in (200, 202, 409)
        if wait(d, id, "paused", "succeeded")["state"] == "paused":
            assert d.ask("POST", "/jobs/%s/resume" % id, {}).status == 200
    wait(d, id)
    assert weights(box, id, STEPS) == want and lines(d, id) == rows


def test_sigterm_saves_and_the_next_start_goes_on(box):
    want, rows, _ = undisturbed(box)
    id = submit(box.d)
    wait(box.d, id, "running", step=2)
    d = box.again()
    info = wait(d, id)
    assert info["attempt"] == 2 and weights(box, id, STEPS) == want and lines(d, id) == rows


SLOW = dict(BIG, batch_size=2048, steps=2)  # no test waits for its first step
UNSAVED = {"checkpoint": {"every_steps": 0, "every_s": 0}}


def counted(box, id):
    """Starts that ended the daemon before a checkpoint, and the last of them before a step."""
    return box.sql("SELECT starts, coalesce(json_extract(figures, '$.tries'), 0) FROM jobs WHERE id = ?", id)[0]


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_kill_between_the_last_checkpoint_and_its_row(box):
    d = box.start()
    put_dataset(d)
    id = submit(d, steps=8, checkpoint={"every_steps": 4}, eval={})
    wait(d, id)
    box.kill()
    box.sql("DELETE FROM job_saved WHERE job = ? AND step = 8", id)
    box.sql("UPDATE jobs SET state = 'running', finished = NULL, step = 4 WHERE id = ?", id)
    d = box.start()
    assert wait(d, id)["attempt"] == 2
    assert [c["step"] for c in d.ask("GET", "/jobs/%s/checkpoints" % id).json()["checkpoints"]] == [8, 4]


def test_kills_of_a_job_that_makes_steps_are_no_crash_loop(box):
    want, rows, _ = undisturbed(box)
    d = box.d
    id = submit(d, **UNSAVED)
    for k in range(3):
        until(lambda: counted(box, id) == (k + 1, 0))  # its first step is kept
        assert job(d, id)["state"] == "running"
        box.kill()
        d = box.start()
    assert wait(d, id)["attempt"] == 4
    assert weights(box, id, STEPS) == want and lines(d, id) == rows
    until(lambda: counted(box, id) == (0, 0))
    id = submit(d, steps=100000, **UNSAVED)
    until(lambda: counted(box, id) == (1, 0))
    box.kill()
    box.sql("UPDATE jobs SET starts = 10 WHERE id = ?", id)
    info = wait(box.start(), id, "failed")
    assert info["reason"] == "crash_loop" and info["attempt"] == 1
    assert info["error"]["code"] == "crash_loop" and "10 times" in info["error"]["message"]


def test_three_starts_that_end_the_daemon_before_a_step_are_a_crash_loop(box):
    d = box.start()
    put_dataset(d)
    id = submit(d, **SLOW)
    for k in range(3):
        until(lambda: counted(box, id) == (k + 1, k + 1))
        box.kill()
        d = box.start()
    info = wait(d, id, "failed")
    assert info["reason"] == "crash_loop" and info["attempt"] == 3 and info["error"]["code"] == "crash_loop"


def test_stops_in_good_order_are_no_crash_loop(box):
    d = box.start()
    put_dataset(d)
    id = submit(d, **SLOW)
    for _ in range(2):
        until(lambda: counted(box, id) == (1, 1))
        box.stop()
        assert counted(box, id) == (0, 0)
        d = box.start()
    until(lambda: job(d, id)["attempt"] == 3)
    assert job(d, id)["state"] in ("queued", "running")


def test_suspect_jobs_go_one_at_a_time(box):
    """Of two that ran when the daemon ended, one is begun; the other only when that one has made a step, or is found guilty."""
    d = box.start("--devices", "cpu:0,cpu:1")
    put_dataset(d)
    ids = [submit(d, device="cpu:%d" % k, **SLOW) for k in range(2)]
    for want in ([1, 1], [1, 2], [2, 2]):
        until(lambda: sorted(counted(box, id)[1] for id in ids) == want)
        if want[0] != want[1]:
            time.sleep(1.2)  # two ticks, in which the other could begin
            assert sorted(job(d, id)["state"] for id in ids) == ["queued", "running"]
        box.kill()
        d = box.start("--devices", "cpu:0,cpu:1")
    for id in ids:
        assert d.ask("POST", "/jobs/%s/cancel" % id, {}).status in (200, 202)


# ---- every write fails once ----


class Faults:
    """What faults.c reads: the n-th call from now on that has to do with `part` fails."""

    def __init__(self, path):
        path.write_bytes(struct.pack("<q120s", -1, b""))
        with open(path, "r+b") as f:
            self.page = mmap.mmap(f.fileno(), 0)
        here = os.path.join(os.path.dirname(os.path.abspath(BINARY)), "..", "tests", "api", "faults.so")
        self.env = {"LD_PRELOAD": here, "FAULTS_PAGE": str(path),
                    "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"}

    def arm(self, part, n):
        self.page[:8] = struct.pack("<q", -1)
        self.page[8:] = struct.pack("<120s", part.encode())
        self.page[:8] = struct.pack("<q", n)

    def left(self):
        return struct.unpack("<q", self.page[:8])[0]

    def fired(self):
        return self.left() < 0


@pytest.fixture
def faults(tmp_path):
    return Faults(tmp_path / "faults")


@pytest.fixture
def faulty(models, tmp_path, faults):
    box = Box(models, tmp_path / "state", faults.env)
    yield box
    box.stop()


SHORT = {"steps": 6, "batch_size": 2, "micro_batch": 2, "checkpoint": {"every_steps": 2, "keep_last": 3},
         "eval": {"fraction": 0.1, "every_steps": 4}}


def kept(box, id):
    folder = "%s/jobs/%s/checkpoints" % (box.state, id)
    return {name: weights(box, id, int(name)) for name in os.listdir(folder)}  # nothing but whole ones has a name like that


def through(d, faults, part, n):
    """A job during which one call fails; None: it was refused, and is not there. Paused, it says why, and goes on when asked to."""
    before = d.ask("GET", "/jobs?limit=1").json()["jobs"]
    faults.arm(part, n)
    reply = d.ask("POST", "/jobs", dict(JOB, **SHORT))
    if reply.status != 201:
        assert faults.fired() and (reply.status, reply.code) == (500, "io"), reply.body
        assert [j["id"] for j in d.ask("GET", "/jobs?limit=1").json()["jobs"]] == [j["id"] for j in before]
        return None
    id = reply.json()["id"]
    info = wait(d, id, "succeeded", "paused")
    if info["state"] == "paused":
        assert faults.fired() and info["reason"].startswith("a checkpoint could not be written"), info
        assert d.ask("POST", "/jobs/%s/resume" % id, {}).status == 200
        info = wait(d, id)
    assert info["attempt"] <= 2
    return id


def test_every_write_of_a_job_fails_once(faulty, faults):
    """Each write, sync and rename in the job's folder, and a part of those of the database: no job is lost, no checkpoint half made,
    and the end is that of a job that was not disturbed."""
    d = faulty.start()
    put_dataset(d)
    whole = through(d, faults, "nothing", 0)
    want, rows, ids, pauses = kept(faulty, whole), lines(d, whole), [whole], 0
    assert set(want) == {"2", "4", "6"} and len(rows) == 8
    for part, stride, least in (("/jobs/", STRIDE, 20), ("denoised.db", 7 * STRIDE, 20)):
        n, fired = 0, True
        while fired:
            id = through(d, faults, part, n)
            fired = faults.fired()
            if id:
                ids.append(id)
                pauses += job(d, id)["attempt"] > 1
                have = kept(faulty, id)
                assert lines(d, id) == rows and have.items() <= want.items()
                assert "6" in have and len(have) >= 2  # but for one that could not be written
            n += stride
        assert n > least
    assert pauses > (0 if THREAD_SANITIZED else 3)
    faults.arm("nothing", -1)
    d = faulty.again()  # what could not be stored at first has been by now
    for id in ids:
        info = job(d, id)
        assert (info["state"], info["step"]) == ("succeeded", 6), info
        assert {str(c["step"]) for c in d.ask("GET", "/jobs/%s/checkpoints" % id).json()["checkpoints"]} == set(kept(faulty, id))


def test_what_may_pass_pauses_a_job_that_is_resumed(box):
    """An error of the disk while it is restored is no failure of the job."""
    d = box.start()
    put_dataset(d)
    id = submit(d, steps=1000000)
    wait(d, id, "running", step=1)
    assert d.ask("POST", "/jobs/%s/pause" % id, {}).status == 202
    step = wait(d, id, "paused")["step"]
    path = "%s/jobs/%s/metrics.csv" % (box.state, id)
    os.rename(path, path + ".aside")
    os.mkdir(path)
    assert d.ask("POST", "/jobs/%s/resume" % id, {}).status == 200
    info = wait(d, id, "paused")
    assert "metrics.csv" in info["reason"] and info["attempt"] == 2, info
    os.rmdir(path)
    os.rename(path + ".aside", path)
    assert d.ask("POST", "/jobs/%s/resume" % id, {}).status == 200
    assert wait(d, id, "running", step=step + 1)["attempt"] == 3
    assert d.ask("POST", "/jobs/%s/cancel" % id, {}).status in (200, 202)
    wait(d, id, "cancelled")


def test_a_stream_that_cannot_be_opened_leaves_nothing(faulty, faults):
    """Neither the response nor its place in the connection can be had: the call ends, and nobody is told of it afterwards."""
    d = faulty.start()
    put_dataset(d)
    id = submit(d, steps=100 * STEPS)
    request = d.post("/generate", {"model": "tiny", "steps": 1000, "n": 64, "class_label": 0}, {"Prefer": "respond-async"}).json()["id"]
    for path in ("/jobs/" + id, "/requests/" + request):
        for n in range(2):
            client = d.client(PATIENCE)
            faults.arm("streams", n)
            client.send("GET %s/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
            assert client.closed() and faults.fired()
        client = d.client(PATIENCE)
        client.send("GET %s/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
        assert client.head()[0] == 200
        events(client, lambda e: True)
        client.close()
    assert d.ask("POST", "/jobs/%s/cancel" % id, {}).status in (200, 202)
    wait(d, id, "cancelled")
    assert d.ask("DELETE", "/requests/" + request).status == 200


# ---- beside others ----


def test_requests_are_answered_while_a_job_runs_and_train_share_changes_live(box):
    d = box.start()
    put_dataset(d)
    id = submit(d, steps=1000000, train_share=0.5)
    wait(d, id, "running", step=1)
    for n in (1, 8):
        assert d.ask("POST", "/generate", {"model": "tiny", "n": n, "steps": 10, "class_label": 0}).status == 200
    reply = d.ask("PATCH", "/jobs/" + id, {"train_share": 0.9, "priority": "high"})
    assert reply.status == 200 and reply.json()["train_share"] == 0.9 and reply.json()["priority"] == "high"
    second = submit(d)
    assert job(d, second)["state"] == "queued" and job(d, second)["position"] == 1
    assert d.ask("POST", "/jobs/%s/cancel" % id, {}).status in (200, 202)
    assert wait(d, id, "cancelled")["state"] == "cancelled"
    wait(d, second)
    text = d.ask("GET", "/metrics").body.decode()
    assert "denoised_device_seconds_total{kind=\"train\"}" in text and 'job="' not in text


def events(client, until, headers=()):
    """Events of an open stream up to one that `until` accepts."""
    out = []
    while not out or not until(out[-1]):
        block = client.until(b"\n\n").decode()
        fields = dict(line.split(": ", 1) for line in block.replace("\r\n", "\n").split("\n") if ": " in line)
        if "event" in fields:
            out.append((fields["id"], fields["event"], json.loads(fields["data"])))
    return out


def test_events_resume_after_the_last_id(box):
    d = box.start()
    put_dataset(d)
    id = submit(d)
    wait(d, id)
    body = d.ask("GET", "/jobs/%s/events" % id).body.decode()
    ids = [line[4:] for line in body.splitlines() if line.startswith("id: ")]
    assert "1.1" in ids and "1.%d" % STEPS in ids and "event: eval" in body and "event: state" in body
    rest = d.ask("GET", "/jobs/%s/events" % id, headers={"Last-Event-ID": "1.%d" % (STEPS - 4)}).body.decode()
    steps = [json.loads(line[6:])["step"] for line in rest.splitlines() if line.startswith("data: ") and '"steps"' in line]
    assert steps[:4] == list(range(STEPS - 3, STEPS + 1))
    after = [d.ask("GET", "/jobs/%s/events" % id, headers={"Last-Event-ID": "1.%d%s" % (HALF, end)}).body for end in ("", ".e")]
    assert [body.count(b"event: eval") for body in after] == [2, 1]  # a step and its evaluation are two events
    assert ids[-1] == "1.%d.e" % STEPS
    assert b"event: eval" not in d.ask("GET", "/jobs/%s/events" % id, headers={"Last-Event-ID": ids[-1]}).body
    assert d.ask("GET", "/jobs/%s/events" % id, headers={"Last-Event-ID": "x"}).code == "bad_header"


def heard(d, id, last, previews=None):
    """What a connection tells that is cut behind so many previews."""
    out, stream = [], d.events(path="/jobs/%s/events" % id, headers={"Last-Event-ID": last} if last else {})
    while previews is None or sum(name == "preview" for _, name, _ in out) < previews:
        event = next(stream, None)
        if event is None:
            break
        out.append(event)
    stream.close()
    return out


def shown_by(told):
    return [(e["step"], e["seed"], e["label"], e["sha256"]) for _, name, e in told if name == "preview"]


def place(id):
    """attempt.step[.e][.pN], in the order of the stream."""
    attempt, step, *rest = id.split(".")
    return int(attempt), int(step), "e" in rest, int(rest[-1][1:]) if rest and rest[-1][0] == "p" else 0


def test_a_cut_stream_tells_every_preview_once(box):
    d = box.start()
    put_dataset(d)
    id = submit(d, preview=dict(PREVIEWS, every_steps=STEPS // 8, seeds=[5, 6]))
    told, n = [], 0
    while not told or told[-1][1] != "state" or told[-1][2]["state"] != "succeeded":  # six pictures of a step, cut in the middle of them
        n += 1
        told += heard(d, id, told[-1][0] if told else None, 1 + n % 5)
    assert n > 2 and len(shown_by(told)) > 2 * 6
    assert shown_by(told) == samples(d, id)[::-1]
    later = heard(d, id, None)  # who comes when all is over
    assert [e["step"] for _, name, e in later if name == "step"] == list(range(1, STEPS + 1))
    for part in (told, later):
        ids = [place(id) for id, name, _ in part if name in ("step", "eval", "preview")]
        assert sorted(ids) == ids and len(set(ids)) == len(ids)
    shown = [e for e in told if e[1] == "preview"]
    assert shown == [e for e in later if e[1] == "preview"] and all(place(id)[1] >= e["step"] for id, _, e in shown)
    d = box.again()  # which knows of no lines
    for k in (0, 1, 4, 5, 6, len(shown)):
        again = heard(d, id, shown[k - 1][0] if k else None)
        assert [e for e in again if e[1] == "preview"] == shown[k:] and again[-1][1] == "state"
    assert heard(d, id, again[-1][0]) == again[-1:]
    for bad in ("1.2.p", "1.2.e.", "1.2.p1.e", "1.2.px", "1.2.p1x", "-1.2", "1.-2", "1." + "9" * 30, "1", "1.", ".1", "1.2.p-1"):
        assert d.ask("GET", "/jobs/%s/events" % id, headers={"Last-Event-ID": bad}).code == "bad_header", bad


def test_previews_are_told_once_across_a_kill(box):
    """Those of steps that are not lost, also when they were told behind steps that are."""
    d = box.start()
    put_dataset(d)
    id = submit(d, preview=dict(PREVIEWS, every_steps=STEPS // 8))
    told = []
    for n in (3, 2, 4):  # three pictures of a step: behind the third, the second, the first
        told += heard(d, id, told[-1][0] if told else None, n)
        box.kill()
        d = box.start()
    told += heard(d, id, told[-1][0])
    assert told[-1][2]["state"] == "succeeded" and told[-1][2]["attempt"] > 1
    rows = csv.DictReader(io.StringIO(d.ask("GET", "/jobs/%s/metrics.csv" % id).body.decode()))
    lasted = max((int(row["step"]) for row in rows if row["attempt"] == "1"), default=0)
    kept = [s for s in shown_by(told) if s[0] <= lasted]
    assert len(kept) == len(set(kept)), kept
    assert set(samples(d, id)) <= set(shown_by(told))


def test_who_joins_late_is_told_where_it_stands_and_nobody_else_is(box):
    d = box.start()
    put_dataset(d)
    id = submit(d, steps=100 * STEPS)
    first = d.client(PATIENCE)
    first.send("GET /jobs/%s/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % id)
    first.head()
    events(first, lambda e: e[1] == "step")
    for _ in range(5):
        late = d.client(PATIENCE)
        late.send("GET /jobs/%s/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % id)
        late.head()
        told = events(late, lambda e: e[1] == "state")[-1][2]
        assert told["id"] == id and told["state"] == "running"
        late.close()
    step = told["step"]
    heard = events(first, lambda e: e[1] == "step" and e[2]["step"] > step)
    assert [e for e in heard if e[1] == "state"] == []
    assert d.ask("POST", "/jobs/%s/cancel" % id, {}).status in (200, 202)
    assert events(first, lambda e: e[1] == "state" and e[2]["state"] == "cancelled")
    first.until(b"\r\n0\r\n\r\n")  # and that is the end


def test_what_is_not_finite_is_an_empty_cell_and_is_read_again(box):
    """Weights that ran away: losses overflow, steps are skipped."""
    d = box.start()
    put_dataset(d)
    id = submit(d, steps=30, nan_max=100, checkpoint={"every_steps": 5}, eval={"fraction": 0.1, "every_steps": 10},
                optimizer={"kind": "sgd", "lr": 100, "clip_norm": 0})
    wait(d, id)
    rows = lines(d, id)
    assert len(rows) == 33 and "nan" not in str(rows).lower()
    skipped = [r for r in rows if r["skipped"] == "1"]
    assert skipped and all(r["loss"] == r["grad_norm"] == "" and float(r["lr"]) == 100 for r in skipped)
    assert all(r["lr"] == r["grad_norm"] == "" for r in rows if r["kind"] == "eval")
    ids = [line for line in d.ask("GET", "/jobs/%s/events" % id).body.decode().splitlines() if line.startswith("id: ")]
    assert len(ids) == 34  # 30 steps, 3 evaluations, where it stands
    # cut back to a checkpoint in the middle of them, they are read, kept and gone on from
    id = submit(d, steps=100 * STEPS, nan_max=10000, checkpoint={"every_steps": 20},
                optimizer={"kind": "sgd", "lr": 100, "clip_norm": 0})
    saved_past(d, id, 40)
    box.kill()
    d = box.start()
    wait(d, id, "running", step=60)
    rows = [r for r in lines(d, id) if r["kind"] == "step"]
    assert [int(r["step"]) for r in rows] == list(range(1, len(rows) + 1)) and len(rows) >= 60
    assert {r["loss"] for r in rows[30:]} == {""}


# ---- memory ----


def test_what_a_job_will_ever_need_is_reserved_when_it_starts(box):
    """Copies for checkpoints and previews too: a model that would fit in their place while there is none is refused, and the job makes
    every one of them."""
    d = box.start("--load", "none")
    put_dataset(d)
    fields = dict(BIG, batch_size=1, steps=1000000, checkpoint={"every_steps": 1, "keep_last": 1000}, preview=dict(PREVIEWS, every_steps=1))
    id = submit(d, **fields)
    plan = job(d, id)["plan"]
    assert d.ask("POST", "/jobs/%s/cancel" % id, {}).status in (200, 202)
    parts = ("weights", "gradients", "moments", "ema", "arena", "data", "copies", "previews")
    assert sum(plan[k] for k in parts) == plan["total"] and plan["copies"] == plan["weights"] + plan["moments"] + plan["ema"]
    assert plan["previews"] > 2 * plan["weights"]
    assert d.post("/models/tiny/load?wait=true").status == 200
    tiny = sum(v for k, v in d.ask("GET", "/status").json()["memory"].items() if k != "limit")
    assert tiny < plan["copies"]
    d = box.again("--load", "none", "--memory", str(plan["total"] + tiny - 1))
    id = submit(d, **fields)
    for step in (1, 2, 8):
        wait(d, id, "running", step=step)
        held = re.search(r'^denoised_memory_bytes\{kind="training"\} (.*)$', d.ask("GET", "/metrics").body.decode(), re.M)
        assert float(held.group(1)) == plan["total"]
        reply = d.post("/models/tiny/load?wait=true")
        assert (reply.status, reply.code) == (503, "memory"), reply.body
    assert d.ask("POST", "/jobs/%s/pause" % id, {}).status == 202
    info = wait(d, id, "paused")
    kept = d.ask("GET", "/jobs/%s/checkpoints" % id).json()["checkpoints"]
    assert [c["step"] for c in kept] == list(range(info["step"], max(info["step"] - 1000, 0), -1))  # none is left out
    assert samples(d, id)
    assert d.post("/models/tiny/load?wait=true").status == 200
    refused(d, 422, "impossible", "micro_batch", **dict(fields, batch_size=64, micro_batch=64))


def test_rows_of_older_versions_are_read(box):
    """Plans without what copies take, previews without the place of their events."""
    d = box.start()
    put_dataset(d)
    id = submit(d, steps=1000000, preview=dict(PREVIEWS, every_steps=2))
    until(lambda: samples(d, id))
    assert d.ask("POST", "/jobs/%s/pause" % id, {}).status == 202
    plan, shown = wait(d, id, "paused")["plan"], samples(d, id)[::-1]
    less = plan["total"] - plan["copies"] - plan["previews"]
    box.stop()
    box.sql("UPDATE jobs SET plan = json_set(json_remove(plan, '$.copies', '$.previews'), '$.total', ?)", less)
    box.sql("UPDATE job_shown SET told = NULL")
    d = box.start()
    previews = 2 * plan["weights"]
    assert job(d, id)["plan"] == dict(plan, previews=previews, total=less + plan["copies"] + previews)
    client = d.client(PATIENCE)
    client.send("GET /jobs/%s/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % id)
    client.head()
    told = [(id, name, e) for id, name, e in events(client, lambda e: e[1] == "state") if name == "preview"]
    client.close()
    assert shown_by(told) == shown and sorted(place(id) for id, _, _ in told) == [place(id) for id, _, _ in told]
    step = job(d, id)["step"]
    assert d.ask("POST", "/jobs/%s/resume" % id, {}).status == 200
    wait(d, id, "running", step=step + 1)


# ---- publishing ----


def test_publishing_takes_its_turn_in_the_memory_budget(box):
    """Three copies of the weights, not a trainer; what is idle makes room; what never fits, or finds no memory, is refused at once."""
    d = box.start()
    put_dataset(d)
    big = dict(BIG, batch_size=1)
    first = submit(d, steps=2, **big)
    plan = wait(d, first)["plan"]
    copies = 3 * plan["weights"]
    assert copies < plan["total"] - (1 << 20)
    held = sum(v for k, v in d.ask("GET", "/status").json()["memory"].items() if k != "limit")
    assert held < copies

    def publish(id):
        return d.ask("POST", "/jobs/%s/publish" % id, {"as": "big"})

    d = box.again("--memory", str(held + copies - 1))
    reply = publish(first)  # idle models go
    assert reply.status == 200 and reply.json()["published"] == "big@1", reply.body
    assert "available" in [m["state"] for m in d.ask("GET", "/models").json()["models"] if m["name"] != "big"]
    for room in (copies + (1 << 20), copies - 1):
        d = box.again("--load", "none", "--memory", str(plan["total"] + room))
        running = submit(d, steps=1000000, **big, **UNSAVED)
        wait(d, running, "running", step=1)
        for id in (first, running):
            reply = publish(id)
            assert (reply.status, reply.code if reply.status != 200 else "") == ((200, "") if room > copies else (503, "memory"))
        assert d.ask("POST", "/jobs/%s/cancel" % running, {}).status in (200, 202)
        wait(d, running, "cancelled")
        assert publish(first).status == 200
        text = d.ask("GET", "/metrics").body.decode()
        assert 'denoised_memory_bytes{kind="training"} 0\n' in text, text


def test_publishing_to_a_name_of_the_folder_is_the_operators(box, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("%s anna\n%s root use,admin\n" % ("a" * 32, "r" * 32))
    tokens.chmod(0o600)
    d = box.start("--token-file", str(tokens), wait=False)

    def ask(who, method, path, body=None, kind="application/json"):
        return d.ask(method, path, json.dumps(body).encode() if isinstance(body, dict) else body,
                     {"Content-Type": kind, "Authorization": "Bearer " + who * 32})
    assert ask("a", "PUT", "/datasets/dots", dots(), "application/x-tar").status == 201
    name = ask("a", "GET", "/models").json()["models"][0]["name"]
    reply = ask("a", "POST", "/jobs", dict(JOB, steps=1000000, **UNSAVED))
    assert reply.status == 201, reply.body
    reply, path = ask("a", "POST", "/jobs/%s/publish" % reply.json()["id"], {"as": name}), "/jobs/" + reply.json()["id"]
    assert reply.status == 403 and reply.json()["error"]["param"] == "as", reply.body
    assert [v["version"] for v in ask("a", "GET", "/models/" + name).json()["versions"]] == [1]
    reply = ask("r", "POST", path + "/publish", {"as": name})
    assert reply.status == 200 and reply.json()["published"] == name + "@2", reply.body
    assert ask("a", "POST", path + "/cancel", {}).status in (200, 202)


def test_publishing_waits_for_a_job_on_its_way(box):
    """Just submitted, being paused, just resumed: there is nothing to ask again for. What is published while the job is being paused is
    what it is then saved as."""
    d = box.start()
    put_dataset(d)
    id, version = submit(d, steps=1000000), 0

    def publish():
        nonlocal version
        version += 1
        reply = d.ask("POST", "/jobs/%s/publish" % id, {"as": "made"})
        assert reply.status == 200 and reply.json()["published"] == "made@%d" % version, reply.body
        return d.ask("GET", "/models/made").json()["versions"][-1]["hash"]

    publish()
    for _ in range(3):
        assert d.ask("POST", "/jobs/%s/pause" % id, {}).status == 202
        saved = publish()
        step = wait(d, id, "paused")["step"]
        assert publish() == saved
        assert d.ask("POST", "/jobs/%s/resume" % id, {}).status == 200
        publish()
        wait(d, id, "running", step=step + 1)
    assert d.ask("POST", "/jobs/%s/cancel" % id, {}).status in (200, 202)
    publish()
    wait(d, id, "cancelled")
    # nothing comes of what has made nothing, and never will
    running, id = submit(d, steps=1000000), submit(d, steps=1000000)
    assert job(d, id)["state"] == "queued" and d.ask("POST", "/jobs/%s/cancel" % id, {}).status == 200
    reply = d.ask("POST", "/jobs/%s/publish" % id, {"as": "made"})
    assert reply.status == 409 and "no checkpoint" in reply.json()["error"]["message"], reply.body
    assert d.ask("POST", "/jobs/%s/cancel" % running, {}).status in (200, 202)


def test_saving_waits_for_a_job_on_its_way(box):
    d = box.start()
    put_dataset(d)
    id = submit(d, steps=1000000, **UNSAVED)
    assert d.ask("POST", "/jobs/%s/checkpoints" % id, {}).status == 202
    until(lambda: d.ask("GET", "/jobs/%s/checkpoints" % id).json()["checkpoints"])
    assert d.ask("POST", "/jobs/%s/cancel" % id, {}).status in (200, 202)
    wait(d, id, "cancelled")
    assert d.ask("POST", "/jobs/%s/checkpoints" % id, {}).status == 409


def test_publishing_does_not_wait_for_requests_that_always_wait(box):
    d = box.start()
    put_dataset(d)
    id = submit(d, steps=1000000, train_share=0, **UNSAVED)
    wait(d, id, "running", step=1)
    request = d.submit(model="tiny", steps=1000, n=64, class_label=0)
    d.wait_state(request, "running")
    assert d.ask("POST", "/jobs/%s/publish" % id, {"as": "made"}).status == 200
    assert d.ask("POST", "/jobs/%s/pause" % id, {}).status == 202
    assert wait(d, id, "paused")["step"] > 0
    assert d.info(request)["state"] == "running"
    d.ask("DELETE", "/requests/" + request)


def test_a_new_network_learns_a_flow(box):
    """Its scheduler is that of a flow unless the job names another; it is sampled and published with it."""
    d = box.start()
    put_dataset(d)
    flow = {"eval": {}, "steps": 4, "preview": dict(PREVIEWS, every_steps=4)}
    plain = submit(d, objective={"prediction": "flow", "timesteps": "logit_normal"}, **flow)
    shifted = submit(d, objective={"prediction": "flow"}, schedule={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3}, **flow)
    for id, shift in ((plain, None), (shifted, 3)):
        wait(d, id)
        assert len(d.ask("GET", "/jobs/%s/samples" % id).json()["samples"]) == 3
        assert d.ask("POST", "/jobs/%s/publish" % id, {"as": "flow"}).status == 200
        reply = d.ask("POST", "/generate", {"model": "flow", "seed": 1, "class_label": 0, "steps": 3})
        assert reply.status == 200, reply.body
        found = glob.glob(box.state + "/models/**/scheduler_config.json", recursive=True)
        with open(max(found, key=os.path.getmtime)) as f:
            config = json.load(f)
        assert (config["_class_name"], config.get("shift")) == ("FlowMatchEulerDiscreteScheduler", shift)
    recipe = d.ask("GET", "/models/flow/config").json()
    assert recipe["objective"] == {"prediction": "flow"} and recipe["schedule"] == {"shift": 3}
    wait(d, submit(d, **{**recipe, "steps": 2, "eval": {}}))


def test_a_model_is_trained_on_as_it_was_trained(box):
    d = box.start()
    put_dataset(d)
    for given, told in (({"objective": {"prediction": "v"}}, "v"), ({"schedule": {"prediction_type": "sample"}, "objective": {}}, "sample")):
        first = submit(d, steps=2, eval={}, **given)
        wait(d, first)
        assert d.ask("POST", "/jobs/%s/publish" % first, {"as": told}).status == 200
        more = {"model": None, "from": told, "steps": 2, "eval": {}}
        for objective, prediction in (({}, told), ({"prediction": "epsilon"}, "epsilon")):
            reply = d.ask("POST", "/jobs", {k: v for k, v in dict(JOB, objective=objective, **more).items() if v is not None})
            assert reply.status == 201 and reply.json()["request"]["objective"]["prediction"] == prediction, reply.body
            assert wait(d, reply.json()["id"])["request"]["objective"]["prediction"] == prediction


# ---- what is refused ----


def refused(d, status, code, param, **fields):
    reply = d.ask("POST", "/jobs", {k: v for k, v in dict(JOB, **fields).items() if v is not None})
    error = reply.json().get("error", reply.json())
    assert (reply.status, error.get("code"), error.get("param")) == (status, code, param), reply.body


def test_bad_jobs_are_refused_by_name(box):
    d = box.start("--memory", "200M")
    put_dataset(d)
    refused(d, 404, "not_found", "dataset", dataset="nothing")
    refused(d, 404, "model_not_found", "from", **{"from": "nothing", "model": None})
    refused(d, 422, "impossible", "device", device="cuda:7")
    refused(d, 400, "invalid", "name", name="Upper Case")
    refused(d, 400, "contradiction", "objective.snr_gamma", objective={"snr_gamma": 5})
    refused(d, 422, "impossible", "preview.labels", preview=dict(PREVIEWS, labels=["purple"]))
    refused(d, 400, "unknown_field", "schedule.beta_scheduler", schedule={"beta_scheduler": "linear"})
    refused(d, 422, "impossible", "schedule.solver_order", schedule={"solver_order": 2})
    refused(d, 400, "contradiction", "schedule.prediction_type", schedule={"prediction_type": "v_prediction"},
            objective={"prediction": "epsilon"})
    refused(d, 400, "not_supported", "schedule._class_name", schedule={"_class_name": "NoScheduler"})
    refused(d, 400, "unknown_field", "model.block_out_chanels", model=dict(UNET, block_out_chanels=[8]))
    refused(d, 400, "invalid", "model.block_out_channels", model=dict(UNET, block_out_channels=[8]))
    refused(d, 422, "impossible", "objective.prediction", schedule={"_class_name": "FlowMatchEulerDiscreteScheduler"})
    refused(d, 422, "impossible", "objective.vlb_weight", objective={"vlb_weight": 2})
    reply = d.ask("POST", "/jobs", dict(JOB, batch_size=65536, micro_batch=65536))
    assert reply.status == 422 and reply.code == "impossible" and any(c.isdigit() for c in reply.json()["error"]["message"])
    reply = d.ask("POST", "/jobs", dict(JOB, model=dict(UNET, num_class_embeds=2)))
    assert reply.status == 422, reply.body  # the data has three classes
    assert d.ask("GET", "/jobs").json() == {"jobs": [], "next": None}
    assert d.ask("GET", "/jobs/" + 32 * "0").status == 404
    assert d.ask("POST", "/jobs/%s/pause" % (32 * "0"), {}).status == 404


def test_without_a_state_folder_there_is_no_training(models):
    from conftest import Daemon
    d = Daemon(BINARY, ["--listen", "127.0.0.1:0", "--models", str(models), "--load", "none"]).started()
    try:
        reply = d.ask("POST", "/jobs", JOB)
        assert reply.status == 422 and "--state" in reply.json()["error"]["message"]
    finally:
        d.stop()


def test_lists_are_paged_and_filtered(box):
    d = box.start()
    put_dataset(d)
    ids = [submit(d, steps=1, eval={}) for _ in range(3)]
    for id in ids:
        wait(d, id)
    page = d.ask("GET", "/jobs?limit=2").json()
    assert [j["id"] for j in page["jobs"]] == ids[:0:-1] and page["next"] == ids[1]
    rest = d.ask("GET", "/jobs?limit=2&after=" + page["next"]).json()
    assert [j["id"] for j in rest["jobs"]] == ids[:1] and rest["next"] is None
    assert d.ask("GET", "/jobs?state=failed").json()["jobs"] == []
    assert d.ask("POST", "/jobs/%s/pause" % ids[0], {}).status == 409
    assert d.ask("POST", "/jobs/%s/cancel" % ids[0], {}).code == "conflict"
