"""`denoise`, run by tests: on its own, on a terminal, and against servers that lie."""
import base64
import fcntl
import json
import os
import pty
import re
import socket
import struct
import subprocess
import termios
import threading
import time

import pytest

DENOISE = os.environ["DENOISE_BIN"]
TERMINAL = ("TERM", "TERM_PROGRAM", "LC_TERMINAL", "COLORTERM", "TMUX", "STY", "KITTY_WINDOW_ID")
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")


def environment(url, **more):
    env = {k: v for k, v in os.environ.items() if k not in TERMINAL and not k.startswith("DENOISED_")}
    return {**env, "DENOISED_URL": url, "LC_ALL": "C.UTF-8", "TZ": "UTC", **more}


def url_of(daemon):
    return "unix:" + daemon.address if isinstance(daemon.address, str) else "http://%s:%d" % daemon.address


class Done:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err
        assert "Sanitizer" not in err and "runtime error" not in err, err
        assert code >= 0, (code, err)

    def ok(self):
        assert self.code == 0, (self.code, self.err)
        return self

    def failed(self, code, *texts):
        assert self.code == code, (self.code, self.err)
        for text in texts:
            assert text in self.err, self.err
        return self


def denoise(url, *args, stdin=b"", timeout=60, cwd=None, **env):
    done = subprocess.run([DENOISE] + list(args), input=stdin, capture_output=True, timeout=timeout, cwd=cwd,
                          env=environment(url, **env))
    return Done(done.returncode, done.stdout, done.stderr.decode())


def begin(url, *args):
    return subprocess.Popen([DENOISE] + list(args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(url))


def end(process, sig=None):
    if sig:
        process.send_signal(sig)
    out, err = process.communicate(timeout=30)
    return Done(process.returncode, out, err.decode())


def heard(process, text):
    """Waits for a line with this text on standard error."""
    said = b""
    while text not in said:
        line = process.stderr.readline()
        said += line
        assert line, said
    return said


def on_terminal(url, *args, columns=80, rows=24, until=None, **env):
    """(exit code, everything that a terminal of this size got); when `until` is there, Ctrl-C is pressed."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(DENOISE, [DENOISE] + list(args), environment(url, **env))
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 8 * columns, 16 * rows))
    out = b""
    while True:
        try:
            data = os.read(fd, 65536)
        except OSError:
            break
        if not data:
            break
        out += data
        if until and re.search(until, out):
            os.write(fd, b"\x03")
            until = None
    assert not until, out
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out


def kitty_pictures(out):
    pictures, part = [], b""
    for more, text in re.findall(rb"\x1b_G(?:a=T[^;]*m=|m=)([01]);([^\x1b]*)\x1b\\", out):
        part += base64.b64decode(text)
        if more == b"0":
            pictures.append(part)
            part = b""
    return pictures


# ---- servers that lie ----


class Liar:
    """Answers the k-th connection with the k-th of `answers`, the last one for ever. Bytes are sent as they are; a float in a
    list is a pause; a function of the socket does as it likes, with a body that nobody has read; `here.head` is what that connection asked. The
    connection is then closed."""

    def __init__(self, *answers):
        self.answers, self.asked, self.here = answers, [], threading.local()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.socket.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client = self.socket.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.answer, args=(client,), daemon=True).start()

    def answer(self, client):
        data = b""
        client.settimeout(20)
        try:
            while b"\r\n\r\n" not in data:
                data += client.recv(65536)
            head, body = data.split(b"\r\n\r\n", 1)
            parts = self.answers[min(len(self.asked), len(self.answers) - 1)]
            if callable(parts):
                self.asked.append((head.decode(), body))
                self.here.head = head.decode()
                parts(client)
                client.close()
                return
            if b"100-continue" in head:
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.I)
            while length and len(body) < int(length.group(1)):
                body += client.recv(65536)
            self.asked.append((head.decode(), body))
            for part in parts if isinstance(parts, list) else [parts]:
                if isinstance(part, float):
                    time.sleep(part)
                else:
                    client.sendall(part)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
        except OSError:
            pass
        client.close()

    def close(self):
        self.socket.close()


@pytest.fixture
def lie():
    liars = []

    def make(*answers):
        liars.append(Liar(*answers))
        return liars[-1]

    yield make
    for liar in liars:
        liar.close()


def plain(status, body, *headers, kind="application/json"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = ["HTTP/1.1 %d X" % status, "Content-Type: " + kind, "Content-Length: %d" % len(body)] + list(headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def stream(*events, tail=b""):
    """Events are (name, data) or bytes."""
    out = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    for e in events:
        out += e if isinstance(e, bytes) else b"event: %s\ndata: %s\n\n" % (e[0].encode(), json.dumps(e[1]).encode())
    return out + tail


def refusal(code, message="no", param=None):
    return {"error": {"type": "x", "code": code, "param": param, "message": message}}
