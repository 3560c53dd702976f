"""PUT, GET and DELETE /datasets against the real daemon: every format, uploads that end early, lie or are too large, and that nothing
is left behind."""
import concurrent.futures
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import tarfile
import threading
import time
import zipfile
import zlib

import pytest
from serving import PATIENCE, serving, st_write, together
from uploads import FORM, Importing, form

TAR = {"Content-Type": "application/x-tar"}
RAW = {"Content-Type": "application/octet-stream"}


# ---- what is uploaded ----


def png(w, h, value):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + bytes((value + x + y * 7) & 255 for x in range(w)) for y in range(h))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 0, 0, 0, 0)) + \
        chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tar(files, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT) as t:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


def pictures(n=6, first=0):
    return [("%s/%03d.png" % ("ab"[i % 2], i), png(8, 8, first + 20 * i)) for i in range(n)]


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files:
            z.writestr(name, data)
    return out.getvalue()


def npy(shape, data, descr="|u1"):
    head = str({"descr": descr, "fortran_order": False, "shape": tuple(shape)}).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


def idx(n=4):
    pixels, labels = bytes(i * 5 % 251 for i in range(n * 64)), bytes(i % 3 for i in range(n))
    return [("train-images-idx3-ubyte.gz", gzip.compress(struct.pack(">IIII", 0x803, n, 8, 8) + pixels)),
            ("train-labels-idx1-ubyte", struct.pack(">II", 0x801, n) + labels)]


# ---- the daemon ----


class Box:
    def __init__(self, state, daemon):
        self.state, self.d = state, daemon

    def put(self, name, body, headers=RAW, query=""):
        client = self.d.client()
        try:
            return client.ask("PUT", "/datasets/%s%s" % (name, query), body, headers)
        finally:
            client.close()

    def incoming(self):
        return sorted(os.listdir(os.path.join(self.state, "incoming")))

    def folders(self):
        return sorted(os.listdir(os.path.join(self.state, "datasets")))

    def names(self):
        reply = self.d.ask("GET", "/datasets")
        assert reply.status == 200
        return sorted(card["name"] for card in reply.json()["datasets"])

    def clean(self, *names):
        """Nothing but these is there, in the list and on the disk."""
        end = time.monotonic() + PATIENCE
        while self.incoming() or len(self.folders()) != len(names):
            assert time.monotonic() < end, (self.incoming(), self.folders())
            time.sleep(0.02)
        assert self.names() == sorted(names)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    return tmp_path_factory.mktemp("none")


@pytest.fixture
def box(tmp_path, nothing):
    with serving(nothing, "--state", str(tmp_path / "state"), "--disk-reserve", "0", "--upload-bytes", "4MiB") as daemon:
        yield Box(str(tmp_path / "state"), daemon)


@pytest.mark.parametrize("name,body,classes", [
    ("tar", lambda: tar(pictures()), ["a", "b"]),
    ("targz", lambda: tar(pictures(), "w:gz"), ["a", "b"]),
    ("zip", lambda: zipped(pictures()), ["a", "b"]),
    ("idx", lambda: tar(idx()), None),
    ("npy", lambda: npy((5, 8, 8), bytes(range(64)) * 5), None),
    ("npz", lambda: zipped([("images.npy", npy((3, 8, 8), bytes(192))), ("labels.npy", npy((3,), b"\0\1\1"))]), None),
    ("safetensors", lambda: st_write({"images": ("U8", [2, 8, 8, 3], bytes(range(192)) * 2)}), None),
])
def test_each_format(box, name, body, classes):
    data = body()
    reply = box.put(name, data, {**RAW, "X-Content-SHA256": hashlib.sha256(data).hexdigest()})
    assert reply.status == 201, reply.body
    card = reply.json()
    assert card["name"] == name and card["height_min"] == card["width_max"] == 8 and card["n_broken"] == 0
    assert card["images"] == {"tar": 6, "targz": 6, "zip": 6, "idx": 4, "npy": 5, "npz": 3, "safetensors": 2}[name]
    assert card.get("classes") == classes
    assert reply.headers["location"] == "/datasets/%s@%s" % (name, card["hash"])
    for path in ("/datasets/" + name, reply.headers["location"], "/datasets/%s@%s" % (name, card["hash"][:8])):
        again = box.d.ask("GET", path)
        assert again.status == 200 and again.json()["hash"] == card["hash"]
    box.clean(name)


def test_the_same_again(box):
    first = box.put("d", tar(pictures()), TAR)
    again = box.put("d", zipped(pictures()))  # the content counts, not the archive
    assert (first.status, again.status) == (201, 200) and first.json()["hash"] == again.json()["hash"]
    assert first.json()["created_at"] == again.json()["created_at"]
    box.clean("d")
    other = box.put("d", tar(pictures(first=3)), TAR)
    assert other.status == 201 and other.json()["hash"] != first.json()["hash"]
    assert box.d.ask("GET", "/datasets/d").json()["hash"] == other.json()["hash"]  # the newest
    box.clean("d", "d")


def test_chunked_and_expect(box):
    body = tar(pictures(40))
    assert len(body) > 40000
    client = box.d.client()
    client.send("PUT /datasets/chunks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n")
    for at in range(0, len(body), 7001):
        piece = body[at:at + 7001]
        client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    client.send("0\r\n\r\n")
    assert client.reply().status == 201
    client.send("PUT /datasets/patient HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-tar\r\nExpect: 100-continue\r\n"
                "Content-Length: %d\r\n\r\n" % len(body))
    assert client.head()[0] == 100
    client.send(body)
    assert client.reply().status == 201
    client.close()
    box.clean("chunks", "patient")


def test_more_than_the_buffers(box):
    """Several megabytes, so that both buffers are filled again and again; with a broken sha too."""
    pixels = os.urandom(3 << 20)
    body = npy((3 << 10, 32, 32), pixels)
    reply = box.put("big", body, {**RAW, "X-Content-SHA256": hashlib.sha256(body).hexdigest().upper()})
    assert reply.status == 201 and reply.json()["images"] == 3 << 10
    reply = box.put("worse", body, {**RAW, "X-Content-SHA256": "0" * 64})
    assert reply.status == 400 and reply.json()["error"]["param"] == "X-Content-SHA256"
    box.clean("big")


@pytest.mark.parametrize("cut", [0, 1, 511, 70000, 300000, -1])
def test_cut(box, cut):
    body = npy((600, 32, 32), os.urandom(600 << 10))
    client = box.d.client()
    client.send("PUT /datasets/cut HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" %
                len(body))
    client.send(body[:cut])
    if cut > 256 << 10:  # it is in the file by then
        end = time.monotonic() + PATIENCE
        while not box.incoming():
            assert time.monotonic() < end
            time.sleep(0.01)
    client.close()
    box.clean()
    assert box.put("cut", body).status == 201
    box.clean("cut")


def test_heads_that_are_refused(box):
    def said(headers, body=b"x"):
        reply = box.put("d", body, headers)
        return reply.status, reply.code
    assert said({**RAW, "X-Content-SHA256": "12"}) == (400, "bad_header")
    assert said({"Content-Type": "application/json"}) == (415, "unsupported_media_type")
    assert said(RAW, b"") == (400, "bad_format")
    client = box.d.client()
    client.send("PUT /datasets/d HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-tar\r\nContent-Length: 4194305\r\n\r\n")
    reply = client.reply()
    assert (reply.status, reply.code) == (413, "too_large")
    reply = box.put("Upper", tar(pictures()))
    assert reply.status == 400 and reply.json()["error"]["param"] == "name"
    assert box.put("d", tar(pictures()), RAW, "?skip=1").status == 400
    box.clean()


def test_chunked_too_large(box):
    client = box.d.client()
    client.send("PUT /datasets/d HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-tar\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        for _ in range(5 << 4):
            client.send(b"10000\r\n" + bytes(65536) + b"\r\n")
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert b" 413 " in client.until(b"\r\n")
    box.clean()


def link():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        info = tarfile.TarInfo("a/evil.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        t.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize("body,names", [
    (lambda: b"what is this? " * 100, ""),
    (lambda: tar([("../../evil.png", png(4, 4, 1))]), ".."),
    (lambda: tar([("/etc/evil.png", png(4, 4, 1))]), "evil.png"),
    (link, "evil.png"),
    (lambda: tar([("a/0.png", png(8, 8, 0)), ("a/broken.png", png(8, 8, 9)[:40])]), "broken.png"),
    (lambda: zipped([("a/bomb.png", bytes(64 << 20))]), "bomb.png"),
    (lambda: tar(pictures())[:-9000], ""),
    (lambda: gzip.compress(tar(pictures()))[:-100], ""),
    (lambda: npy((1 << 40, 8, 8), b"x"), ""),
    (lambda: tar([("readme.txt", b"hello")]), ""),
])
def test_what_is_no_dataset(box, body, names):
    reply = box.put("bad", body())
    assert 400 <= reply.status < 500, reply.body
    error = reply.json()["error"]
    assert error["message"] and names in error["message"] + (error["param"] or "")
    box.clean()


def test_multipart(box):
    """What browsers and `curl -F` send: the files one by one, or one archive."""
    want = {name: box.put(name, body).json()["hash"] for name, body in
            (("idx", tar(idx())), ("pictures", tar(pictures())), ("array", npy((5, 8, 8), bytes(range(64)) * 5)))}
    assert box.put("m1", form(idx()), FORM).json()["hash"] == want["idx"]
    assert box.put("m2", form(pictures()), FORM).json()["hash"] == want["pictures"]  # folders are in the file names
    for k, body in enumerate((tar(pictures()), zipped(pictures()), tar(pictures(), "w:gz"))):
        reply = box.put("n%d" % k, form([("whatever.bin", body)]), {**FORM, "X-Content-SHA256": hashlib.sha256(form([("whatever.bin", body)])).hexdigest()})
        assert reply.status == 201 and reply.json()["hash"] == want["pictures"], reply.body
    big = npy((1 << 10, 32, 32), os.urandom(1 << 20))
    assert box.put("big", form([("a.npy", big)]), FORM).json()["hash"] == box.put("big", big).json()["hash"]
    end = b"\r\n----- a file"  # in the data it is none, unless a line break or two dashes follow
    data = npy((1, 8, 8), end + b"x" + bytes(63 - len(end)))
    assert box.put("tricky", form([("a.npy", data)]), FORM).json()["hash"] == box.put("tricky", data).json()["hash"]
    box.clean("idx", "pictures", "array", "m1", "m2", "n0", "n1", "n2", "big", "tricky")


@pytest.mark.parametrize("body,head,said", [
    (lambda: form(idx()), {"Content-Type": "multipart/form-data"}, "boundary"),
    (lambda: form(idx()), {"Content-Type": "multipart/form-data; boundary=other"}, "boundary"),
    (lambda: form(idx())[:-20], FORM, "cut short"),
    (lambda: form(idx())[:40], FORM, "headers"),
    (lambda: form([("../evil.npy", b"x"), ("b.npy", b"y")]), FORM, ".."),
    (lambda: form([("/etc/evil.npy", b"x"), ("b.npy", b"y")]), FORM, "evil.npy"),
    (lambda: form(idx()[:1] * 2), FORM, "train-images"),
    (lambda: form([("n" * 101, b"x")]), FORM, "file name"),
    (lambda: form(idx()).replace(b"; filename=", b"; nofilename="), FORM, "file"),
    (lambda: form(idx()).replace(b"Content-Type: application", b"Content-Transfer-Encoding: application"), FORM, "binary"),
    (lambda: b"----- a file--\r\n", FORM, "boundary"),
    (lambda: form([("a", b"")]), FORM, ""),
])
def test_broken_multipart(box, body, head, said):
    reply = box.put("bad", body(), head)
    error = reply.json()["error"]
    assert 400 <= reply.status < 500 and said in error["message"] + (error["param"] or ""), reply.body
    box.clean()


def test_skip_broken(box):
    files = pictures() + [("a/broken.png", b"\x89PNG\r\n\x1a\nnonsense")]
    assert box.put("d", tar(files)).status == 400
    reply = box.put("d", tar(files), TAR, "?skip_broken=true")
    assert reply.status == 201
    assert reply.json()["images"] == 6 and reply.json()["n_broken"] == 1
    assert reply.json()["broken"][0]["file"] == "a/broken.png" and reply.json()["broken"][0]["why"]
    box.clean("d")


def test_delete(box):
    first = box.put("d", tar(pictures())).json()
    box.put("d", tar(pictures(first=5)))
    assert box.d.ask("DELETE", "/datasets/d@" + first["hash"]).json()["hash"] == first["hash"]
    box.clean("d")
    assert box.d.ask("GET", "/datasets/d@" + first["hash"]).status == 404
    assert box.d.ask("DELETE", "/datasets/d").status == 200
    assert box.d.ask("DELETE", "/datasets/d").status == 404
    box.clean()
    assert box.put("d", tar(pictures())).status == 201


def test_together(box):
    """The same to one name, others to others: each is whole, the same once."""
    same = [lambda: box.put("one", tar(pictures())) for _ in range(4)]
    others = [lambda k=k: box.put("n%d" % k, tar(pictures(first=k + 1))) for k in range(3)]
    replies = together(same + others)
    assert sorted(r.status for r in replies[:4]) == [200, 200, 200, 201] and all(r.status == 201 for r in replies[4:])
    assert len({r.json()["hash"] for r in replies}) == 4
    box.clean("n0", "n1", "n2", "one")


def test_many_that_never_end(box):
    """Open uploads hold their two buffers and no thread: the daemon answers beside them, and they leave nothing."""
    clients = [box.d.client() for _ in range(24)]
    for client in clients:
        client.send("PUT /datasets/d HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-tar\r\nContent-Length: 900000\r\n\r\n")
        client.send(bytes(600000))
    assert box.d.ask("GET", "/healthz").status == 200
    assert box.put("d", tar(pictures())).status == 201
    for client in clients:
        client.close()
    box.clean("d")


def test_after_a_kill(tmp_path, nothing):
    state = str(tmp_path / "state")
    with serving(nothing, "--state", state, "--disk-reserve", "0") as daemon:
        box = Box(state, daemon)
        card = box.put("d", tar(pictures())).json()
        client = daemon.client()
        client.send("PUT /datasets/e HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-tar\r\nContent-Length: 9000000\r\n\r\n")
        client.send(bytes(1 << 20))
        end = time.monotonic() + PATIENCE
        while not box.incoming():
            assert time.monotonic() < end
            time.sleep(0.01)
        daemon.proc.kill()
        daemon.proc.wait(30)
        daemon.stop(-9, None)
        shutil.copytree(os.path.join(state, "datasets", box.folders()[0]), os.path.join(state, "datasets", "orphan"))
        daemon.stop = lambda *args: None
    with serving(nothing, "--state", state, "--disk-reserve", "0") as daemon:
        box = Box(state, daemon)
        box.clean("d")
        assert daemon.ask("GET", "/datasets/d").json() == {k: v for k, v in card.items() if k not in ("n_broken", "broken")}


def test_an_import_is_cancelled(box):
    slow = Importing(box.d, "slow").begun(box.state)
    assert box.d.ask("GET", "/datasets/slow").status == 404
    reply = box.d.ask("DELETE", "/datasets/slow")
    assert reply.status == 200 and reply.json()["cancelled"] and reply.json()["name"] == "slow" and reply.json()["images"] == 0
    box.clean()
    slow.join()
    assert (slow.answer.status, slow.answer.code) == (409, "cancelled")
    assert box.d.ask("DELETE", "/datasets/slow").status == 404
    assert box.put("slow", tar(pictures())).status == 201
    slow = Importing(box.d, "slow").begun(box.state)  # the bare name is the newest: what is under way, then what is there
    assert box.d.ask("DELETE", "/datasets/slow?importing=true").json()["cancelled"]
    box.clean("slow")
    slow.join()
    reply = box.d.ask("DELETE", "/datasets/slow?importing=true")  # too late: what was there before is not meant
    assert (reply.status, reply.json()["error"]["param"]) == (404, "name")
    box.clean("slow")
    reply = box.d.ask("DELETE", "/datasets/slow")
    assert reply.status == 200 and "cancelled" not in reply.json()
    box.clean()


def test_one_that_waits_is_cancelled_at_once(box):
    slow = Importing(box.d, "slow").begun(box.state)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        behind = pool.submit(box.put, "behind", tar(pictures()))
        end = time.monotonic() + PATIENCE
        while (reply := box.d.ask("DELETE", "/datasets/behind")).status == 404:  # its body is still coming
            assert time.monotonic() < end
        assert reply.json()["cancelled"] and (behind.result().status, behind.result().code) == (409, "cancelled")
    assert slow.is_alive() and box.d.ask("DELETE", "/datasets/slow").json()["cancelled"]
    slow.join()
    box.clean()


def test_a_kill_in_an_import(tmp_path, nothing):
    state = str(tmp_path / "state")
    with serving(nothing, "--state", state, "--disk-reserve", "0") as daemon:
        slow = Importing(daemon, "slow").begun(state)
        daemon.stop(-9, signal.SIGKILL)
        daemon.stop = lambda *args: None
        slow.join()
    left = os.listdir(state + "/incoming")
    assert any(".import-" in name for name in left)
    for name in ("0123.import-AbCdEf", "0123.01234567"):
        shutil.copytree(os.path.join(state, "incoming", next(n for n in left if ".import-" in n)), os.path.join(state, "datasets", name))
    with serving(nothing, "--state", state, "--disk-reserve", "0") as daemon:
        box = Box(state, daemon)
        box.clean()
        assert box.put("slow", tar(pictures())).status == 201
        box.clean("slow")


def test_a_stop_does_not_wait_for_an_import(tmp_path, nothing):
    state = str(tmp_path / "state")
    with serving(nothing, "--state", state, "--disk-reserve", "0", "--drain-ms", "100") as daemon:
        slow = Importing(daemon, "slow").begun(state)
        daemon.proc.send_signal(signal.SIGTERM)
        slow.join()
        daemon.stop(sig=None)
        daemon.stop = lambda *args: None
    assert (slow.answer.status, slow.answer.code) == (409, "cancelled")
    assert os.listdir(state + "/incoming") == [] and os.listdir(state + "/datasets") == []


def test_no_room(tmp_path, nothing):
    free = shutil.disk_usage(tmp_path).free
    with serving(nothing, "--state", str(tmp_path / "state"), "--disk-reserve", str(free + (64 << 30))) as daemon:
        box = Box(str(tmp_path / "state"), daemon)
        reply = box.put("d", tar(pictures()))
        assert (reply.status, reply.code) == (507, "disk_reserve")
        box.clean()


def test_without_state(nothing):
    with serving(nothing) as daemon:
        client = daemon.client()
        reply = client.ask("PUT", "/datasets/d", tar(pictures()), TAR)
        assert reply.status == 422 and "--state" in reply.json()["error"]["message"]
        assert daemon.ask("GET", "/datasets").json() == {"datasets": []}


def test_owners(tmp_path, nothing):
    tokens = tmp_path / "tokens"
    tokens.write_text("%s anna\n%s bert\n%s root use,admin\n" % tuple(c * 32 for c in "abr"))
    tokens.chmod(0o600)
    with serving(nothing, "--state", str(tmp_path / "state"), "--disk-reserve", "0", "--token-file", str(tokens)) as daemon:
        def ask(who, method, path, body=None):
            return daemon.ask(method, path, body, {**RAW, "Authorization": "Bearer " + who * 32})
        assert ask("a", "PUT", "/datasets/d", tar(pictures())).status == 201
        assert ask("b", "GET", "/datasets/d").status == 403
        assert ask("b", "DELETE", "/datasets/d").status == 403
        assert ask("b", "PUT", "/datasets/d", tar(pictures())).status == 403
        assert ask("b", "GET", "/datasets").json()["datasets"] == []
        assert ask("r", "GET", "/datasets/d").status == 200
        assert ask("r", "DELETE", "/datasets/d").status == 200
