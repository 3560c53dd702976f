"""The real daemon with small models, for the tests of /generate, /denoise, /models and /requests.

`tiny` is a class-conditional network of 16x16x3 with a null label, names and further sizes, `plain` an unconditional
DDPM pipeline, `misc` one of odd shape with learned variance, `spoilt` plain with NaN in its weights."""
import array
import base64
import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import struct
import time
import zlib

from conftest import Daemon

GOLDEN = os.environ["DENOISED_GOLDEN"]
BINARY = os.environ["DENOISED_REAL_BIN"]
with open(BINARY, "rb") as f:
    SANITIZED = re.search(b"__[at]san_init", f.read()) is not None  # it keeps what is freed: resident memory says nothing
with open(BINARY, "rb") as f:
    THREAD_SANITIZED = b"__tsan_init" in f.read()
A_WHILE = 30 if THREAD_SANITIZED else 60 if SANITIZED else 1000  # steps that take, of a few samples of `tiny`, a second or so
MANY = 4 if THREAD_SANITIZED else 16 if SANITIZED else 64  # samples of it that take, of a thousand steps, far longer than a test
PATIENCE = 120  # seconds after which a test gives up: sanitizers are slow, machines busy
LABELS = ["a", "b", "c", "d", "e", "f", "g", "h", "Ankle Boot"]


def floats(data):
    out = array.array("f")
    out.frombytes(bytes(data))
    return out


# ---- safetensors, npy, png, without any library ----


def st_read(data):
    """name -> (dtype, shape, bytes)"""
    n = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8:8 + n])
    return {k: (v["dtype"], v["shape"], data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]])
            for k, v in head.items() if k != "__metadata__"}


def st_write(tensors):
    head, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def f32(shape, values):
    return ("F32", list(shape), array.array("f", values).tobytes())


def i64(shape, values):
    return ("I64", list(shape), array.array("q", values).tobytes())


def npy_read(data):
    assert data[:8] == b"\x93NUMPY\x01\x00"
    n = struct.unpack("<H", data[8:10])[0]
    head = eval(data[10:10 + n])
    assert head["descr"] == "<f4" and not head["fortran_order"]
    return list(head["shape"]), data[10 + n:]


def png_read(data):
    """(height, width, channels, bytes of the pixels)"""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, idat = 8, b""
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + n]
        assert struct.unpack(">I", data[at + 8 + n:at + 12 + n])[0] == zlib.crc32(kind + body)
        if kind == b"IHDR":
            width, height, depth, color = struct.unpack(">IIBB", body[:10])
        idat += body if kind == b"IDAT" else b""
        at += 12 + n
    assert depth == 8
    c = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    raw, stride, out, before = zlib.decompress(idat), width * c, bytearray(), bytearray(width * c)
    for y in range(height):
        kind, line = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        for i in range(stride):
            a = line[i - c] if i >= c else 0
            b, d = before[i], before[i - c] if i >= c else 0
            p = a + b - d
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - d), 2, d))[2]
            line[i] = (line[i] + [0, a, b, (a + b) // 2, paeth][kind]) & 255
        out += line
        before = line
    return height, width, c, bytes(out)


def png_write(height, width, channels, pixels):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    head = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    stride = width * channels
    lines = b"".join(b"\0" + pixels[y * stride:(y + 1) * stride] for y in range(height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def to_u8(values, lo=-1.0, hi=1.0):
    """As diffusers: scaled, clamped, rounded half to even, each step in single precision."""
    def f32(v):
        return struct.unpack("<f", struct.pack("<f", v))[0]
    scale, shift = f32(1 / (hi - lo)), f32(-lo / (hi - lo))
    return bytes(round(f32(255 * min(max(f32(f32(v * scale) + shift), 0.0), 1.0))) for v in values)


# ---- models ----


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f)


def copy_model(source, root, name):
    shutil.copytree(os.path.join(GOLDEN, source), os.path.join(root, name),
                    ignore=shutil.ignore_patterns("io.safetensors", "train.safetensors", "trace.safetensors"))
    return os.path.join(root, name)


def spoil(path):
    """NaN in the middle of one tensor's first value."""
    with open(path, "r+b") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        head = json.loads(f.read(n))
        f.seek(8 + n + head["conv_out.bias"]["data_offsets"][0])
        f.write(struct.pack("<f", float("nan")))


def make_models(root):
    tiny = copy_model("unet_adm", root, "tiny")
    write_json(tiny + "/denoised.json", {"labels": LABELS, "null_label": 9, "sizes": [[8, 8], [24, 16]]})
    copy_model("pipe_ddpm", root, "plain")
    copy_model("unet_misc", root, "misc")
    spoil(copy_model("pipe_ddpm", root, "spoilt") + "/unet/diffusion_pytorch_model.safetensors")
    return str(root)


# ---- the daemon ----


class Serving(Daemon):
    """What the tests ask of it."""

    def client(self, timeout=PATIENCE):
        client = super().client(timeout)
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def post(self, path, body=None, headers=(), timeout=PATIENCE):
        client = self.client(timeout)
        try:
            return client.ask("POST", path, {} if body is None else body, headers)
        finally:
            client.close()

    def generate(self, headers=(), **fields):
        return self.post("/generate", fields, headers)

    def result(self, **fields):
        reply = self.generate(**fields)
        assert reply.status == 200, reply.body
        return reply.json()

    def shas(self, **fields):
        return [image["sha256"] for image in self.result(**fields)["images"]]

    def sha(self, **fields):
        return self.shas(**fields)[0]

    def values(self, **fields):
        """The float32 result."""
        reply = self.generate({"Accept": "application/x-npy"}, **fields)
        assert reply.status == 200, reply.body
        return floats(npy_read(reply.body)[1])

    def denoise(self, model, **tensors):
        return self.post("/denoise?model=" + model, st_write(tensors), {"Content-Type": "application/x-safetensors"})

    def submit(self, **fields):
        reply = self.generate({"Prefer": "respond-async"}, **fields)
        assert reply.status == 202, reply.body
        info = reply.json()
        assert reply.headers["location"] == "/requests/" + info["id"]
        return info["id"]

    def info(self, id):
        reply = self.ask("GET", "/requests/" + id)
        assert reply.status == 200, reply.body
        return reply.json()

    def wait_state(self, id, *states, timeout=PATIENCE):
        end = time.monotonic() + timeout
        while True:
            info = self.info(id)
            if info["state"] in states:
                return info
            assert info["state"] in ("queued", "running") and time.monotonic() < end, info
            time.sleep(0.01)

    def model(self, name):
        return self.ask("GET", "/models/" + name).json()

    def wait_model(self, name, state, timeout=PATIENCE):
        end = time.monotonic() + timeout
        while self.model(name)["state"] != state:
            assert time.monotonic() < end, self.model(name)
            time.sleep(0.01)

    def memory(self):
        return self.ask("GET", "/status").json()["memory"]

    def metrics(self):
        text = self.ask("GET", "/metrics").body.decode()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}

    def events(self, body=None, path="/generate", headers=(), timeout=PATIENCE):
        """A generator of (id, name, data) until the stream ends; the ids of a job's events are text."""
        client = self.client(timeout)
        headers = dict(headers, Accept="text/event-stream")
        lines = ["%s %s HTTP/1.1" % ("GET" if body is None else "POST", path), "Host: localhost"]
        lines += ["%s: %s" % h for h in headers.items()]
        data = b"" if body is None else json.dumps(body).encode()
        if data:
            lines += ["Content-Type: application/json", "Content-Length: %d" % len(data)]
        client.send("\r\n".join(lines) + "\r\n\r\n")
        client.send(data)
        status, _, replied = client.head()
        if status != 200:
            raise AssertionError("%s %s" % (status, client.take(int(replied["content-length"]))))
        assert replied["content-type"] == "text/event-stream" and replied["cache-control"] == "no-store"
        text = b""
        while True:
            n = int(client.until(b"\r\n"), 16)
            text += client.take(n)
            client.take(2)
            while b"\n\n" in text:
                block, text = text.split(b"\n\n", 1)
                fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if line[0] != ":")
                if fields:
                    id = fields["id"]
                    yield int(id) if id.isdigit() else id, fields["event"], json.loads(fields["data"])
            if n == 0:
                assert not text
                client.close()
                return


@contextlib.contextmanager
def serving(models, *args):
    args = list(args)
    for flag, value in (("--max-queue-ms", "86400000"), ("--drain-ms", "2000"), ("--step-ms", "10000")):  # sanitizers are slow
        args += [] if flag in args else [flag, value]
    daemon = Serving(BINARY, ["--listen", "127.0.0.1:0", "--models", str(models)] + args).started()
    try:
        end = time.monotonic() + PATIENCE
        while daemon.ask("GET", "/readyz").status != 200:
            assert time.monotonic() < end
            time.sleep(0.01)
        yield daemon
    finally:
        daemon.stop()


def together(calls):
    """Run all at once, each in a thread; their results in order."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [f.result() for f in [pool.submit(call) for call in calls]]


def decoded(image):
    return base64.b64decode(image["b64"])


def sha256(data):
    return hashlib.sha256(bytes(data)).hexdigest()
