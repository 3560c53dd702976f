"""POST /denoise: one evaluation of rows that the caller brings."""
import os
import random

import pytest

from serving import GOLDEN, f32, floats, i64, st_read, st_write, together

XST = {"Content-Type": "application/x-safetensors"}


def golden(name):
    with open(os.path.join(GOLDEN, name, "io.safetensors"), "rb") as f:
        return st_read(f.read())


def nhwc(tensor):
    """The reference's NCHW as our NHWC."""
    _, (n, c, h, w), raw = tensor
    v = floats(raw)
    return [n, h, w, c], [v[((i * c + k) * h + y) * w + x] for i in range(n) for y in range(h) for x in range(w)
                          for k in range(c)]


def rows(name):
    io = golden(name)
    shape, sample = nhwc(io["sample"])
    tensors = {"sample": f32(shape, sample), "timestep": io["timestep"]}
    if "class_labels" in io:
        tensors["class_labels"] = io["class_labels"]
    return tensors, nhwc(io["output"])


def output(reply):
    assert reply.status == 200, reply.body
    dtype, shape, raw = st_read(reply.body)["output"]
    assert dtype == "F32"
    return shape, floats(raw)


@pytest.mark.parametrize("golden_name,model", [("unet_adm", "tiny"), ("unet_ddpm", "plain"), ("unet_misc", "misc")])
def test_it_is_the_network(d, golden_name, model):
    """The reference's own forward, all output channels."""
    tensors, (shape, want) = rows(golden_name)
    if golden_name == "unet_ddpm" and model == "plain":
        pass  # the pipeline has the same weights
    reply = d.denoise(model, **tensors)
    got_shape, got = output(reply)
    assert got_shape == shape
    top = max(abs(v) for v in want)
    assert max(abs(a - b) for a, b in zip(got, want)) < 3e-5 * top
    assert reply.headers["content-type"] == "application/x-safetensors" and reply.headers["x-model"] == model + "@1"


def slice_rows(tensors, k):
    out = {}
    for name, (dtype, shape, raw) in tensors.items():
        each = len(raw) // shape[0]
        out[name] = (dtype, [1] + list(shape[1:]), raw[k * each:(k + 1) * each])
    return out


def test_a_row_has_the_same_bytes_in_any_company(d):
    tensors, _ = rows("unet_adm")
    _, all_rows = output(d.denoise("tiny", **tensors))
    each = len(all_rows) // 3
    work = [lambda k=k: output(d.denoise("tiny", **slice_rows(tensors, k)))[1] for k in range(3)]
    work += [lambda s=s: d.result(model="tiny", seed=s, steps=20, class_label=s % 9) for s in range(12)]
    for k, row in enumerate(together(work)[:3]):
        assert row == all_rows[k * each:(k + 1) * each]


def test_guidance_is_linear_in_the_two_evaluations(d):
    rng = random.Random(1)
    x = f32([2, 16, 16, 3], [rng.gauss(0, 1) for _ in range(1536)])
    t = f32([2], [500, 20.5])
    _, cond = output(d.denoise("tiny", sample=x, timestep=t, class_labels=i64([2], [1, 2])))
    _, uncond = output(d.denoise("tiny", sample=x, timestep=t))  # the null label
    _, guided = output(d.denoise("tiny", sample=x, timestep=t, class_labels=i64([2], [1, 2]),
                                 guidance_scale=f32([2], [3, 1])))
    for i, (c, u, g) in enumerate(zip(cond, uncond, guided)):
        w = 3 if i < 768 else 1
        assert abs(u + w * (c - u) - g) < 1e-5
    assert list(guided[768:]) == list(cond[768:])


X = f32([1, 16, 16, 3], [0.5] * 768)
T = f32([1], [10])


@pytest.mark.parametrize("model,tensors,status,code,param", [
    ("tiny", {"timestep": T}, 400, "missing_field", "sample"),
    ("tiny", {"sample": X}, 400, "missing_field", "timestep"),
    ("tiny", {"sample": X, "timestep": T, "cotangent": X}, 400, "not_supported", "cotangent"),
    ("tiny", {"sample": X, "timestep": T, "noise": X}, 400, "unknown_field", "noise"),
    ("tiny", {"sample": X, "timestep": i64([1], [10])}, 400, "wrong_type", "timestep"),
    ("tiny", {"sample": X, "timestep": f32([2], [1, 2])}, 400, "contradiction", "timestep"),
    ("tiny", {"sample": X, "timestep": f32([1], [float("nan")])}, 400, "out_of_range", "timestep"),
    ("tiny", {"sample": f32([1, 16, 16, 3], [float("inf")] * 768), "timestep": T}, 400, "out_of_range", "sample"),
    ("tiny", {"sample": f32([1, 16, 16, 2], [0] * 512), "timestep": T}, 422, "impossible", "sample"),
    ("tiny", {"sample": f32([1, 12, 16, 3], [0] * 576), "timestep": T}, 422, "impossible", "height"),
    ("tiny", {"sample": f32([0, 16, 16, 3], []), "timestep": f32([0], [])}, 400, "out_of_range", "sample"),
    ("tiny", {"sample": f32([65, 1, 1, 1], [0] * 65), "timestep": f32([65], [0] * 65)}, 400, "out_of_range", "sample"),
    ("tiny", {"sample": X, "timestep": T, "class_labels": i64([1], [10])}, 400, "out_of_range", "class_label"),
    ("tiny", {"sample": X, "timestep": T, "class_labels": f32([1, 4], [0] * 4)}, 422, "impossible", "class_labels"),
    ("plain", {"sample": X, "timestep": T, "class_labels": i64([1], [0])}, 422, "impossible", "class_label"),
    ("plain", {"sample": X, "timestep": T, "guidance_scale": f32([1], [2])}, 422, "impossible", "guidance_scale"),
    ("misc", {"sample": f32([1, 8, 16, 2], [0] * 256), "timestep": T}, 422, "impossible", "class_labels"),
    ("nobody", {"sample": X, "timestep": T}, 404, "model_not_found", "model"),
])
def test_refusals(d, model, tensors, status, code, param):
    reply = d.denoise(model, **tensors)
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (status, code, param), reply.body


def test_bytes_that_are_no_safetensors(d):
    for body in (b"", b"{}", b"\xff" * 100, st_write({"sample": X})[:60]):
        reply = d.post("/denoise?model=tiny", body, XST)
        assert reply.status in (400, 411), reply.body
    assert d.post("/denoise?model=tiny", st_write({"sample": X}), {"Content-Type": "application/json"}).status == 415
    assert d.post("/denoise?module=tiny", st_write({"sample": X}), XST).code == "unknown_field"


def test_a_non_finite_row_is_reported(d):
    reply = d.denoise("spoilt", sample=X, timestep=T)
    assert reply.status == 500 and reply.code == "non_finite"
