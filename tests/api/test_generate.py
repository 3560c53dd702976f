"""POST /generate: every field does what it says, the same request gives the same bytes, every refusal names its field."""
import math
import os
import random

import pytest

from serving import (GOLDEN, LABELS, copy_model, decoded, floats, npy_read, png_read, serving, sha256, st_read,
                     to_u8, together, write_json)

BASE = {"model": "tiny", "seed": 7, "steps": 6, "class_label": "b", "sampler": "ddim", "guidance": {"cfg": {"scale": 3}}}
SAMPLERS = ["ddpm", "ddim", "dpm++1", "dpm++2m", "dpm++3m", "dpm++2m_sde", "euler", "euler_ancestral", "heun", "unipc",
            "pndm", "lcm"]


def with_(**changes):
    return {k: v for k, v in dict(BASE, **changes).items() if v is not None}


# ---- the answer ----


def test_the_smallest_request(tmp_path):
    copy_model("pipe_ddpm", tmp_path, "only")
    with serving(tmp_path) as daemon:
        result = daemon.result()
        assert result["model"] == "only@1" and 0 <= result["seed"] < 2**32
        assert result["timing"]["steps"] == 50 and result["timing"]["row_steps"] == 50
        assert daemon.sha(seed=result["seed"]) == result["images"][0]["sha256"]
        assert daemon.ask("POST", "/generate").status == 200  # no body at all
        assert daemon.result()["seed"] != result["seed"]


def test_a_model_must_be_named_when_several_are_loaded(d):
    reply = d.generate(steps=1)
    assert reply.status == 400 and reply.code == "missing_field" and reply.json()["error"]["param"] == "model"


def test_json_answer(d):
    r = d.result(**with_(n=3))
    assert set(r) == {"id", "model", "numerics", "seed", "images", "timing"}
    assert r["model"] == "tiny@1" and r["numerics"] == d.model("tiny")["numerics"] and r["seed"] == 7
    assert [(i["index"], i["seed"], i["content_type"]) for i in r["images"]] == [(k, 7 + k, "image/png") for k in range(3)]
    assert len({i["sha256"] for i in r["images"]}) == 3
    t = r["timing"]
    assert t["steps"] == 6 and t["row_steps"] == 6 * 2 * 3 and t["batch_rows_mean"] >= 6
    assert t["device_ms"] > 0 and t["queue_ms"] >= 0 and t["encode_ms"] > 0 and t["decode_ms"] >= 0


def test_png_npy_and_safetensors_say_the_same(d):
    png = d.result(**with_(n=2))["images"]
    npy = d.result(**with_(n=2, output={"format": "npy"}))["images"]
    st = d.result(**with_(n=2, output={"format": "safetensors"}))["images"]
    for a, b, c in zip(png, npy, st):
        shape, raw = npy_read(decoded(b))
        assert shape == [1, 16, 16, 3] and b["content_type"] == "application/x-npy"
        dtype, shape, same = st_read(decoded(c))["images"]
        assert (dtype, shape) == ("F32", [1, 16, 16, 3]) and c["content_type"] == "application/x-safetensors"
        assert same == raw and a["sha256"] == b["sha256"] == c["sha256"] == sha256(raw)
        height, width, channels, pixels = png_read(decoded(a))
        assert (height, width, channels) == (16, 16, 3) and pixels == to_u8(floats(raw))


def test_bare_bodies(d):
    one = d.result(**with_())["images"][0]
    reply = d.generate({"Accept": "image/png"}, **with_())
    assert reply.headers["content-type"] == "image/png" and reply.body == decoded(one)
    assert reply.headers["x-model"] == "tiny@1" and reply.headers["x-seed"] == "7"
    assert reply.headers["x-numerics"] == d.model("tiny")["numerics"]
    shas = d.shas(**with_(n=3))
    reply = d.generate({"Accept": "application/x-npy"}, **with_(n=3))
    shape, raw = npy_read(reply.body)
    assert shape == [3, 16, 16, 3] and reply.headers["content-type"] == "application/x-npy"
    assert [sha256(raw[k * 3072:(k + 1) * 3072]) for k in range(3)] == shas
    reply = d.generate({"Accept": "application/x-safetensors"}, **with_(n=3, output={"format": "safetensors"}))
    assert st_read(reply.body)["images"] == ("F32", [3, 16, 16, 3], raw)


def test_a_grid_is_one_picture_of_all(d):
    singles = [png_read(decoded(i)) for i in d.result(**with_(n=4))["images"]]
    reply = d.result(**with_(n=4, output={"layout": "grid"}))
    assert len(reply["images"]) == 1 and reply["images"][0]["seed"] == 7
    height, width, channels, pixels = png_read(decoded(reply["images"][0]))
    assert (height, width, channels) == (32, 32, 3)
    for k, (h, w, c, one) in enumerate(singles):
        top, left = k // 2 * 16, k % 2 * 16
        for y in range(16):
            at = ((top + y) * 32 + left) * 3
            assert pixels[at:at + 48] == one[y * 48:(y + 1) * 48]
    assert d.generate({"Accept": "image/png"}, **with_(n=4, output={"layout": "grid"})).body == decoded(reply["images"][0])


@pytest.mark.parametrize("accept,fields", [
    ("image/png", {"n": 2}),
    ("image/png", {"output": {"format": "npy"}}),
    ("application/x-npy", {"output": {"format": "png"}}),
    ("application/x-safetensors", {"output": {"layout": "grid"}}),
    ("image/png", {"stream": True}),
    ("video/mp4", {}),
])
def test_accept_must_agree(d, accept, fields):
    reply = d.generate({"Accept": accept}, **with_(**fields))
    assert reply.status == 406 and reply.code == "not_acceptable"


# ---- the same bytes ----


def test_sample_k_of_a_request_can_be_had_alone(d):
    assert d.shas(**with_(n=4)) == [d.sha(**with_(seed=7 + k)) for k in range(4)]


def strangers(seed):
    """31 other requests: other samplers, lengths, guidance, labels, sizes, models."""
    rng = random.Random(seed)
    out = []
    for i in range(31):
        fields = {"model": "tiny", "seed": rng.randrange(2**32), "steps": rng.choice([4, 6, 11, 20]),
                  "sampler": rng.choice(SAMPLERS), "n": rng.choice([1, 1, 2, 3]), "class_label": rng.choice(LABELS),
                  "guidance": {"cfg": {"scale": rng.choice([1, 2, 5])}}}
        if i % 7 == 3:
            fields = {"model": "plain", "steps": 9, "seed": i}
        if i % 7 == 5:
            fields.update(height=8, width=8)
        if i % 11 == 4:
            fields["rng"] = "torch"
        out.append(fields)
    return out


def test_the_same_bytes_alone_and_among_strangers(models, d):
    cases = [with_(n=2, sampler=s, steps=8, temperature=None) for s in ("ddpm", "dpm++2m", "euler_ancestral")]
    alone = [d.shas(**c) for c in cases]
    for seed, position in ((1, 0), (2, 17), (3, 31)):
        requests = strangers(seed)
        requests[position:position] = cases
        results = together([lambda f=f: d.result(**f) for f in requests])
        found = [[i["sha256"] for i in r["images"]] for r in results[position:position + 3]]
        assert found == alone
        assert max(r["timing"]["batch_rows_mean"] for r in results) > 8  # they did share
    for args in (["--devices", "cpu:0"], ["--devices", "cpu:0,cpu:0"], ["--max-rows", "1"], ["--step-ms", "1"]):
        with serving(models, "--load", "tiny", *args) as other:
            assert together([lambda c=c: other.shas(**c) for c in cases]) == alone, args


def test_the_same_bytes_after_unloading_and_loading(d):
    before = d.shas(**with_(n=2))
    assert d.post("/models/tiny/unload?wait=true").status == 200
    assert d.model("tiny")["state"] == "available"
    assert d.shas(**with_(n=2)) == before  # the request loads it
    assert d.model("tiny")["state"] == "loaded"


def test_the_reference_pipeline(tmp_path):
    """diffusers' run with generator=[seed 1, seed 2], end to end."""
    with open(os.path.join(GOLDEN, "pipe_ddim_eta07_listgen", "trace.safetensors"), "rb") as f:
        trace = st_read(f.read())
    copy_model("pipe_ddim_eta07_listgen", tmp_path, "listgen")
    steps = sum(k.endswith("prev_sample") for k in trace)
    with serving(tmp_path) as daemon:
        got = daemon.values(seed=1, n=2, steps=steps, sampler="ddim", eta=0.7, rng="torch")
    want = floats(trace["images"][2])  # in [0, 1]
    assert len(got) == len(want)
    assert max(abs(min(max(g / 2 + 0.5, 0), 1) - w) for g, w in zip(got, want)) < 2e-5


# ---- every field has an effect ----


@pytest.mark.parametrize("changes", [
    {"seed": 8}, {"class_label": "c"}, {"class_label": 3}, {"class_label": None}, {"steps": 7}, {"eta": 0.5},
    {"eta": 1, "temperature": 0.5}, {"timesteps": [900, 500, 20], "steps": None}, {"guidance": None}, {"guidance": {"cfg": {"scale": 2}}},
    {"guidance": {"cfg": {"scale": 3, "interval": [0.3, 1]}}}, {"guidance": {"cfg": {"scale": 3, "rescale": 0.7}}},
    {"guidance": {"cfg": {"scale": 3, "schedule": "linear"}}}, {"guidance": {"cfg": {"scale": 3, "schedule": "cosine"}}},
    {"height": 8, "width": 8}, {"height": 24}, {"rng": "torch"}, {"scheduler": {"beta_schedule": "squaredcos_cap_v2"}},
    {"scheduler": {"timestep_spacing": "trailing"}}, {"scheduler": {"prediction_type": "v_prediction"}},
    {"scheduler": {"clip_sample": False}}, {"scheduler": {"thresholding": True, "sample_max_value": 3}}, {"model": "tiny@1", "seed": 9},
] + [{"sampler": s} for s in SAMPLERS if s != "ddim"], ids=lambda c: " ".join("%s=%s" % i for i in c.items()))
def test_a_field_changes_the_result(d, changes):
    reply = d.result(**with_(**changes))
    assert reply["images"][0]["sha256"] != d.sha(**with_())
    again = d.sha(**with_(**changes))
    assert reply["images"][0]["sha256"] == again


def test_names_and_numbers_of_labels(d):
    assert d.sha(**with_(class_label="b")) == d.sha(**with_(class_label=1))
    assert d.sha(**with_(class_label="ankle boot")) == d.sha(**with_(class_label=8))
    assert d.sha(**with_(class_label=9)) == d.sha(**with_(class_label=None))  # the null label
    several = d.shas(**with_(n=3, class_label=["c", 0, "a"]))
    assert several == [d.sha(**with_(seed=7 + k, class_label=label)) for k, label in enumerate(["c", "a", "a"])]


def test_guidance_of_one_runs_no_unconditional_rows(d):
    assert d.result(**with_(guidance={"cfg": {"scale": 1}}))["timing"]["row_steps"] == 6
    assert d.result(**with_())["timing"]["row_steps"] == 12
    half = d.result(**with_(guidance={"cfg": {"scale": 3, "interval": [0, 0.5]}}))
    assert half["timing"]["row_steps"] == 9


def test_sizes(d):
    for height, width in ((8, 8), (24, 16)):
        reply = d.generate({"Accept": "application/x-npy"}, **with_(height=height, width=width))
        assert npy_read(reply.body)[0] == [1, height, width, 3]
    reply = d.generate({"Accept": "application/x-npy"}, model="misc", class_label=0, steps=2)
    assert npy_read(reply.body)[0] == [1, 8, 16, 2]


def test_defaults_of_the_model_lie_under_the_request(tmp_path):
    path = copy_model("unet_adm", tmp_path, "tiny")
    write_json(path + "/denoised.json", {"labels": LABELS, "null_label": 9, "defaults": {
        "steps": 4, "sampler": "dpm++2m", "guidance": {"cfg": {"scale": 2, "rescale": 0.5}}}})
    with serving(tmp_path) as daemon:
        full = {"steps": 4, "sampler": "dpm++2m", "guidance": {"cfg": {"scale": 2, "rescale": 0.5}}}
        first = daemon.result(seed=1, class_label=0)
        assert first["timing"]["steps"] == 4 and first["timing"]["row_steps"] == 8
        assert first["images"][0]["sha256"] == daemon.sha(seed=1, class_label=0, **full)
        full["guidance"]["cfg"]["scale"] = 4
        assert daemon.sha(seed=1, class_label=0, guidance={"cfg": {"scale": 4}}) == daemon.sha(seed=1, class_label=0, **full)
        off = daemon.result(seed=1, class_label=0, guidance={"cfg": {"scale": 1}})  # over a default that shapes it: not refused
        assert off["timing"]["row_steps"] == 4
        assert daemon.model("tiny")["defaults"]["sampler"] == "dpm++2m"


# ---- refusals ----


@pytest.mark.parametrize("fields,status,code,param", [
    ({"model": "nobody"}, 404, "model_not_found", "model"),
    ({"model": "tiny@2"}, 404, "model_not_found", "model"),
    ({"steps": 0}, 400, "out_of_range", "steps"),
    ({"steps": 1001}, 400, "out_of_range", "steps"),
    ({"steps": "ten"}, 400, "wrong_type", "steps"),
    ({"n": 65}, 400, "out_of_range", "n"),
    ({"seed": -1}, 400, "out_of_range", "seed"),
    ({"seed": 2**53}, 400, "out_of_range", "seed"),
    ({"cfg": 3}, 400, "unknown_field", "cfg"),
    ({"image": "blob_1"}, 400, "not_supported", "image"),
    ({"task": "inpaint"}, 400, "not_supported", "task"),
    ({"class_label": "zebra"}, 400, "unknown_value", "class_label"),
    ({"class_label": 10}, 400, "out_of_range", "class_label"),
    ({"class_label": ["a", "b"]}, 400, None, "class_label"),
    ({"model": "plain", "class_label": 1, "guidance": None}, 422, "impossible", "class_label"),
    ({"model": "plain", "class_label": None}, 422, "impossible", "guidance.cfg.scale"),
    ({"model": "misc", "class_label": None, "guidance": None}, 422, "impossible", "class_label"),
    ({"model": "misc", "class_label": 0}, 422, "impossible", "guidance.cfg.scale"),
    ({"height": 12}, 422, "impossible", "height"),
    ({"width": 8}, 422, "impossible", "width"),
    ({"sampler": "magic"}, 400, "unknown_value", "sampler"),
    ({"sampler": "sde_ve"}, 400, "not_supported", "sampler"),
    ({"sampler": "euler", "eta": 0.5}, 422, "impossible", "eta"),
    ({"temperature": 0.5}, 422, "impossible", "temperature"),
    ({"timesteps": [3, 5], "steps": None}, 400, "out_of_range", "timesteps[1]"),
    ({"scheduler": {"nonsense": 1}}, 400, "unknown_field", "scheduler.nonsense"),
    ({"scheduler": {"beta_start": "x"}}, 400, None, "scheduler.beta_start"),
    ({"guidance": {"cfg": {"scale": 3, "interval": [0.5, 0.2]}}}, 400, None, "guidance.cfg.interval"),
    ({"guidance": {"cfg": {"scale": 1, "rescale": 0.7}}}, 422, "impossible", "guidance.cfg.rescale"),
    ({"guidance": {"cfg": {"scale": 1, "schedule": "linear"}}}, 422, "impossible", "guidance.cfg.schedule"),
    ({"guidance": {"cfg": {"scale": 1, "interval": [0.3, 1]}}}, 422, "impossible", "guidance.cfg.interval"),
    ({"guidance": {"auto": {"model": "plain"}}}, 400, "not_supported", "guidance.auto"),
    ({"output": {"format": "apng"}}, 400, "not_supported", "output.format"),
    ({"priority": "urgent"}, 400, "unknown_value", "priority"),
    ({"deadline_ms": 0}, 400, "out_of_range", "deadline_ms"),
], ids=lambda v: str(v)[:50] if isinstance(v, dict) else None)
def test_refusals(d, fields, status, code, param):
    reply = d.generate(**with_(**fields))
    error = reply.json()["error"]
    assert (reply.status, error["param"]) == (status, param), reply.body
    assert code in (None, error["code"]) and error["message"]


def test_learned_variance_reaches_the_noise(d):
    base = {"model": "misc", "class_label": 1, "seed": 3, "steps": 5, "sampler": "ddpm"}
    learned = d.values(scheduler={"variance_type": "learned_range"}, **base)
    assert learned != d.values(scheduler={"variance_type": "fixed_small"}, **base)
    assert all(math.isfinite(v) for v in learned)


def test_a_non_finite_request_fails_alone(d):
    alone = d.shas(**with_(n=2, steps=20))
    results = together([lambda: d.generate(**with_(n=2, steps=20))] + [lambda: d.generate(model="spoilt", steps=20, n=2)] * 3)
    assert [i["sha256"] for i in results[0].json()["images"]] == alone
    for bad in results[1:]:
        assert bad.status == 500 and bad.code == "non_finite" and "sample 0" in bad.json()["error"]["message"]
    assert d.memory()["slots"] == 0
