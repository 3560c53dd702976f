"""Fixtures that run the real daemon on a port of its own choosing.

Every daemon that a test starts must end with status 0 after SIGTERM and must not have been reported by a sanitizer."""
import json
import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time

import pytest


class Reply:
    def __init__(self, status, reason, headers, body):
        self.status, self.reason, self.headers, self.body = status, reason, headers, body

    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        return self.json()["error"]["code"]


class Client:
    """One raw connection: what is sent is sent as it is, what comes back is read by the letter."""

    def __init__(self, address, timeout=10):
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(address)
        else:
            self.sock = socket.create_connection(address, timeout=timeout)
        self.buf = b""

    def send(self, data):
        self.sock.sendall(data if isinstance(data, bytes) else data.encode("latin-1"))

    def more(self):
        data = self.sock.recv(65536)
        self.buf += data
        return bool(data)

    def take(self, n):
        while len(self.buf) < n:
            assert self.more(), "closed in the middle: %r" % self.buf[:200]
        out, self.buf = self.buf[:n], self.buf[n:]
        return out

    def until(self, mark):
        while mark not in self.buf:
            assert self.more(), "closed in the middle: %r" % self.buf[:200]
        out, self.buf = self.buf.split(mark, 1)
        return out

    def head(self):
        lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status, reason = lines[0].split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {}
        for line in lines[1:]:
            name, value = line.split(":", 1)
            assert name.lower() not in headers, "%s twice" % name
            headers[name.lower()] = value.strip()
        return int(status), reason, headers

    def reply(self, head_only=False):
        status, reason, headers = self.head()
        if status == 100:
            return self.reply(head_only)
        body = b""
        if head_only or status in (204, 304):
            pass
        elif headers.get("transfer-encoding") == "chunked":
            while True:
                n = int(self.until(b"\r\n"), 16)
                body += self.take(n)
                assert self.take(2) == b"\r\n"
                if n == 0:
                    break
        else:
            body = self.take(int(headers["content-length"]))
        return Reply(status, reason, headers, body)

    def ask(self, method, path, body=None, headers=(), host="localhost"):
        lines = ["%s %s HTTP/1.1" % (method, path), "Host: %s" % host] + ["%s: %s" % h for h in dict(headers).items()]
        if body is not None:
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            if "Content-Type" not in dict(headers):
                lines.append("Content-Type: application/json")
            lines.append("Content-Length: %d" % len(body))
        self.send("\r\n".join(lines) + "\r\n\r\n")
        if body:
            self.send(body)
        return self.reply(method == "HEAD")

    def closed(self):
        """The other side has closed (and said nothing more)."""
        try:
            while self.more():
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass
        return self.buf == b""

    def close(self):
        self.sock.close()


def environment(extra=None):
    """Ours without DENOISED_BIN and its like: an unknown DENOISED_* variable stops the daemon's start."""
    return dict({k: v for k, v in os.environ.items() if not k.startswith("DENOISED_")}, **(extra or {}))


def limit_files(n):
    return (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))) if n else None


class Daemon:
    def __init__(self, binary, args, env=None, nofile=None):
        full = environment(env)
        self.proc = subprocess.Popen([binary] + list(args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=full,
                                     preexec_fn=limit_files(nofile))
        self.log, self.addresses, self.clients = [], [], []
        self.seen = threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.proc.stderr:
            with self.seen:
                self.log.append(line.decode(errors="replace").rstrip("\n"))
                self.seen.notify_all()
        with self.seen:
            self.log.append(None)
            self.seen.notify_all()

    def wait_log(self, pattern, timeout=10):
        """The first line that matches; fails when the daemon ends or the time is over."""
        end, at = time.monotonic() + timeout, 0
        with self.seen:
            while True:
                while at < len(self.log):
                    line = self.log[at]
                    assert line is not None, "it ended: %s" % self.log
                    match = re.search(pattern, line)
                    if match:
                        return match
                    at += 1
                assert self.seen.wait(max(0, end - time.monotonic())), "no %s in %s" % (pattern, self.log[-20:])

    def started(self):
        match = self.wait_log(r"listening on (?:http://(\S+):(\d+)|unix:(\S+))", 20)
        self.address = match.group(3) or (match.group(1).strip("[]"), int(match.group(2)))
        return self

    def client(self, timeout=10):
        client = Client(self.address, timeout)
        self.clients.append(client)
        return client

    def ask(self, *args, **kw):
        client = self.client()
        try:
            return client.ask(*args, **kw)
        finally:
            client.close()

    def wait_status(self, timeout=10, **wanted):
        """Ask /status until its members have these values."""
        end = time.monotonic() + timeout
        while True:
            status = self.ask("GET", "/status").json()
            if all(status.get(k) == v for k, v in wanted.items()):
                return status
            assert time.monotonic() < end, "%s, wanted %s" % (status, wanted)
            time.sleep(0.01)

    def fds(self):
        return len(os.listdir("/proc/%d/fd" % self.proc.pid))

    def cpu_s(self):
        with open("/proc/%d/stat" % self.proc.pid) as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_kb(self):
        with open("/proc/%d/status" % self.proc.pid) as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1))

    def stop(self, want=0, sig=signal.SIGTERM):
        for client in self.clients:
            client.close()
        if self.proc.poll() is None and sig:
            self.proc.send_signal(sig)
        try:
            status = self.proc.wait(30)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            raise
        self.reader.join(10)
        text = "\n".join(line for line in self.log if line)
        assert "Sanitizer" not in text and "runtime error" not in text, text
        assert status == want, "status %s: %s" % (status, text)
        return text


@pytest.fixture
def start():
    """start(*args) runs a daemon on an ephemeral port; all of them are stopped and judged at the end."""
    daemons = []

    def run(*args, binary=None, listen="127.0.0.1:0", env=None, nofile=None):
        daemon = Daemon(binary or os.environ["DENOISED_BIN"], ["--listen", listen] + list(args), env, nofile)
        daemons.append(daemon)
        return daemon.started()

    yield run
    for daemon in daemons:
        if daemon.proc.returncode is None:
            daemon.stop()


@pytest.fixture
def start_fails():
    """start_fails(*args): it must not start, and ends by itself; what it said on stderr."""

    def run(*args, listen="127.0.0.1:0", nofile=None):
        done = subprocess.run([os.environ["DENOISED_BIN"], "--listen", listen] + list(args), capture_output=True, timeout=20,
                              env=environment(), preexec_fn=limit_files(nofile))
        text = done.stderr.decode(errors="replace")
        assert done.returncode in (1, 2), (done.returncode, text)
        assert "listening" not in text and "Sanitizer" not in text and "runtime error" not in text, text
        return text

    return run


@pytest.fixture(scope="module")
def shared():
    """One daemon without special arguments for the tests that leave no trace."""
    daemon = Daemon(os.environ["DENOISED_BIN"], ["--listen", "127.0.0.1:0"]).started()
    yield daemon
    daemon.stop()


# Of the real daemon. The module `serving` is for tests that are told where it is and its goldens are.


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of small models."""
    from serving import make_models
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def d(models):
    """A daemon with all of them loaded."""
    from serving import serving
    with serving(models) as daemon:
        yield daemon
