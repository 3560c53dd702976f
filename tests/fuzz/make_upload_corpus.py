"""Makes the seeds of fuzz_upload, fuzz_multipart and fuzz_checkpoint: python3 make_upload_corpus.py corpus"""
import gzip
import io
import json
import os
import random
import struct
import sys
import tarfile
import zipfile
import zlib

root = sys.argv[1]
CONFIG = {"_class_name": "UNet2DModel", "sample_size": 4, "in_channels": 1, "out_channels": 1, "block_out_channels": [4],
          "layers_per_block": 1, "norm_num_groups": 2, "attention_head_dim": 4, "down_block_types": ["DownBlock2D"],
          "up_block_types": ["UpBlock2D"]}
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 10, "beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.2}
INDEX = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}


def write(kind, name, data):
    os.makedirs(os.path.join(root, kind), exist_ok=True)
    with open(os.path.join(root, kind, name), "wb") as f:
        f.write(data)


# ---- models ----


def resnet(name, c_in, c):
    shapes = {"norm1.weight": [c_in], "norm1.bias": [c_in], "conv1.weight": [c, c_in, 3, 3], "conv1.bias": [c],
              "time_emb_proj.weight": [c, 4 * c], "time_emb_proj.bias": [c], "norm2.weight": [c], "norm2.bias": [c],
              "conv2.weight": [c, c, 3, 3], "conv2.bias": [c]}
    if c_in != c:
        shapes.update({"conv_shortcut.weight": [c, c_in, 1, 1], "conv_shortcut.bias": [c]})
    return {name + "." + k: v for k, v in shapes.items()}


def shapes_of(c=4):
    shapes = {"conv_in.weight": [c, 1, 3, 3], "conv_in.bias": [c], "time_embedding.linear_1.weight": [4 * c, c],
              "time_embedding.linear_1.bias": [4 * c], "time_embedding.linear_2.weight": [4 * c, 4 * c], "time_embedding.linear_2.bias": [4 * c]}
    shapes.update(resnet("down_blocks.0.resnets.0", c, c))
    for k in range(2):
        shapes.update(resnet("mid_block.resnets.%d" % k, c, c))
        shapes.update(resnet("up_blocks.0.resnets.%d" % k, 2 * c, c))
    attention = "mid_block.attentions.0."
    shapes.update({attention + "group_norm." + k: [c] for k in ("weight", "bias")})
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes.update({attention + part + ".weight": [c, c], attention + part + ".bias": [c]})
    shapes.update({"conv_norm_out.weight": [c], "conv_norm_out.bias": [c], "conv_out.weight": [1, c, 3, 3], "conv_out.bias": [1]})
    return shapes


def weights(value=None, drop="", dtype="F16"):
    rng, head, body = random.Random(1), {}, b""
    for name, shape in sorted(shapes_of().items()):
        if name == drop:
            continue
        n = 1
        for d in shape:
            n *= d
        data = struct.pack("<%d%s" % (n, "e" if dtype == "F16" else "f"), *[rng.uniform(-1, 1) if value is None else value for _ in range(n)])
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as t:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    end = out.getvalue().rstrip(b"\0")
    return end + bytes(-len(end) % 512 + 1024)


def text(value):
    return json.dumps(value, separators=(",", ":")).encode()


WEIGHTS = "diffusion_pytorch_model.safetensors"
whole = {"model_index.json": text(INDEX), "scheduler/scheduler_config.json": text(SCHEDULER), "unet/config.json": text(CONFIG),
         "unet/" + WEIGHTS: weights()}
flat = {"m/config.json": text(CONFIG), "m/denoised.json": text({"range": [0, 1], "sizes": [[8, 8]]}), "m/" + WEIGHTS: weights(0.5)}
write("upload", "pipeline.tar", tar(whole))
write("upload", "flat.tar.gz", gzip.compress(tar(flat), mtime=0))
write("upload", "bare.safetensors", weights(0.25))
write("upload", "nan.tar.gz", gzip.compress(tar(dict(flat, **{"m/" + WEIGHTS: weights(float("nan"))})), mtime=0))
write("upload", "lacks.safetensors", weights(drop="conv_out.bias"))
write("upload", "no-config.tar.gz", gzip.compress(tar({k: v for k, v in whole.items() if k != "unet/config.json"}), mtime=0))
huge = dict(CONFIG, sample_size=128, block_out_channels=[65536] * 8, down_block_types=["AttnDownBlock2D"] * 8, up_block_types=["AttnUpBlock2D"] * 8)
write("upload", "huge.tar.gz", gzip.compress(tar(dict(whole, **{"unet/config.json": text(huge)})), mtime=0))
out = io.BytesIO()
with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as z:
    for name, data in flat.items():
        z.writestr(zipfile.ZipInfo(name), data)
write("upload", "flat.zip", out.getvalue())

# ---- checkpoints ----


def checkpoint(header, tail=b""):
    data = header if isinstance(header, bytes) else text(header)
    return b"DNTRAIN1" + struct.pack("<II", len(data), zlib.crc32(data)) + data + tail


def edit(*edits):
    """(where, 0 cut, 1 set, 2 flip, 3 add or 4 insert, value); a negative place is from the end."""
    return b"".join(struct.pack("<HBB", (-1 - at) | 0x8000 if at < 0 else at, do, value) for at, do, value in edits)


write("checkpoint", "good", b"")
write("checkpoint", "empty-header", checkpoint(b"{}"))
write("checkpoint", "version", checkpoint({"version": 2, "job": {}}))
write("checkpoint", "job", checkpoint({"version": 1, "job": {"model": "x"}, "count": 1, "blocks": 4}))
write("checkpoint", "magic", b"DNTRAIN1")
write("checkpoint", "long", b"DNTRAIN1" + struct.pack("<II", 0xffffffff, 0))
write("checkpoint", "cut", edit((-9, 0, 0)))
write("checkpoint", "cut-head", edit((100, 0, 0)))
write("checkpoint", "checksum", edit((-1, 2, 1)))
write("checkpoint", "frame", edit((-40, 2, 255), (-400, 1, 0)))
write("checkpoint", "step", edit(*[(347, 4, ord(c)) for c in "9" * 17 + "5"]))  # of counters, in the header as it is today
write("checkpoint", "length", edit((8, 3, 1)))

# ---- multipart bodies, with the boundary B ----


def part(data, *headers):
    return b"--B\r\n" + "".join(h + "\r\n" for h in headers).encode() + b"\r\n" + data + b"\r\n"


def file(name):
    return 'Content-Disposition: form-data; name="f"; filename="%s"' % name


write("multipart", "one", part(b"bytes", file("a.npy"), "Content-Type: application/octet-stream") + b"--B--\r\n")
write("multipart", "two", part(b"", file("a")) + part(b"\r\n--Bytes\r\n--", file('b;\\"c'), "content-transfer-encoding: binary") + b"--B--")
write("multipart", "preamble", b"for nobody\r\n" + part(b"x", file("d/e")) + b"--B  \r\n" + part(b"y", file("f"))[5:] + b"--B--\r\nend")
write("multipart", "field", part(b"v", 'Content-Disposition: form-data; name="k"') + b"--B--")
write("multipart", "cut", part(b"bytes", file("a"))[:-3])
write("multipart", "coded", part(b"x", file("a"), "Content-Transfer-Encoding: base64") + b"--B--")
write("multipart", "bare", part(b"x") + b"--B--")
write("multipart", "long", part(b"x", file("n" * 101)) + b"--B--")
