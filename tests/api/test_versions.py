"""Versions of models over HTTP: uploads that are checked whole, the live version moved under load, copies, checkpoints, deletion."""
import io
import json
import os
import signal
import sqlite3
import tarfile
import threading
import time

import pytest
from serving import GOLDEN, PATIENCE, copy_model, serving, spoil, st_write, together, write_json
from uploads import FORM, Importing, form

TAR = {"Content-Type": "application/x-tar"}


def tar_of(folder, mode="w", below="", change=None):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as t:
        for root, _, files in os.walk(folder):
            for name in sorted(files):
                path = os.path.join(root, name)
                data = open(path, "rb").read()
                rel = os.path.relpath(path, folder)
                data = change(rel, data) if change else data
                if data is not None:
                    info = tarfile.TarInfo(below + rel)
                    info.size = len(data)
                    t.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    copy_model("pipe_ddpm", root, "ddpm")
    copy_model("unet_misc", root, "misc")
    other = copy_model("pipe_ddpm", root, "other")
    path = other + "/unet/diffusion_pytorch_model.safetensors"
    data = bytearray(open(path, "rb").read())
    data[-40:] = bytes(40)  # the last ten values: other weights, finite ones
    open(path, "wb").write(data)
    spoil(copy_model("pipe_ddpm", root, "spoilt") + "/unet/diffusion_pytorch_model.safetensors")
    os.mkdir(root / "models")
    copy_model("pipe_ddpm", root / "models", "plain")
    return root


class Box:
    def __init__(self, state, daemon):
        self.state, self.d = state, daemon

    def put(self, name, body, headers=TAR, query="?wait=true"):
        client = self.d.client()
        try:
            return client.ask("PUT", "/models/%s%s" % (name, query), body, headers)
        finally:
            client.close()

    def versions(self, name):
        reply = self.d.ask("GET", "/models/" + name)
        assert reply.status == 200, reply.body
        return [(v["version"], v["live"]) for v in reply.json()["versions"]]

    def attempt(self, name):
        """What became of the last upload, when that is known; None: a version."""
        end = time.monotonic() + PATIENCE
        while True:
            attempt = self.d.model(name).get("attempt")
            if not attempt or attempt["state"] != "loading":
                return attempt
            assert time.monotonic() < end
            time.sleep(0.02)

    def left(self):
        """What is in incoming/, once all that was asked for is done."""
        end = time.monotonic() + PATIENCE
        while os.listdir(os.path.join(self.state, "incoming")) and time.monotonic() < end:
            time.sleep(0.02)
        return os.listdir(os.path.join(self.state, "incoming"))

    def kept(self):
        root = os.path.join(self.state, "models")
        return sorted("%s@%s" % (name, v) for name in os.listdir(root) for v in os.listdir(os.path.join(root, name)))


@pytest.fixture
def box(tmp_path, sources):
    with serving(sources / "models", "--state", str(tmp_path / "state"), "--disk-reserve", "0") as daemon:
        yield Box(str(tmp_path / "state"), daemon)


ASK = dict(seed=3, steps=3, n=1)


def test_upload(box, sources):
    plain = box.d.result(model="plain", **ASK)
    reply = box.put("new", tar_of(sources / "ddpm", below="some/"[:5]))
    assert reply.status == 201, reply.body
    assert reply.headers["location"] == "/models/new@1"
    assert box.versions("new") == [(1, True)]
    result = box.d.result(model="new", **ASK)
    assert result["model"] == "new@1" and result["images"][0]["sha256"] == plain["images"][0]["sha256"]
    assert box.put("new", tar_of(sources / "misc", "w:gz")).status == 201
    assert box.versions("new") == [(1, True), (2, False)]  # live does not move
    assert box.d.result(model="new", **ASK)["model"] == "new@1"
    assert box.d.result(model="new@2", class_label=0, **ASK)["model"] == "new@2"
    assert box.put("plain", tar_of(sources / "other")).status == 201
    assert box.versions("plain") == [(1, True), (2, False)]
    assert box.d.sha(model="plain", **ASK) == plain["images"][0]["sha256"] != box.d.sha(model="plain@2", **ASK)
    names = [card["name"] for card in box.d.ask("GET", "/models").json()["models"]]
    assert names == ["new", "plain"]
    assert box.kept() == ["new@1", "new@2", "plain@2"] and not box.left()


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def read(path):
    with open(path, "rb") as f:
        return f.read()


@pytest.mark.parametrize("kind", ["application/x-safetensors", "application/octet-stream"])
def test_bare_weights(box, sources, kind):
    """One .safetensors file: the weights of a further version with the live one's configuration."""
    head = {"Content-Type": kind}
    weights = read(sources / "other" / WEIGHTS)
    assert box.put("whole", tar_of(sources / "other")).status == 201
    want = box.d.sha(model="whole", **ASK)
    reply = box.put("plain", weights, head)
    assert reply.status == 201 and reply.headers["location"] == "/models/plain@2", reply.body
    assert box.versions("plain") == [(1, True), (2, False)]
    assert box.d.sha(model="plain@2", **ASK) == want != box.d.sha(model="plain", **ASK)
    assert box.d.ask("GET", "/models/plain@2/checkpoint").body == box.d.ask("GET", "/models/whole/checkpoint").body
    assert box.put("flat", tar_of(sources / "misc", below="misc/")).status == 201  # a component alone
    assert box.put("flat", read(sources / "misc" / os.path.basename(WEIGHTS)), head).status == 201
    hashes = {v["hash"] for v in box.d.ask("GET", "/models/flat").json()["versions"]}
    assert box.versions("flat") == [(1, True), (2, False)] and len(hashes) == 1
    assert box.d.sha(model="flat@2", class_label=0, **ASK) == box.d.sha(model="flat", class_label=0, **ASK)
    box.left()


def test_bare_weights_that_do_not_fit(box, sources):
    head = {"Content-Type": "application/x-safetensors"}
    weights = read(sources / "other" / WEIGHTS)
    reply = box.put("nobody", weights, head)
    assert reply.status == 422 and "config" in reply.json()["error"]["message"], reply.body
    assert box.versions("nobody") == []
    for body, said in ((read(sources / "misc" / os.path.basename(WEIGHTS)), "tensor"), (weights[:-9], "safetensors"),
                       (read(sources / "spoilt" / WEIGHTS), "finite"), (weights[:5000], "safetensors"), (weights[:8], "")):
        reply = box.put("plain", body, head)
        assert reply.status == 400 and said in reply.json()["error"]["message"], reply.body
    assert box.versions("plain") == [(1, True)] and box.kept() == [] and not box.left()


def test_multipart(box, sources):
    want = box.d.sha(model="plain", **ASK)
    assert box.put("one", form([("m.tar", tar_of(sources / "ddpm"))]), FORM).status == 201
    assert box.d.sha(model="one", **ASK) == want
    names = ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS)
    assert box.put("many", form([(name, read(sources / "ddpm" / name)) for name in names]), FORM).status == 201
    assert box.d.sha(model="many", **ASK) == want
    assert box.put("plain", form([("w.safetensors", read(sources / "other" / WEIGHTS))]), FORM).status == 201
    assert box.d.sha(model="plain@2", **ASK) != want and not box.left()


def test_not_waited_for(box, sources):
    reply = box.put("later", tar_of(sources / "ddpm"), query="")
    assert reply.status == 202 and reply.headers["location"] == "/models/later"
    assert box.attempt("later") is None and box.versions("later") == [(1, True)]
    assert box.d.result(model="later", **ASK)["model"] == "later@1"


def test_a_refusal_is_told_later(box, sources):
    """Nobody waited: what became of it stands in the model's card until a later upload becomes a version."""
    assert box.put("late", tar_of(sources / "spoilt"), query="").status == 202
    attempt = box.attempt("late")
    assert attempt["state"] == "failed" and attempt["source"] == "upload" and abs(attempt["created_at"] - time.time()) < PATIENCE
    assert attempt["error"]["code"] == "bad_format" and "finite" in attempt["error"]["message"]
    card = box.d.model("late")
    assert card["state"] == "failed" and card["versions"] == [] and "finite" in card["error"]
    assert box.d.generate(model="late", **ASK).status == 404
    assert "late" not in [c["name"] for c in box.d.ask("GET", "/models").json()["models"]]
    assert box.put("plain", tar_of(sources / "spoilt"), query="").status == 202
    assert box.attempt("plain")["state"] == "failed"
    assert box.d.model("plain")["state"] == "loaded" and "error" not in box.d.model("plain")
    assert box.put("plain", b"\x28\xb5\x2f\xfd nothing", query="").status == 202  # the newest is told
    assert "finite" not in box.attempt("plain")["error"]["message"]
    for name in ("late", "plain"):
        assert box.put(name, tar_of(sources / "other")).status == 201
        assert box.attempt(name) is None
    assert box.versions("late") == [(1, True)] and box.versions("plain") == [(1, True), (2, False)]
    assert box.d.model("plain@2").get("attempt") is None


def test_refusals_are_for_their_owner(tmp_path, sources):
    tokens = tmp_path / "tokens"
    tokens.write_text("%s anna\n%s bert\n%s root use,admin\n" % tuple(c * 32 for c in "abr"))
    tokens.chmod(0o600)
    with serving(sources / "models", "--state", str(tmp_path / "state"), "--disk-reserve", "0", "--token-file", str(tokens)) as daemon:
        def ask(who, method, path, body=None):
            return daemon.ask(method, path, body, {**TAR, "Authorization": "Bearer " + who * 32})
        assert ask("a", "PUT", "/models/hers?wait=true", tar_of(sources / "spoilt")).status == 400
        assert ask("a", "GET", "/models/hers").json()["state"] == "failed"
        assert ask("r", "GET", "/models/hers").json()["attempt"]["error"]["code"] == "bad_format"
        assert ask("b", "GET", "/models/hers").status == 404
        assert ask("b", "PUT", "/models/hers?wait=true", tar_of(sources / "ddpm")).status == 201
        assert ask("b", "GET", "/models/hers").json()["state"] in ("available", "loaded")
        assert "attempt" not in ask("b", "GET", "/models/hers").json()
        assert ask("a", "GET", "/models/hers").json()["attempt"]["state"] == "failed"


def drop(name):
    return lambda rel, data: None if rel.endswith(name) else data


def shape(rel, data):
    return data.replace(b'"sample_size"', b'"layers_per_block": 7, "x"') if rel == "unet/config.json" else data


@pytest.mark.parametrize("body,said", [
    (lambda s: b"nothing that is known " * 50, ""),
    (lambda s: tar_of(s / "spoilt"), "finite"),
    (lambda s: tar_of(s / "ddpm", change=drop(".safetensors")), ""),
    (lambda s: tar_of(s / "ddpm", change=drop("model_index.json")), ""),
    (lambda s: tar_of(s / "ddpm", change=lambda rel, data: data[:-9] if rel.endswith(".safetensors") else data), "safetensors"),
    (lambda s: tar_of(s / "ddpm", below="../"), ".."),
    (lambda s: tar_of(s / "ddpm")[:-20000], ""),
])
def test_broken_uploads(box, sources, body, said):
    reply = box.put("bad", body(sources))
    assert 400 <= reply.status < 500, reply.body
    assert said in reply.json()["error"]["message"]
    card = box.d.model("bad")
    assert card["state"] == "failed" and card["versions"] == [] and card["attempt"]["error"] == reply.json()["error"]
    assert box.put("plain", body(sources)).status == reply.status
    assert box.versions("plain") == [(1, True)]
    assert box.kept() == [] and not box.left()


def test_cut(box, sources):
    body = tar_of(sources / "ddpm")
    for cut in (0, 1000, len(body) // 2, len(body) - 1):
        client = box.d.client()
        client.send("PUT /models/cut HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-tar\r\nContent-Length: %d\r\n\r\n" % len(body))
        client.send(body[:cut])
        client.close()
    assert not box.left() and box.d.ask("GET", "/models/cut").status == 404


def test_alias_under_load(box, sources):
    """Samples that run while the live version moves to and fro have each the bytes of the version that they name."""
    assert box.put("plain", tar_of(sources / "other")).status == 201
    want = {"plain@%d" % v: box.d.sha(model="plain@%d" % v, seed=5, steps=8) for v in (1, 2)}
    assert len(set(want.values())) == 2
    got, over = [], threading.Event()

    def sample():
        while not over.is_set():
            result = box.d.result(model="plain", seed=5, steps=8)
            got.append((result["model"], result["images"][0]["sha256"]))

    threads = [threading.Thread(target=sample) for _ in range(3)]
    for t in threads:
        t.start()
    for k in range(10):
        version = 1 + (k + 1) % 2
        reply = box.d.post("/models/plain/alias", {"version": version})
        assert reply.status == 200
        assert box.versions("plain") == [(1, version == 1), (2, version == 2)]
        assert box.d.result(model="plain", seed=5, steps=1)["model"] == "plain@%d" % version  # from the answer on
    over.set()
    for t in threads:
        t.join()
    assert got and all(want[model] == sha for model, sha in got) and {model for model, _ in got} == set(want)
    reply = box.d.post("/models/plain/alias", {"version": 9})
    assert reply.status == 404 and reply.json()["error"]["param"] == "version"


def test_after_a_restart(tmp_path, sources):
    state = str(tmp_path / "state")
    with serving(sources / "models", "--state", state, "--disk-reserve", "0") as daemon:
        box = Box(state, daemon)
        assert box.put("plain", tar_of(sources / "other")).status == 201
        assert box.put("up", tar_of(sources / "ddpm")).status == 201
        assert daemon.post("/models/plain/alias", {"version": 2}).status == 200
        want = daemon.sha(model="plain", **ASK)
    os.makedirs(state + "/models/orphan/1")
    os.makedirs(state + "/models/up/7")
    with serving(sources / "models", "--state", state, "--disk-reserve", "0") as daemon:
        box = Box(state, daemon)
        assert box.versions("plain") == [(1, False), (2, True)] and box.versions("up") == [(1, True)]
        assert daemon.sha(model="plain", **ASK) == want
        assert daemon.post("/models/plain/alias", {"version": 1}).status == 200
        assert daemon.result(model="plain", **ASK)["model"] == "plain@1"
        assert box.kept() == ["plain@2", "up@1"]
    with serving(sources / "models", "--state", state, "--disk-reserve", "0") as daemon:
        assert Box(state, daemon).versions("plain") == [(1, True), (2, False)]


def test_checkpoint_and_save(box, sources):
    want = box.d.sha(model="plain", **ASK)
    reply = box.d.ask("GET", "/models/plain/checkpoint")
    assert reply.status == 200 and reply.headers["x-model"] == "plain@1" and reply.headers["content-type"] == "application/zstd"
    assert reply.body[:4] == b"\x28\xb5\x2f\xfd" and len(reply.body) > 300000  # several blocks
    assert box.d.ask("GET", "/models/plain@1/checkpoint").body == reply.body
    assert box.put("again", reply.body, {"Content-Type": "application/zstd"}).status == 201
    assert box.d.sha(model="again", **ASK) == want
    saved = box.d.post("/models/plain/save?wait=true", {"as": "copy"})
    assert saved.status == 201 and box.versions("copy") == [(1, True)]
    assert box.d.sha(model="copy", **ASK) == want
    assert box.d.ask("GET", "/models/copy/checkpoint").body == reply.body
    assert box.d.post("/models/plain/save?wait=true", {"as": "No"}).status == 400
    assert box.d.post("/models/plain/save", {}).status == 400
    assert box.d.ask("GET", "/models/none/checkpoint").status == 404
    client = box.d.client()  # one that leaves in the middle
    client.send("GET /models/plain/checkpoint HTTP/1.1\r\nHost: localhost\r\n\r\n")
    client.head()
    client.close()
    assert box.d.sha(model="plain", **ASK) == want and not box.left()


def test_delete(box, sources):
    assert box.put("plain", tar_of(sources / "other")).status == 201
    first = box.d.ask("DELETE", "/models/plain@1")
    assert first.status == 409
    assert box.d.ask("DELETE", "/models/plain").status == 400
    assert box.d.post("/models/plain/alias", {"version": 2}).status == 200
    assert box.d.ask("DELETE", "/models/plain@2").status == 409  # live
    id = box.d.submit(model="plain", seed=1, steps=1000, n=8)
    assert box.d.post("/models/plain/alias", {"version": 1}).status == 200
    assert box.d.ask("DELETE", "/models/plain@2").status == 409  # held
    assert box.d.ask("DELETE", "/requests/" + id).status == 200
    box.d.wait_state(id, "cancelled")
    end = time.monotonic() + PATIENCE
    while box.d.ask("DELETE", "/models/plain@2").status == 409:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert box.d.ask("DELETE", "/models/plain@2").status == 404
    assert box.versions("plain") == [(1, True)]
    assert box.d.generate(model="plain@2", **ASK).status == 404
    assert box.d.info(id)["state"] == "cancelled"
    while box.kept():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert box.d.result(model="plain", **ASK)["model"] == "plain@1"


def test_numbers_are_given_once(tmp_path, sources):
    state = str(tmp_path / "state")

    def put(box):
        reply = box.put("plain", tar_of(sources / "other"))
        assert reply.status == 201, reply.body
        return reply.headers["location"]

    with serving(sources / "models", "--state", state, "--disk-reserve", "0") as daemon:
        box = Box(state, daemon)
        assert put(box) == "/models/plain@2"
        assert daemon.ask("DELETE", "/models/plain@2").status == 200
        assert put(box) == "/models/plain@3"
    with sqlite3.connect(state + "/denoised.db") as db:  # as a daemon left it that did not know of this
        db.executescript("DROP TABLE model_numbers; ALTER TABLE job_shown DROP COLUMN told; PRAGMA user_version = 2;")
    with serving(sources / "models", "--state", state, "--disk-reserve", "0") as daemon:
        box = Box(state, daemon)
        assert daemon.ask("DELETE", "/models/plain@3").status == 200
        assert put(box) == "/models/plain@4"
        assert daemon.ask("DELETE", "/models/plain@4").status == 200
    with serving(sources / "models", "--state", state, "--disk-reserve", "0") as daemon:
        assert put(Box(state, daemon)) == "/models/plain@5"
        assert daemon.post("/models/plain/save?wait=true", {"as": "plain"}).headers["location"] == "/models/plain@6"
        assert Box(state, daemon).versions("plain") == [(1, True), (5, False), (6, False)]


def test_short_work_beside_a_long_import(box, sources):
    """Checks, packs and deletes do not wait for an import."""
    slow = Importing(box.d, "slow", 6000).begun(box.state)
    assert box.put("plain", tar_of(sources / "other")).status == 201
    assert box.d.ask("GET", "/models/plain@2/checkpoint").status == 200
    assert box.d.ask("DELETE", "/models/plain@2").status == 200
    end = time.monotonic() + PATIENCE
    while box.kept():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert slow.is_alive()
    assert box.d.ask("DELETE", "/datasets/slow").json()["cancelled"]  # still under way
    slow.join()
    assert not box.left()


@pytest.mark.parametrize("after", [0, 0.02, 0.1])
def test_a_kill_in_a_check(tmp_path, sources, after):
    state = str(tmp_path / "state")
    with serving(sources / "models", "--state", state, "--disk-reserve", "0") as daemon:
        assert Box(state, daemon).put("up", tar_of(sources / "ddpm"), query="").status == 202
        time.sleep(after)
        daemon.stop(-9, signal.SIGKILL)
        daemon.stop = lambda *args: None
    with serving(sources / "models", "--state", state, "--disk-reserve", "0") as daemon:
        box = Box(state, daemon)
        assert os.listdir(state + "/incoming") == []
        whole = daemon.ask("GET", "/models/up").status == 200
        assert box.kept() == (["up@1"] if whole else [])
        assert not whole or daemon.sha(model="up", **ASK) == daemon.sha(model="plain", **ASK)


def test_no_place_for_it(box, sources):
    """What fails after it has its number leaves nothing, and the number is the next one's."""
    place = box.state + "/models/new"
    open(place, "w").close()
    reply = box.put("new", tar_of(sources / "ddpm"))
    assert (reply.status, reply.code) == (500, "io") and box.d.model("new")["state"] == "failed"
    assert not box.left()
    os.unlink(place)
    assert box.put("new", tar_of(sources / "ddpm")).headers["location"] == "/models/new@1"
    assert box.kept() == ["new@1"] and not box.left()


def test_uploads_together(box, sources):
    replies = together([lambda k=k: box.put("many", tar_of(sources / ("ddpm", "other")[k % 2])) for k in range(4)])
    assert [r.status for r in replies] == [201] * 4
    assert sorted(r.headers["location"] for r in replies) == ["/models/many@%d" % v for v in (1, 2, 3, 4)]
    assert box.versions("many") == [(1, True), (2, False), (3, False), (4, False)]


def test_without_state(sources):
    with serving(sources / "models") as daemon:
        client = daemon.client()
        assert client.ask("PUT", "/models/x", b"x", TAR).status == 422
        assert daemon.post("/models/plain/save", {"as": "x"}).status == 422
        assert daemon.ask("GET", "/models/plain/checkpoint").status == 422


# ---- what jobs make ----


def job_body(**more):
    with open(os.path.join(GOLDEN, "unet_ddpm", "config.json")) as f:
        config = json.load(f)
    return dict({"kind": "train", "name": "t", "dataset": "d", "model": config, "seed": 1, "steps": 4, "batch_size": 2,
                 "optimizer": {"kind": "adamw", "lr": 0.1}}, **more)


def wait_job(d, id, *states):
    end = time.monotonic() + PATIENCE
    while True:
        info = d.ask("GET", "/jobs/" + id).json()
        if info["state"] in states:
            return info
        assert info["state"] in ("queued", "running") and time.monotonic() < end, info
        time.sleep(0.02)


def test_publish(box):
    data = st_write({"images": ("U8", [8, 16, 16, 3], bytes(i * 31 % 251 for i in range(8 * 768)))})
    client = box.d.client()
    assert client.ask("PUT", "/datasets/d", data, {"Content-Type": "application/x-safetensors"}).status == 201
    reply = box.d.post("/jobs", job_body())
    assert reply.status == 201, reply.body
    assert b'"lr":0.1,' in reply.body and b"0.10000000000000001" not in reply.body
    id = reply.json()["id"]
    wait_job(box.d, id, "succeeded")
    assert b"0.10000000000000001" not in box.d.ask("GET", "/jobs/" + id).body
    reply = box.d.post("/jobs/%s/publish" % id, {"as": "trained"})
    assert reply.status == 200, reply.body
    assert reply.json()["published"] == "trained@1" and reply.headers["location"] == "/models/trained@1"
    first = box.d.result(model="trained", **ASK)
    assert first["model"] == "trained@1"
    assert box.d.post("/jobs/%s/publish" % id, {"as": "trained"}).json()["published"] == "trained@2"
    assert box.versions("trained") == [(1, False), (2, True)]  # published: live
    second = box.d.result(model="trained", **ASK)
    assert second["model"] == "trained@2" and second["images"][0]["sha256"] == first["images"][0]["sha256"]
    assert box.d.post("/jobs/%s/publish" % id, {"as": "No"}).json()["error"]["param"] == "as"
    assert box.d.post("/jobs/%s/publish" % id, {}).status == 400
    assert box.d.post("/jobs/none/publish", {"as": "x"}).status == 404

    running = box.d.post("/jobs", job_body(steps=100000)).json()["id"]
    end = time.monotonic() + PATIENCE
    while not box.d.ask("GET", "/jobs/" + running).json().get("step"):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert box.d.ask("DELETE", "/datasets/d").status == 409  # the job needs it
    reply = box.d.post("/jobs/%s/publish" % running, {"as": "trained"})
    assert reply.status == 200 and reply.json()["published"] == "trained@3", reply.body
    assert box.d.result(model="trained", **ASK)["model"] == "trained@3"
    assert box.d.post("/jobs/%s/cancel" % running, {}).status in (200, 202)
    wait_job(box.d, running, "cancelled")
    assert box.d.ask("DELETE", "/datasets/d").status == 200
    assert box.d.ask("GET", "/jobs/" + running).json()["dataset"].startswith("d@")
    assert not box.left()
