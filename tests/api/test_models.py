"""/models and /status: states, loading on demand, eviction, failures, several devices."""
import json
import os
import shutil
import struct
import subprocess
import threading
import time

from conftest import environment
from serving import BINARY, LABELS, PATIENCE, SANITIZED, copy_model, serving, together

BASE = {"seed": 7, "steps": 6, "class_label": "b", "sampler": "ddim"}
TINY = dict(BASE, model="tiny")
PLAIN = {"model": "plain", "seed": 3, "steps": 4}
LONG = {"model": "tiny", "seed": 1, "steps": 1000, "n": 32, "class_label": 0, "sampler": "ddim"}


def states(d):
    return {m["name"]: m["state"] for m in d.ask("GET", "/models").json()["models"]}


def wait_running(d, n=1):
    end = time.monotonic() + PATIENCE
    while d.ask("GET", "/status").json()["running"] < n:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_model_is_described(models):
    with serving(models) as d:
        assert states(d) == dict.fromkeys(["misc", "plain", "spoilt", "tiny"], "loaded")
        m = d.model("tiny")
        assert (m["architecture"], m["height"], m["width"], m["channels"]) == ("UNet2DModel", 16, 16, 3)
        assert m["n_classes"] == 10 and m["labels"] == LABELS and m["parameters"] == 209587
        assert m["sizes"] == [{"height": 8, "width": 8}, {"height": 24, "width": 16}]
        assert m["ms_per_row"] > 0 and m["bytes"] >= 4 * m["parameters"]
        version = m["versions"][0]
        assert version["version"] == 1 and version["live"] and len(version["hash"]) == 64
        assert version["hash"][:16] in m["numerics"]
        assert d.model("plain")["pipeline"] == "DDPMPipeline" and d.model("plain")["sampler"] == "ddpm"
        assert d.model("tiny@1") == m
        for name in ("nobody", "tiny@2", "tiny@"):
            reply = d.ask("GET", "/models/" + name)
            assert reply.status == 404 and reply.code == "model_not_found"


def test_load_and_unload(models):
    with serving(models, "--load", "none") as d:
        assert set(states(d).values()) == {"available"}
        assert "ms_per_row" not in d.model("tiny")
        reply = d.post("/models/tiny/load")
        assert reply.status == 202 and reply.headers["location"] == "/models/tiny" and reply.json()["state"] == "loading"
        d.wait_model("tiny", "loaded")
        assert d.post("/models/tiny/load").status == 200  # it is
        reply = d.post("/models/plain/load?wait=true")
        assert reply.status == 200 and reply.json()["state"] == "loaded"
        assert d.metrics()['denoised_model_loaded{model="plain",version="1"}'] == 1
        assert d.post("/models/plain/unload?wait=true").json()["state"] == "available"
        assert d.metrics()['denoised_model_loaded{model="plain",version="1"}'] == 0
        assert d.post("/models/plain/unload").status == 200
        assert d.post("/models/plain/load?patience=1").code == "unknown_field"
        assert d.post("/models/nobody/load").code == "model_not_found"
        memory = d.memory()
        assert memory["weights"] > 0 and memory["forms"] > 0 and memory["arenas"] > 0
        d.post("/models/tiny/unload?wait=true")
        assert all(v == 0 for k, v in d.memory().items() if k != "limit")


def test_the_start_set(models):
    with serving(models, "--load", "misc,plain") as d:
        assert states(d) == {"misc": "loaded", "plain": "loaded", "spoilt": "available", "tiny": "available"}


def test_a_start_set_that_is_unknown_stops_the_start(models, start_fails, monkeypatch):
    monkeypatch.setenv("DENOISED_BIN", os.environ["DENOISED_REAL_BIN"])
    assert "no model nobody" in start_fails("--models", models, "--load", "nobody")
    assert "/nowhere" in start_fails("--models", "/nowhere")
    assert "cpu:999" in start_fails("--models", models, "--devices", "cpu:999")


def test_a_request_loads_its_model(models):
    with serving(models, "--load", "none") as d:
        results = together([lambda: d.shas(**TINY), lambda: d.shas(**TINY), lambda: d.shas(**PLAIN),
                            lambda: d.shas(**dict(TINY, height=8, width=8))])
        assert results[0] == results[1] and len({r[0] for r in results}) == 3
        assert states(d)["tiny"] == states(d)["plain"] == "loaded"
        id = d.submit(model="misc", class_label=0, steps=2)  # accepted before it is there
        assert d.wait_state(id, "succeeded")["model"] == "misc@1"
        assert d.generate(model="misc", class_label=99).status == 400


def test_a_request_that_waits_for_its_model_can_be_cancelled(models):
    with serving(models, "--load", "none") as d:
        id = d.submit(model="tiny", class_label=0, steps=500, n=8)
        info = d.ask("DELETE", "/requests/" + id).json()
        assert info["state"] == "cancelled"
        d.wait_model("tiny", "loaded")
        assert d.memory()["slots"] == 0 and d.post("/models/tiny/unload?wait=true").status == 200


def test_unloading_lets_admitted_requests_finish(models):
    with serving(models) as d:
        expected = d.shas(**dict(TINY, steps=100, n=2))
        id = d.submit(**dict(TINY, steps=100, n=2))
        wait_running(d)
        assert d.post("/models/tiny/unload").json()["state"] == "unloading"
        reply = d.generate(**TINY)
        assert reply.status == 409 and reply.code == "conflict"
        assert d.post("/models/tiny/load").code == "conflict"
        assert [i["sha256"] for i in d.wait_state(id, "succeeded")["images"]] == expected
        d.wait_model("tiny", "available")


def test_unloading_by_force_cancels(models):
    with serving(models) as d:
        ids = [d.submit(**LONG), d.submit(**LONG)]
        other = d.submit(**dict(PLAIN, steps=200))
        wait_running(d, 3)
        assert d.post("/models/tiny/unload?force=true&wait=true").json()["state"] == "available"
        assert [d.info(id)["state"] for id in ids] == ["cancelled"] * 2
        assert d.wait_state(other, "succeeded")


def test_loading_and_unloading_under_load(models):
    """Others run on, with the same bytes, while a model comes and goes."""
    with serving(models) as d:
        expected = d.shas(**dict(TINY, n=2))
        done = threading.Event()

        def churn():
            try:
                for _ in range(5):
                    assert d.post("/models/plain/unload?wait=true").status == 200
                    assert d.post("/models/plain/load?wait=true").status == 200
            finally:
                done.set()

        def traffic():
            shas = [d.shas(**dict(TINY, n=2))]
            while not done.is_set():
                shas.append(d.shas(**dict(TINY, n=2)))
            return shas

        shas = together([churn, traffic, traffic])[1:]
        assert all(s == expected for one in shas for s in one)


def test_nothing_grows_by_loading_and_unloading(models):
    with serving(models, "--load", "none") as d:

        def cycle(n):
            for _ in range(n):
                assert d.post("/models/tiny/load?wait=true").status == 200
                assert d.post("/models/tiny/unload?wait=true").status == 200

        cycle(20)
        before, files = d.rss_kb(), d.fds()
        cycle(40)
        assert (SANITIZED or d.rss_kb() - before < 1024) and d.fds() <= files + 2


def held(memory):
    return sum(v for k, v in memory.items() if k != "limit")


def test_what_fits_exactly_is_loaded(models):
    """A model's weights, forms and arena are known before it is read: no byte more is asked for."""
    with serving(models, "--load", "tiny") as d:
        alone = held(d.memory())
    with serving(models, "--load", "none", "--memory", str(alone)) as d:
        assert d.post("/models/tiny/load?wait=true").json()["state"] == "loaded" and held(d.memory()) == alone
    with serving(models, "--load", "none", "--memory", str(alone - 1)) as d:
        reply = d.post("/models/tiny/load?wait=true")
        assert reply.status == 503 and reply.code == "memory" and "%d bytes" % alone in reply.json()["error"]["message"]
        assert held(d.memory()) == 0


def test_a_device_gives_its_arena_back(models):
    def device_bytes(d):
        return d.ask("GET", "/status").json()["devices"][0]["bytes"]

    with serving(models, "--load", "none") as d:
        sizes = []
        for _ in range(2):
            d.result(**TINY)
            d.result(**PLAIN)
            sizes.append(device_bytes(d))
            arenas = d.memory()["arenas"]
            assert sizes[-1] >= arenas > 0
            for name in ("tiny", "plain"):
                assert d.post("/models/%s/unload?wait=true" % name).status == 200
            assert device_bytes(d) <= sizes[-1] - arenas and d.memory()["arenas"] == 0
        assert sizes[0] == sizes[1]


def test_eviction(models):
    """Room for two: the one that was used longest ago goes, never one that is in use."""
    with serving(models, "--load", "plain,spoilt,tiny") as d:
        three = held(d.memory())
    with serving(models, "--load", "none", "--memory", str(three - 1)) as d:
        d.result(**PLAIN)
        d.result(**TINY)
        d.result(**PLAIN)  # tiny is the older one now
        d.generate(**dict(PLAIN, model="spoilt"))
        now = states(d)
        assert now["plain"] == "loaded" and now["spoilt"] == "loaded" and now["tiny"] != "loaded"
        memory = d.memory()
        assert held(memory) <= memory["limit"]
        ids = [d.submit(**dict(PLAIN, steps=1000, n=16)),
               d.submit(**dict(PLAIN, model="misc", class_label=0, steps=1000, n=16))]
        wait_running(d, 2)
        assert states(d)["plain"] == "loaded"
        assert d.shas(**TINY)  # evicts spoilt, which is idle
        assert states(d)["spoilt"] == "available" and states(d)["plain"] == states(d)["tiny"] == "loaded"
        for id in ids:
            d.ask("DELETE", "/requests/" + id)


def test_what_found_no_room_is_tried_again(models):
    """A model in use keeps another out; when it is idle, the next request has it evicted."""
    with serving(models, "--load", "tiny") as d:
        alone = held(d.memory())
    with serving(models, "--load", "tiny", "--memory", str(alone + (1 << 20))) as d:
        id = d.submit(**dict(LONG, n=8))
        wait_running(d)
        reply = d.generate(**PLAIN)
        assert reply.status == 503 and reply.code == "memory", reply.body
        d.ask("DELETE", "/requests/" + id)
        assert d.result(**PLAIN)["model"] == "plain@1"


def test_waiting_for_a_model_is_bounded(models):
    """`plain` waits for the room of `tiny`, which is unloading and still at work."""
    with serving(models, "--load", "tiny") as d:
        alone = held(d.memory())
    with serving(models, "--load", "tiny", "--memory", str(alone + (2 << 20))) as d:
        ids = [d.submit(**dict(LONG, n=8, guidance={"cfg": {"scale": 2}})) for _ in range(3)]
        assert d.post("/models/tiny/unload").json()["state"] == "unloading"
        reply = d.generate(**dict(PLAIN, deadline_ms=100))  # before the model has come
        assert reply.status == 429 and reply.code == "deadline", reply.body
        client = d.client(PATIENCE)
        waiting = []
        while len(waiting) < 2000:
            reply = client.ask("POST", "/generate", PLAIN, {"Prefer": "respond-async"})
            if reply.status != 202:
                break
            waiting.append(reply.json()["id"])
        assert reply.status == 429 and reply.code == "queue_full" and int(reply.headers["retry-after"]) >= 1
        assert len(waiting) == 512 and states(d)["tiny"] == "unloading"
        for id in ids:
            d.ask("DELETE", "/requests/" + id)
        assert d.wait_state(waiting[0], "succeeded")["model"] == "plain@1"


def test_what_does_not_fit(models):
    with serving(models, "--memory", "2M") as d:
        assert "loaded" not in states(d).values() or states(d)["misc"] == "loaded"  # those that fit
        reply = d.generate(**TINY)
        assert reply.status == 503 and reply.code == "memory"
        assert d.post("/models/tiny/load?wait=true").status in (500, 503)
        assert d.ask("GET", "/readyz").status == 200


def damage(path, kind):
    """Ways in which a model lies."""
    weights = path + "/unet/diffusion_pytorch_model.safetensors"
    if kind == "truncated":
        os.truncate(weights, os.path.getsize(weights) // 2)
    elif kind == "pointer":
        with open(weights, "w") as f:
            f.write("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    elif kind == "header":
        with open(weights, "r+b") as f:
            f.write(struct.pack("<Q", 1 << 60))
    elif kind == "missing":
        os.remove(weights)
    elif kind == "config":
        with open(path + "/unet/config.json", "w") as f:
            f.write("{")
    elif kind == "misshapen":
        with open(path + "/unet/config.json") as f:
            config = json.load(f)
        config["block_out_channels"] = [24, 32]
        with open(path + "/unet/config.json", "w") as f:
            json.dump(config, f)


KINDS = ["truncated", "pointer", "header", "missing", "config", "misshapen"]


def test_models_that_lie_fail_alone(tmp_path):
    copy_model("pipe_ddpm", tmp_path, "good")
    for kind in KINDS:
        damage(copy_model("pipe_ddpm", tmp_path, kind), kind)
    (tmp_path / "empty").mkdir()
    (tmp_path / "Not A Name").mkdir()
    with serving(tmp_path) as d:
        assert states(d) == dict.fromkeys(KINDS, "failed") | {"good": "loaded"}
        for kind in KINDS:
            error = d.model(kind)["error"]
            assert error
            reply = d.generate(model=kind, steps=1)
            assert reply.status == 500 and reply.code == "model_failed" and error in reply.json()["error"]["message"]
        assert "git-lfs" in d.model("pointer")["error"]
        assert d.result(model="good", steps=2) and d.ask("GET", "/readyz").status == 200
        assert d.result(steps=2)["model"] == "good@1"  # the only one loaded
        # mended, it can be loaded
        shutil.rmtree(tmp_path / "missing")
        copy_model("pipe_ddpm", tmp_path, "missing")
        assert d.post("/models/missing/load?wait=true").json()["state"] == "loaded"


def test_several_devices_share_the_work(models):
    with serving(models, "--load", "tiny") as d:
        expected = d.shas(**dict(TINY, n=4, steps=10))
    with serving(models, "--load", "tiny", "--devices", "cpu:0,cpu:0") as d:
        results = together([lambda: d.shas(**dict(TINY, n=4, steps=10)) for _ in range(12)])
        assert all(r == expected for r in results)
        devices = d.ask("GET", "/status").json()["devices"]
        assert [x["name"] for x in devices] == ["cpu:0", "cpu:0"] and all(x["row_steps"] >= 40 for x in devices)
        assert d.post("/models/tiny/unload?wait=true").json()["state"] == "available"


def test_status(models):
    with serving(models, "--load", "tiny") as d:
        status = d.ask("GET", "/status").json()
        assert status["running"] == status["waiting"] == status["queue_ms"] == 0 and not status["draining"]
        assert status["devices"][0]["rows"] == 0 and status["devices"][0]["model"] is None
        ids = [d.submit(**dict(LONG, n=3)), d.submit(**dict(LONG, n=5))]
        wait_running(d, 2)
        end = time.monotonic() + PATIENCE
        while len(d.ask("GET", "/status").json()["devices"][0]["shares"]) < 2:
            assert time.monotonic() < end
        status = d.ask("GET", "/status").json()
        device = status["devices"][0]
        assert device["model"] == "tiny" and device["rows"] == 8 and device["step_ms"] > 0 and device["bytes"] > 0
        assert {s["id"]: s["rows"] for s in device["shares"]} == {ids[0]: 3, ids[1]: 5}
        assert [r["id"] for r in status["requests"]] == ids and status["running"] == 2 and status["queue_ms"] > 0
        assert status["memory"]["slots"] > 0 and status["memory"]["results"] > 0
        seen = d.events(path="/status")
        first = last = next(seen)
        while last[2]["devices"][0]["steps"] == first[2]["devices"][0]["steps"]:  # a step may last longer than a pause
            event = next(seen)
            assert event[1] == "status" and event[0] > last[0] and time.monotonic() < end
            last = event
        assert last[2]["devices"][0]["steps"] > first[2]["devices"][0]["steps"]
        seen.close()
        for id in ids:
            d.ask("DELETE", "/requests/" + id)
        status = d.ask("GET", "/status").json()
        assert status["running"] == 0 and abs(status["queue_ms"]) < 1e-6 and status["requests"] == []


def test_metrics_add_up(models):
    with serving(models, "--load", "tiny") as d:
        for n in (1, 2, 3):
            d.result(**dict(TINY, n=n, steps=5, guidance={"cfg": {"scale": 2}}))
        d.generate(**dict(TINY, steps=0))
        m = d.metrics()
        assert m["denoised_row_steps_total"] == 6 * 5 * 2 and m["denoised_images_total"] == 6
        assert m["denoised_batch_rows_count"] == m["denoised_steps_total"] == 15 and m["denoised_batch_rows_sum"] == 60
        assert m["denoised_request_duration_seconds_count"] == m["denoised_request_queue_seconds_count"] == 3
        assert m["denoised_encode_seconds_count"] == m["denoised_decode_seconds_count"] == 6
        assert m['denoised_device_seconds_total{kind="infer"}'] > 0
        assert m['denoised_requests_failed_total{model="none",reason="rejected"}'] == 1
        assert m["denoised_requests_running"] == m["denoised_requests_waiting"] == 0
        assert m['denoised_memory_bytes{kind="weights"}'] == d.memory()["weights"]


def test_endpoints_of_later_versions_say_so(models):
    with serving(models, "--load", "none") as d:
        for method, path in (("POST", "/blobs"), ("GET", "/usage"), ("GET", "/v1/models")):
            reply = d.ask(method, path)
            assert reply.status == 501 and reply.code == "not_implemented", (method, path, reply.body)


def test_check_reads_every_model(tmp_path):
    def check():
        return subprocess.run([BINARY, "--check", "--models", str(tmp_path)], env=environment(), capture_output=True, text=True,
                              timeout=PATIENCE)

    copy_model("pipe_ddpm", tmp_path, "good")
    assert (check().returncode, check().stdout) == (0, "ok\n")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text('{"_class_name":"Nothing"}')
    done = check()
    assert done.returncode == 1 and "model bad" in done.stderr and "Nothing" in done.stderr
