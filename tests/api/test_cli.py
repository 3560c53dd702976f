"""`denoise`, the real binary: against the real daemon, and against servers that lie."""
import base64
import json
import os
import pty
import re
import signal
import struct

import pytest

from command import (DENOISE, PNG, begin, denoise, end, environment, heard, kitty_pictures, lie, on_terminal, plain, refusal, stream,
                     url_of)
from serving import MANY, Serving, decoded, floats, npy_read, png_read, st_read

LONG = ["-m", "tiny", "--steps", "1000", "-n", str(MANY), "--sampler", "ddim", "--seed", "1"]  # far longer than a test


# ---- the real daemon ----


@pytest.fixture(scope="module")
def url(d):
    return url_of(d)


TINY = ["-m", "tiny", "--label", "b", "--steps", "6", "--sampler", "ddim", "--seed", "7"]
BASE = {"model": "tiny", "class_label": "b", "steps": 6, "sampler": "ddim", "seed": 7}


def test_one_picture_is_the_daemons(d, url, tmp_path):
    path = tmp_path / "b.png"
    done = denoise(url, "generate", *TINY, "-o", str(path)).ok()
    assert path.read_bytes() == decoded(d.result(**BASE)["images"][0])
    assert done.out == b"" and "seed 7, model tiny@1, 6 steps" in done.err and "wrote %s\n" % path in done.err
    assert re.search("step 6 of 6", done.err)


def test_grid(d, url, tmp_path):
    path = tmp_path / "grid.png"
    denoise(url, "generate", *TINY, "-n", "5", "--grid", "-o", str(path)).ok()
    assert path.read_bytes() == decoded(d.result(n=5, output={"layout": "grid"}, **BASE)["images"][0])


@pytest.mark.parametrize("pattern, names", [
    ("s-%d.png", ["s-0.png", "s-1.png", "s-2.png"]),
    ("%02d", ["00", "01", "02"]),
    ("s.png", ["s-0.png", "s-1.png", "s-2.png"]),
])
def test_several_files(d, url, tmp_path, pattern, names):
    denoise(url, "generate", *TINY, "-n", "3", "-o", pattern, cwd=tmp_path).ok()
    assert sorted(os.listdir(tmp_path)) == names
    wanted = [decoded(image) for image in d.result(n=3, **BASE)["images"]]
    assert [(tmp_path / name).read_bytes() for name in names] == wanted


def test_standard_output_and_arrays(d, url):
    values = d.values(n=2, output={"format": "npy"}, **BASE)
    npy = denoise(url, "generate", *TINY, "-n", "2", "--format", "npy", "-o", "-", "-q").ok()
    shape, data = npy_read(npy.out)
    assert shape == [2, 16, 16, 3] and floats(data) == values and npy.err == ""
    st = denoise(url, "generate", *TINY, "-n", "2", "--format=safetensors", "--output=-").ok()
    assert floats(st_read(st.out)["images"][2]) == values
    one = denoise(url, "generate", *TINY, "--format", "npy", "-o", "-").ok()
    assert npy_read(one.out)[0] == [1, 16, 16, 3] and floats(npy_read(one.out)[1]) == values[:16 * 16 * 3]
    many = denoise(url, "generate", *TINY, "-n", "11", "--format", "npy", "-o", "-").ok().out
    assert many == d.generate({"Accept": "application/x-npy"}, n=11, **BASE).body
    png = denoise(url, "generate", *TINY, "-o", "-").ok()
    assert png.out == decoded(d.result(**BASE)["images"][0])


def test_request_from_json_and_flags_win(d, url, tmp_path):
    path = tmp_path / "request.json"
    path.write_text(json.dumps(dict(BASE, seed=1, output={"layout": "grid"})))
    done = denoise(url, "generate", "--json", str(path), "-s", "7", "-n", "2", "-o", "-").ok()
    assert done.out == decoded(d.result(n=2, output={"layout": "grid"}, **BASE)["images"][0])
    done = denoise(url, "generate", "--json", "-", "-o", "-", stdin=json.dumps(BASE).encode()).ok()
    assert done.out == decoded(d.result(**BASE)["images"][0])
    for text, wanted in ((b"{", "line 1"), (b"[]", "object"), (b'{"n":1,"n":2}', "at n"), (b" " * 70000, "larger")):
        denoise(url, "generate", "--json", "-", "-o", "-", stdin=text).failed(2, "--json: -", wanted)


def test_a_drawn_seed_is_printed_and_repeats(url):
    args = ["generate"] + TINY[:-2] + ["-o", "-"]
    first = denoise(url, *args).ok()
    seed = re.search(r"seed (\d+)", first.err).group(1)
    assert denoise(url, *args, "--seed", seed).ok().out == first.out
    assert denoise(url, *args, "--seed", str(int(seed) + 1)).ok().out != first.out


def test_every_request_field_has_a_flag(d, url):
    """But `stream`, which is the command's own business."""
    schemas = d.ask("GET", "/openapi.json").json()["components"]["schemas"]
    text = denoise(url, "generate", "--help").ok().out.decode()
    for name in set(schemas["GenerateRequest"]["properties"]) - {"stream", "guidance", "output"}:
        flag = {"class_label": "label"}.get(name, name).replace("_", "-")
        assert re.search(r"--%s\b" % flag, text), name
    for name in schemas["Cfg"]["properties"]:
        assert re.search(r"--guidance%s\b" % ("" if name == "scale" else "-" + name), text), name
    for code in re.findall(r"^  (\d+) ", text.split("Exit status:")[1], re.M):
        assert int(code) in (0, 1, 2, 3, 4, 5, 130)


def test_refusals_say_what_the_daemon_says(d, url, tmp_path):
    path = str(tmp_path / "x.png")
    for args, code, param in ((["--steps", "5000"], "out_of_range", "steps"), (["-m", "nope"], "model_not_found", "model"),
                              (["--label", "zebra"], "unknown_value", "class_label"),
                              (["--guidance", "1000"], "out_of_range", "guidance.cfg.scale")):
        done = denoise(url, "generate", *(args if "-m" in args else ["-m", "tiny"] + args), "-o", path)
        done.failed(3, "(%s, %s)" % (code, param))
    error = d.generate(model="tiny", steps=5000).json()["error"]["message"]
    denoise(url, "generate", "-m", "tiny", "--steps", "5000", "-o", path).failed(3, "denoise: " + error)
    assert not os.path.exists(path)
    denoise(url, "models", "nope").failed(3, "model_not_found")
    denoise(url, "cancel", "0" * 32).failed(3, "not_found")
    denoise(url, "requests", "--limit", "0").failed(3, "limit")


@pytest.mark.parametrize("args, text", [
    ([], "a command is missing"),
    (["draw"], "draw is no command"),
    (["generate", "--nonsense"], "--nonsense is no flag"),
    (["generate", "-o", "x", "bag"], "bag is superfluous"),
    (["generate", "-o"], "-o needs a value"),
    (["generate", "-o", "x", "-o", "y"], "is given twice"),
    (["generate", "--quiet=yes", "-o", "x"], "takes no value"),
    (["generate", "--steps", "many", "-o", "x"], "steps must be an integer"),
    (["generate", "--steps", "1", "--steps", "2", "-o", "x"], "steps is given twice"),
    (["generate"], "-o FILE is needed"),
    (["generate", "--show", "never"], "-o FILE is needed"),
    (["generate", "--show", "ascii"], "--show must be"),
    (["generate", "--show", "kitty", "-o", "-"], "both write"),
    (["generate", "-n", "2", "-o", "-"], "one result only"),
    (["generate", "-o", "a%s.png"], "may have one %d"),
    (["generate", "-o", "%d%d.png"], "may have one %d"),
    (["generate", "-o", "%"], "may have one %d"),
    (["generate", "-o", "/nonexistent/a.png"], "No such file"),
    (["generate", "-o", ""], "must not be empty"),
    (["generate", "--async", "-o", "x"], "--async has no result"),
    (["generate", "--json", "/nonexistent", "-o", "x"], "/nonexistent"),
    (["wait"], "ID is missing"),
    (["wait", "../models", "-o", "x"], "cannot be the id"),
    (["cancel", "a/b"], "cannot be the id"),
    (["load"], "NAME is missing"),
    (["load", "a", "b"], "b is superfluous"),
    (["load", "a", "--force"], "--force is no flag"),
    (["unload", "a", "--force=perhaps"], "force must be true or false"),
    (["status", "--server", "ftp://x"], "--server must be"),
    (["status", "--server", "unix:x"], "--server must be"),
    (["status", "--token", "a b"], "the token has"),
    (["status", "--token-file", "/nonexistent"], "--token-file: /nonexistent"),
    (["status", "--token", "a", "--token-file", "b"], "exclude each other"),
])
def test_usage(tmp_path, args, text):
    """Nothing is asked: the address leads nowhere, which would be another exit status."""
    done = denoise("http://127.0.0.1:1", *args, cwd=tmp_path).failed(2, text)
    assert done.out == b"" and os.listdir(tmp_path) == []


def test_help_and_version():
    text = denoise("", "--help").ok().out.decode()
    for command in ("generate", "wait", "models", "load", "unload", "status", "requests", "cancel"):
        assert re.search(r"^  %s " % command, text, re.M)
        assert denoise("", command, "-h").ok().out.decode().startswith("Usage: denoise %s " % command)
    assert re.fullmatch(rb"denoise \d+\.\d+\.\d+\n", denoise("", "--version").ok().out)
    assert all(len(line) <= 118 for line in text.split("\n"))


def test_unreachable(tmp_path):
    denoise("http://127.0.0.1:1", "status").failed(4, "http://127.0.0.1:1: Connection refused")
    denoise("unix:%s/nothing" % tmp_path, "status").failed(4, "No such file or directory")
    denoise("http://127.0.0.1:1", "generate", "-o", str(tmp_path / "a")).failed(4)
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_written(url):
    denoise(url, "generate", *TINY, "-o", "/dev/full").failed(1, "/dev/full: No space left")
    denoise(url, "generate", *TINY, "-o", "/dev/null").ok()


def test_models_load_and_unload(d, url):
    lines = denoise(url, "models").ok().out.decode().split("\n")
    assert lines[0].split()[:3] == ["NAME", "STATE", "SIZE"]
    assert any(re.match(r"tiny +loaded +16x16x3 ", line) for line in lines), lines
    card = denoise(url, "models", "tiny").ok().out.decode()
    assert re.search(r"^labels +a, b, c, d, e, f, g, h, Ankle Boot$", card, re.M)
    assert json.loads(denoise(url, "models", "tiny", "--raw").ok().out)["labels"] == d.model("tiny")["labels"]
    assert denoise(url, "unload", "misc", "--wait").ok().out == b"misc is available\n"
    assert d.model("misc")["state"] == "available"
    assert denoise(url, "load", "misc", "--wait").ok().out == b"misc is loaded\n"
    assert d.model("misc")["state"] == "loaded"


def test_ctrl_c_cancels(d, url, tmp_path):
    for more in ([], ["--on-disconnect", "continue"]):
        before = {r["id"] for r in d.ask("GET", "/requests").json()["requests"]}
        process = begin(url, "generate", *LONG, *more, "-o", str(tmp_path / "a.png"))
        heard(process, b"step")
        done = end(process, signal.SIGINT).failed(130, "cancelled ")
        id = re.search(r"cancelled (\w{32})", done.err).group(1)
        assert id not in before and os.listdir(tmp_path) == []
        assert d.ask("GET", "/requests/" + id).status in (200, 410)
        if more:
            assert d.info(id)["state"] == "cancelled"
        d.wait_status(running=0, waiting=0)


def test_another_cancels_it(d, url, tmp_path):
    process = begin(url, "generate", *LONG, "-o", str(tmp_path / "a.png"))
    heard(process, b"step")
    listed = denoise(url, "requests", "--state", "running").ok().out.decode().split("\n")
    id = listed[1].split()[0]
    assert listed[0].split()[:2] == ["ID", "STATE"] and listed[1].split()[1:4] == ["running", "tiny@1", str(MANY)]
    assert denoise(url, "cancel", id).ok().out.decode() == id + " is cancelled\n"
    end(process).failed(3, "cancelled")


def test_async_and_wait(d, url, tmp_path):
    wanted = [decoded(image) for image in d.result(n=3, **BASE)["images"]]
    done = denoise(url, "generate", "--async", *TINY, "-n", "3").ok()
    id = done.out.decode().strip()
    assert re.fullmatch(r"\w{32}", id) and "seed 7" in done.err
    for _ in range(2):  # while it runs, or after it ended: the same
        done = denoise(url, "wait", id, "-o", "w-%d.png", cwd=tmp_path).ok()
        assert [(tmp_path / ("w-%d.png" % k)).read_bytes() for k in range(3)] == wanted
        assert done.err.count("seed 7, model tiny@1, 6 steps") == 1
    denoise(url, "wait", id, "-o", "-").failed(2, "one result only")
    denoise(url, "cancel", id).failed(3)
    for kind in ("npy", "safetensors"):
        id = denoise(url, "generate", "--async", *TINY, "-n", "3", "--format", kind, "-q").ok().out.decode().strip()
        denoise(url, "wait", id, "-o", "a." + kind, cwd=tmp_path).ok()
        data = (tmp_path / ("a." + kind)).read_bytes()
        shape, data = npy_read(data) if kind == "npy" else st_read(data)["images"][1:]
        assert shape == [3, 16, 16, 3] and floats(data) == d.values(n=3, **BASE)


def test_wait_can_be_left_and_ends_with_the_request(d, url):
    id = denoise(url, "generate", "--async", *LONG, "-q").ok().out.decode().strip()
    process = begin(url, "wait", id, "-o", "/dev/null")
    heard(process, b"step")
    end(process, signal.SIGINT).failed(130, "it goes on without you")
    assert d.info(id)["state"] == "running"
    process = begin(url, "wait", id, "-o", "/dev/null")
    heard(process, b"step")
    denoise(url, "cancel", id).ok()
    end(process).failed(3, "cancelled")
    denoise(url, "wait", id, "-o", "/dev/null").failed(3, "cancelled")


def test_a_failing_request(url):
    denoise(url, "generate", "-m", "spoilt", "--steps", "2", "-o", "/dev/null").failed(5, "non_finite")
    id = denoise(url, "generate", "-m", "spoilt", "--steps", "2", "--async", "-q").ok().out.decode().strip()
    denoise(url, "wait", id, "-o", "/dev/null").failed(5, "non_finite")


def test_status_and_requests(d, url):
    text = denoise(url, "status").ok().out.decode()
    assert re.match(r"denoised \d\S+, up .* 0 running, 0 waiting", text)
    for line in (r"^memory: \S+ .B of ", r"^device cpu \(.*threads\): [1-9]\d* steps", r"^model tiny: loaded, "):
        assert re.search(line, text, re.M), text
    assert json.loads(denoise(url, "status", "--raw").ok().out)["running"] == 0
    denoise(url, "generate", "--async", *TINY, "-q").ok()
    id = denoise(url, "generate", "--async", *TINY, "-q").ok().out.decode().strip()
    page = denoise(url, "requests", "--limit", "1").ok().out.decode()
    assert page.count("\n") == 3 and id in page
    after = re.search("more: --after (.*)", page).group(1)
    assert id not in denoise(url, "requests", "--limit=1", "--after", after).ok().out.decode()


def test_status_watch(url):
    process = begin(url, "status", "--watch", "--raw")
    for _ in range(2):
        assert "devices" in json.loads(process.stdout.readline())
    assert end(process, signal.SIGINT).code == 130


def test_unix_socket_and_tokens(models, tmp_path, start):
    tokens = tmp_path / "tokens"
    tokens.write_text("# people\nthe-secret-word-of-ann ann\nthe-secret-word-of-bob bob use,admin\n")
    daemon = Serving(os.environ["DENOISED_REAL_BIN"], ["--listen", "unix:%s/s" % tmp_path, "--models", models, "--load", "none",
                                                       "--token-file", str(tokens)]).started()
    try:
        where = url_of(daemon)
        denoise(where, "status").failed(3, "(unauthorized, Authorization)")
        denoise(where, "status", DENOISED_TOKEN="wrong").failed(3, "(unauthorized, Authorization)")
        denoise(where, "status", DENOISED_TOKEN="the-secret-word-of-bob").ok()
        denoise(where, "status", "--token", "the-secret-word-of-ann", DENOISED_TOKEN="wrong").ok()
        denoise(where, "status", "--token-file", str(tokens), DENOISED_TOKEN="wrong").ok()
        process = begin(where, "status", "--watch", "--raw", "--token", "the-secret-word-of-ann")
        process.stdout.readline()
        with open("/proc/%d/cmdline" % process.pid, "rb") as f:
            assert f.read().split(b"\0")[-2] == b"x" * len("the-secret-word-of-ann")
        end(process, signal.SIGTERM)
    finally:
        daemon.stop()


# ---- terminals ----


def pixels_of(text):
    """Half blocks back to rows of RGB."""
    rows = []
    for line in text.decode().split("\r\n")[:-1]:
        upper, lower, fore, back = [], [], None, None
        for code, block in re.findall("\x1b\\[([0-9;]*)m|(\u2580)", line):
            if block:
                upper.append(fore)
                lower.append(back)
            elif code.startswith("38;2;"):
                fore = tuple(map(int, code[5:].split(";")))
            elif code.startswith("48;2;"):
                back = tuple(map(int, code[5:].split(";")))
        rows += [upper, lower]
    return rows


def test_blocks_are_the_picture(d, url):
    height, width, c, data = png_read(decoded(d.result(**BASE)["images"][0]))
    wanted = [[tuple(data[(y * width + x) * c:(y * width + x) * c + 3]) for x in range(width)] for y in range(height)]
    shown = denoise(url, "generate", *TINY, "--show", "blocks", "-q").ok().out
    rows = pixels_of(shown)
    zoom = len(rows) // height
    assert zoom >= 1 and rows == [[p for p in row for _ in range(zoom)] for row in wanted for _ in range(zoom)]


def test_pictures_are_shown_in_their_order(lie):
    """Whatever the order in which they come."""
    def picture(k):
        return ("image", {"index": k, "content_type": "image/png", "b64": base64.b64encode(PNGS[k]).decode()})

    liar = lie(stream(QUEUED, picture(2), picture(0), picture(1), DONE))
    shown = denoise(liar.url, "generate", "-n", "3", "--show", "kitty").ok().out
    assert [base64.b64decode(text) for text in re.findall(rb";([^;\x1b]*)\x1b\\", shown)] == PNGS


def test_bar_and_picture_on_a_terminal(d, url):
    code, out = on_terminal(url, "generate", *TINY, "--steps=300", COLORTERM="truecolor", TERM="xterm-256color")
    assert code == 2  # steps twice
    code, out = on_terminal(url, "generate", *LONG[:3], "200", *LONG[4:], "-o", "/dev/null", TERM="xterm-256color",
                            until="\r\x1b\\[K(?:\u2588)+(?:\u2591)+ +\\d+/200  [0-9.]+ (s|min) left".encode())
    assert code == 130, out
    code, out = on_terminal(url, "generate", *TINY[:4], *TINY[6:], "--steps", "60", COLORTERM="truecolor", TERM="xterm-256color")
    text = out.decode()
    assert code == 0, text
    assert re.search("\r\x1b\\[K\u2588{30} 60/60", text) and "seed 7, model tiny@1" in text
    assert "\u2580" in text and text.index("60/60") < text.index("\u2580")
    plain = on_terminal(url, "generate", *TINY, "-o", "/dev/null", TERM="dumb", LC_ALL="C")[1]
    assert b"\r\x1b[K#" in plain and b"\xe2" not in plain


def test_who_shares_the_batches(d, url):
    other = begin(url, "generate", *LONG, "-o", "/dev/null")
    heard(other, b"step")
    code, out = on_terminal(url, "generate", *LONG, "-o", "/dev/null", TERM="xterm", until=rb"\d+ rows of 2 requests")
    end(other, signal.SIGINT)
    assert code == 130, out


def test_kitty_gets_the_png_and_previews_in_place(d, url, lie):
    """How many previews a daemon sends depends on how busy it is, so those are a liar's."""
    code, out = on_terminal(url, "generate", *TINY, "--preview-every", "2", TERM="xterm-kitty")
    assert code == 0 and kitty_pictures(out)[-1] == decoded(d.result(**BASE)["images"][0])
    previews = [("preview", {"index": 0, "step": k, "b64": IMAGE[1]["b64"]}) for k in (2, 4)]
    code, out = on_terminal(lie(stream(QUEUED, *previews, IMAGE, DONE)).url, "generate", TERM="xterm-kitty")
    assert code == 0 and kitty_pictures(out) == [PNG] * 3
    rows = int(re.search(rb"r=(\d+)", out).group(1))
    assert out.count(b"\x1b[%dA\x1b[J\x1b_G" % rows) == 2


def test_previews_elsewhere_are_lines(lie):
    preview = ("preview", {"index": 0, "step": 3, "b64": IMAGE[1]["b64"]})
    done = denoise(lie(stream(QUEUED, preview, IMAGE, DONE)).url, "generate", "-o", "/dev/null").ok()
    assert "preview of sample 0 after step 3" in done.err


def test_watch_redraws(url):
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(DENOISE, [DENOISE, "status", "--watch"], environment(url, TERM="xterm"))
    out = b""
    while out.count(b"\x1b[H\x1b[J") < 2:
        out += os.read(fd, 65536)
    os.write(fd, b"\x03")  # Ctrl-C, as a terminal sends it
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    os.close(fd)


# ---- servers that lie ----


PNGS = [PNG, PNG + b"1", PNG + b"22"]
QUEUED = ("queued", {"id": "abc", "seed": 7, "position": 0, "eta_ms": 1})
IMAGE = ("image", {"index": 0, "seed": 7, "content_type": "image/png", "b64": base64.b64encode(PNG).decode()})
DONE = ("done", {"model": "m@1", "numerics": "n", "seed": 7})


NPY = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1), }".ljust(117) + b"\n" + b"abcd"


def array(k, data, kind="npy"):
    return ("image", {"index": k, "content_type": "application/x-" + kind, "b64": base64.b64encode(data).decode()})


def test_the_liar_can_be_honest(lie, tmp_path):
    """Events in pieces, with comments and carriage returns."""
    text = stream(b": ping\r\n\r\n", QUEUED, ("later_version", [1]), IMAGE, DONE)
    liar = lie([part for k in range(0, len(text), 50) for part in (text[k:k + 50], 0.001)])
    denoise(liar.url, "generate", "-o", str(tmp_path / "a.png")).ok()
    assert (tmp_path / "a.png").read_bytes() == PNG
    head, body = liar.asked[0]
    assert head.startswith("POST /generate HTTP/1.1\r\n") and "\r\nAccept: text/event-stream\r\n" in head
    assert "\r\nContent-Type: application/json\r\n" in head and json.loads(body) == {"stream": True}
    assert len(liar.asked) == 1


def test_arrays_come_in_any_order(lie):
    two = NPY[:-4] + b"efgh"
    done = denoise(lie(stream(QUEUED, array(1, two), array(0, NPY), DONE)).url, "generate", "-o", "-").ok()
    shape, data = npy_read(done.out)
    assert shape == [2, 1, 1, 1] and data == b"abcdefgh"


HOSTILE = {
    "no http": b"SSH-2.0-OpenSSH\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "endless head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 400000,
    "empty 200": plain(200, b""),
    "json instead of events": plain(200, {"id": "abc"}),
    "html": plain(404, b"<html>", kind="text/html"),
    "a redirect": plain(302, b"", "Location: http://127.0.0.1:1/"),
    "a refusal that is a list": plain(400, b"[]"),
    "a refusal of wrong types": plain(400, {"error": {"code": 5, "message": [], "param": {}}}),
    "a refusal of depth": plain(400, b'{"error":' * 100000),
    "a refusal beyond its cap": plain(400, b'{"error":{"message":"' + b"x" * 200000 + b'"}}'),
    "broken json": stream(b"event: queued\ndata: {\"id\n\n"),
    "doubled key": stream(b'event: queued\ndata: {"id":"a","id":"b"}\n\n'),
    "a list": stream(("queued", [])),
    "depth": stream(b"event: queued\ndata: " + b"[" * 100000 + b"\n\n"),
    "many values": stream(b"event: queued\ndata: [" + b"0," * 100000 + b"0]\n\n"),
    "a NUL": stream(b'event: queued\ndata: {"id":"a\x00"}\n\n'),
    "no utf-8": stream(b'event: queued\ndata: {"id":"\xff\xfe"}\n\n'),
    "an id that is a path": stream(("queued", {"id": "../models/x"})),
    "an id without end": stream(("queued", {"id": "a" * 1000})),
    "step beyond steps": stream(QUEUED, ("progress", {"step": 5, "steps": 4})),
    "no steps": stream(QUEUED, ("progress", {"step": 0, "steps": 0})),
    "steps that are text": stream(QUEUED, ("progress", {"step": "1", "steps": "2"})),
    "index -1": stream(QUEUED, ("image", dict(IMAGE[1], index=-1))),
    "index 64": stream(QUEUED, ("image", dict(IMAGE[1], index=64))),
    "index 2^80": stream(b'event: image\ndata: {"index":1208925819614629174706176,"b64":""}\n\n'),
    "index 0.5": stream(QUEUED, ("image", dict(IMAGE[1], index=0.5))),
    "no base64": stream(QUEUED, ("image", dict(IMAGE[1], b64="Zg==Zg=="))),
    "base64 with a newline": stream(QUEUED, ("image", dict(IMAGE[1], b64="Zg\n="))),
    "b64 is a number": stream(QUEUED, ("image", dict(IMAGE[1], b64=5))),
    "b64 is missing": stream(QUEUED, ("image", {"index": 0})),
    "preview without a picture": stream(QUEUED, ("preview", {"index": 0})),
    "an error without an error": stream(QUEUED, ("error", {"error": 5})),
    "arrays that differ": stream(QUEUED, array(0, NPY), array(1, NPY + b"x"), DONE),
    "arrays of other heads": stream(QUEUED, array(0, NPY), array(1, NPY.replace(b"f4", b"f8")), DONE),
    "an array without its first": stream(QUEUED, array(1, NPY), DONE),
    "an array with a hole": stream(QUEUED, array(2, NPY), array(0, NPY), DONE),
    "an array twice": stream(QUEUED, array(0, NPY), array(0, NPY)),
    "arrays of two kinds": stream(QUEUED, array(0, NPY), array(1, NPY, "safetensors"), DONE),
    "arrays without a shape": stream(QUEUED, *[array(k, NPY.replace(b"(1, ", b"(2, ")) for k in (0, 1)], DONE),
    "arrays with a long head": stream(QUEUED, *[array(k, NPY[:8] + b"\xff\xff" + NPY[10:]) for k in (0, 1)], DONE),
    "arrays that are too short": stream(QUEUED, *[array(k, NPY[:9]) for k in (0, 1)], DONE),
    "empty arrays": stream(QUEUED, *[array(k, b"") for k in (0, 1)], DONE),
    "tensors with a long head": stream(QUEUED, *[array(k, b"\xff" * 8 + b"{}", "safetensors") for k in (0, 1)], DONE),
    "tensors of no shape": stream(QUEUED, *[array(k, b"\x02" + b"\0" * 7 + b"{}", "safetensors") for k in (0, 1)], DONE),
    "tensors of no json": stream(QUEUED, *[array(k, b"\x02" + b"\0" * 7 + b"{{", "safetensors") for k in (0, 1)], DONE),
    "ends too early": stream(QUEUED, IMAGE),
    "half an event": stream(QUEUED, tail=b"event: done\ndata: {}"),
    "no events": stream(),
    "noise": stream(bytes(range(256)) * 50),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_answers(lie, tmp_path, name):
    done = denoise(lie(HOSTILE[name]).url, "generate", "-o", str(tmp_path / "a.png"))
    assert done.code in (3, 4, 5) and done.err.startswith(("denoise: ", "accepted")), (done.code, done.err)
    assert done.code != 3 or name == "a refusal of wrong types"
    assert len(done.err) < 2000 and os.listdir(tmp_path) == (["a.png"] if name == "ends too early" else [])


@pytest.mark.parametrize("kind", ["blocks", "sixel", "kitty", "iterm"])
def test_hostile_pictures(lie, kind):
    def with_size(width, height):
        return PNG[:16] + struct.pack(">II", width, height) + PNG[24:]

    pictures = [b"", b"\x89PNG\r\n\x1a\n", PNG[:30], PNG.replace(b"IDAT", b"IDAX"), with_size(2 ** 31 - 1, 2 ** 31 - 1),
                with_size(32768, 32768), with_size(0, 1), with_size(5000, 5000), b"\x1b]0;title\x07" * 10]
    for data in pictures:
        image = ("image", dict(IMAGE[1], b64=base64.b64encode(data).decode()))
        for events in ([QUEUED, image, DONE], [QUEUED, ("preview", dict(image[1], step=1)), IMAGE, DONE]):
            done = denoise(lie(stream(*events)).url, "generate", "--show", kind).ok()
            assert b"]0;title" not in done.out


def test_nothing_reaches_the_terminal_raw(lie):
    evil = "\x1b[2J\x1b]0;owned\x07\u009b5m"
    answers = (plain(400, refusal(evil, evil, evil)), plain(200, {"models": [{"name": evil, "state": evil, "description": evil}]}),
               plain(200, {"requests": [{"id": evil, "model": evil}], "next": evil}), plain(200, {"name": evil, evil: evil, "state": evil}),
               plain(200, {"version": evil, "devices": [{"name": evil, "shares": [{"id": evil}]}], "models": [{"name": evil}]}))
    for answer in answers:
        for args in (["models"], ["models", "x"], ["requests"], ["status"], ["load", "x"], ["cancel", "x"]):
            done = denoise(lie(answer).url, *args)
            text = done.out.decode() + done.err
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text), text
    for event in (("error", refusal(evil, evil)), ("done", {"model": evil, "seed": evil})):
        done = denoise(lie(stream(QUEUED, event)).url, "generate", "-o", "/dev/null")
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.err)


@pytest.mark.parametrize("args", [["models"], ["models", "x"], ["status"], ["requests"], ["load", "x"], ["cancel", "x"]])
def test_hostile_lists(lie, args):
    for body in (b"", b"[]", b"{", b"5", b"[" * 100000, b'{"models":5,"devices":{},"requests":"x","memory":[]}', b"{}",
                 b'{"models":[5,null,[],{"versions":1}],"requests":[[]],"devices":[[],{"shares":[3]}]}',
                 b'{"requests":[{"created_at":1e300,"steps":1e300,"eta_ms":-1e300,"n":-5}],"models":[{"bytes":1e308,"parameters":1e308}]}'):
        done = denoise(lie(plain(200, body)).url, *args)
        assert done.code in (0, 3, 5), done.err
    denoise(lie(plain(200, b'{"x":"' + b"x" * (5 << 20) + b'"}')).url, *args).failed(5, "larger than it can be")


STATUSES = [[], 5, {}, {"devices": 5}, {"devices": [[], {"shares": 7}, {"shares": [1, {"id": "abc", "rows": 1e300}]}]},
            {"devices": [{"shares": [{"id": "abc", "rows": -5}]}], "requests": [None], "memory": 3, "models": {"a": 1}}]


@pytest.mark.parametrize("status", STATUSES)
def test_hostile_statuses(lie, status):
    """On their own, and beside a request on a terminal."""
    done = denoise(lie(stream(("status", status))).url, "status", "--watch")
    assert done.code == (0 if isinstance(status, dict) else 5), done.err
    step = ("progress", {"step": 1, "steps": 2, "eta_ms": 1e300})
    text = stream(QUEUED, ("status", status), step, IMAGE, DONE)
    code, out = on_terminal(lie([text[:150], 0.05, text[150:]]).url, "generate", "-o", "/dev/null", TERM="xterm")
    assert code == 0 and b"1/2  years left" in out and b"Sanitizer" not in out, out


def test_a_name_is_no_path(lie):
    liar = lie(plain(200, {}))
    denoise(liar.url, "load", "../../admin/drain?x=1#y").ok()
    assert liar.asked[0][0].startswith("POST /models/..%2F..%2Fadmin%2Fdrain%3Fx%3D1%23y/load HTTP/1.1\r\n")
    denoise(liar.url, "load", "..").ok()
    assert liar.asked[1][0].startswith("POST /models/../load HTTP/1.1\r\n")


def test_a_full_queue(lie):
    full = plain(429, refusal("queue_full", "the queue is full"), "Retry-After: 1")
    liar = lie(full, full, stream(QUEUED, IMAGE, DONE))
    denoise(liar.url, "generate", "-o", "/dev/null").failed(3, "the queue is full (queue_full)", "another try in 1 s")
    assert len(liar.asked) == 1
    denoise(liar.url, "generate", "-o", "/dev/null", "--wait").ok()
    assert len(liar.asked) == 3
    liar = lie(full, plain(202, {"id": "abc", "seed": 1}))
    assert denoise(liar.url, "generate", "--async", "--wait").ok().out == b"abc\n"
    assert "Prefer: respond-async" in liar.asked[1][0]
    for header in ("X: y", "Retry-After: soon", "Retry-After: -1"):  # no time is said: no other try
        denoise(lie(plain(429, refusal("deadline"), header)).url, "generate", "-o", "/dev/null", "--wait").failed(3)
    patient = begin(lie(plain(429, refusal("queue_full"), "Retry-After: 3000")).url, "generate", "-o", "/dev/null", "--wait")
    assert b"trying again in 3000 s" in patient.stderr.readline()
    end(patient, signal.SIGINT).failed(130)


def test_wait_resumes_where_it_was_cut(lie):
    def cut(text):
        """Chunked, without the last chunk."""
        head, body = text.split(b"\r\n\r\n", 1)
        return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body)

    first = cut(stream(b"id: 41\nevent: progress\ndata: {\"step\":1,\"steps\":4,\"eta_ms\":1}\n\n"))
    liar = lie(first, stream(b"id: 42\nevent: done\ndata: {\"seed\":7}\n\n"),
               plain(200, {"id": "abc", "state": "succeeded", "images": [{"index": 0}]}), plain(200, PNG, kind="image/png"))
    assert denoise(liar.url, "wait", "abc", "-o", "-").ok().out == PNG
    assert [head.split("\r\n")[0] for head, _ in liar.asked] == [
        "GET /requests/abc/events HTTP/1.1", "GET /requests/abc/events HTTP/1.1", "GET /requests/abc HTTP/1.1",
        "GET /requests/abc/images/0 HTTP/1.1"]
    assert "Last-Event-ID" not in liar.asked[0][0] and "\r\nLast-Event-ID: 41" in liar.asked[1][0]


@pytest.mark.parametrize("info, code", [
    ({"state": "succeeded", "images": []}, 5), ({"state": "succeeded", "images": [{}] * 65}, 5), ({"state": "running"}, 5),
    ({"state": "cancelled"}, 3), ({"state": "failed", "error": {"code": "backend", "message": "m"}}, 5), ({}, 5), ({"state": 7}, 5),
])
def test_hostile_waits(lie, info, code):
    denoise(lie(stream(), plain(200, info), plain(200, PNG, kind="image/png")).url, "wait", "abc", "-o", "/dev/null").failed(code)
