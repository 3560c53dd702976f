"""The process: starting, draining, signals, configuration, logs."""
import json
import os
import re
import signal
import subprocess
import time

import pytest

from conftest import environment
from test_http import refused
from test_http_traps import GET, HANG, events_of, post


def test_ready_when_the_start_set_is_loaded(start):
    daemon = start()
    end = time.monotonic() + 5
    while daemon.ask("GET", "/readyz").status != 200:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert daemon.ask("GET", "/readyz").json() == {"status": "ready"}


def test_not_ready_while_it_is_not(start):
    daemon = start("--load", "never")
    time.sleep(0.1)
    refused(daemon.ask("GET", "/readyz"), 503, "not_ready")
    assert daemon.ask("GET", "/healthz").status == 200


def test_drain_finishes_what_runs_and_refuses_the_rest(start):
    daemon = start()
    client, kept = daemon.client(), daemon.client()
    assert kept.ask("GET", "/healthz").status == 200
    client.send(post('{"do":"later","ms":600}'))
    daemon.wait_status(open=1)
    daemon.proc.send_signal(signal.SIGTERM)
    daemon.wait_log("event=draining")
    refused(daemon.ask("GET", "/readyz"), 503, "draining")
    refused(daemon.ask("POST", "/generate", {}), 503, "draining")
    assert daemon.ask("GET", "/healthz").status == 200
    reply = kept.ask("GET", "/requests/x")
    assert reply.status == 200 and reply.headers["connection"].lower() == "close"
    assert client.reply().json() == {"later": True}
    text = daemon.stop(sig=None)
    assert "event=drained" in text and "drain_timeout" not in text and "event=stopped" in text


def test_drain_timeout_answers_what_is_left(start):
    daemon = start("--drain-ms", "200")
    hang, stream, half = daemon.client(), daemon.client(), daemon.client()
    hang.send(HANG)
    stream.send(GET % "/requests/silent/events")
    half.send(post("{}")[:-1])
    daemon.wait_status(open=2)
    daemon.proc.send_signal(signal.SIGTERM)
    refused(hang.reply(), 503, "draining")
    assert events_of(stream.reply().body)[-1][1] == "error"
    text = daemon.stop(sig=None)
    assert "drain_timeout" in text and "code=503" in text


def test_second_signal_ends_at_once(start):
    daemon = start()
    client = daemon.client()
    client.send(HANG)
    daemon.wait_status(open=1)
    daemon.proc.send_signal(signal.SIGTERM)
    daemon.wait_log("event=draining")
    daemon.proc.send_signal(signal.SIGTERM)
    assert daemon.proc.wait(5) == 128 + signal.SIGTERM
    daemon.stop(want=128 + signal.SIGTERM)


def test_admin_drain_goes_on_serving(start):
    daemon = start()
    assert daemon.ask("POST", "/admin/drain").json() == {"status": "draining"}
    refused(daemon.ask("POST", "/generate", {}), 503, "draining")
    refused(daemon.ask("GET", "/readyz"), 503, "draining")
    assert daemon.ask("POST", "/admin/drain").status == 202
    assert daemon.ask("GET", "/healthz").status == 200


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_an_idle_daemon(start, signum):
    daemon = start()
    daemon.client()
    daemon.stop(sig=signum)


def test_stop_with_every_sort_of_connection(start):
    daemon = start("--drain-ms", "0")
    for text in ("", "GET /hea", post("{}")[:-1], HANG, post('{"do":"later","ms":100}'), GET % "/requests/silent/events",
                 GET % "/requests/flood/events", post('{"do":"big","bytes":9000000}'), GET % "/healthz") * 5:
        daemon.client().send(text)
    daemon.wait_log("route=/healthz")
    daemon.proc.send_signal(signal.SIGTERM)
    assert daemon.proc.wait(10) == 0
    daemon.stop()


def run(*args, env=None):
    return subprocess.run([os.environ["DENOISED_BIN"]] + list(args), capture_output=True, timeout=20, env=environment(env))


def test_version_help_and_print_config():
    assert re.fullmatch(r"denoised \d+\.\d+\.\d+\n", run("--version").stdout.decode())
    assert "--listen" in run("--help").stdout.decode()
    done = run("--print-config", "--drain-ms", "1234", env={"DENOISED_MAX_ROWS": "7"})
    assert done.returncode == 0
    text = done.stdout.decode()
    assert re.search("^drain-ms *= *1234$", text, re.M) and re.search("^max-rows *= *7$", text, re.M)


def test_check(tmp_path):
    done = run("--check", "--models", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, b"ok\n")
    done = run("--check", "--models", str(tmp_path / "none"))
    assert done.returncode == 1 and b"none" in done.stderr
    done = run("--check", "--models", str(tmp_path), "--token-file", str(tmp_path / "none"))
    assert done.returncode == 1 and b"No such file" in done.stderr


@pytest.mark.parametrize("args,env", [(["--nosuch"], {}), (["--drain-ms", "x"], {}), (["--drain-ms", "-1"], {}),
                                      ([], {"DENOISED_NOSUCH": "1"}), (["--config", "/nonexistent.ini"], {})])
def test_bad_configuration_is_a_usage_error(args, env):
    done = run(*args, env=env)
    assert done.returncode == 2 and done.stderr.startswith(b"denoised: ")


def test_json_log(start):
    daemon = start("--log-format", "json")
    daemon.ask("POST", "/generate", {}, {"X-Request-Id": "one"})
    daemon.wait_log('"id":"one"')
    text = daemon.stop()
    lines = [json.loads(line) for line in text.splitlines() if not line.startswith("listening")]
    line = [x for x in lines if x.get("id") == "one"][0]
    assert line["event"] == "request" and line["code"] == 200 and line["route"] == "/generate"
    assert line["model"] == "echo" and line["tenant"] == "local" and {"rows", "queue_ms", "device_ms", "ms"} <= set(line)
    assert lines[-1]["event"] == "stopped"


def test_logfmt_quotes_what_needs_it(start):
    daemon = start()
    daemon.proc.send_signal(signal.SIGTERM)
    assert 'event=stopping msg="signal 15"' in daemon.stop(sig=None)


def test_a_stderr_that_nobody_reads_does_not_hold_up_the_loop(tmp_path):
    """Lines are dropped and counted; answers go on."""
    path = str(tmp_path / "d.sock")
    proc = subprocess.Popen([os.environ["DENOISED_BIN"], "--listen", "unix:" + path], stderr=subprocess.PIPE,
                            env=environment())
    try:
        from conftest import Client
        end = time.monotonic() + 10
        while not os.path.exists(path) and time.monotonic() < end:
            time.sleep(0.01)
        client = Client(path)
        for _ in range(60):
            client.send(GET % "/healthz" * 60)
            for _ in range(60):
                assert client.reply().status == 200
        client.close()
        proc.send_signal(signal.SIGTERM)
        text = proc.stderr.read().decode()
        assert proc.wait(10) == 0
        lost = sum(int(n) for n in re.findall(r"event=log_lost lines=(\d+)", text))
        written = text.count("event=") - text.count("event=log_lost")
        # 3600 requests, and stopping, draining, drained, stopped, some of which may be among the lost
        assert lost > 0 and lost + written == 3604
    finally:
        if proc.poll() is None:
            proc.kill()


def test_state_is_ours_alone(start, tmp_path):
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    first = start("--state", str(folder))
    assert folder.stat().st_mode & 0o777 == 0o700
    second = subprocess.run([os.environ["DENOISED_BIN"], "--listen", "127.0.0.1:0", "--state", str(folder)], env=environment(),
                            capture_output=True, text=True, timeout=20)
    assert second.returncode == 1 and "in use by another denoised" in second.stderr
    first.stop()
    start("--state", str(folder)).stop()
    start("--state", str(tmp_path / "new")).stop()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("x")
    bad = subprocess.run([os.environ["DENOISED_BIN"], "--listen", "127.0.0.1:0", "--state", str(tmp_path / "file")],
                         env=environment(), capture_output=True, text=True, timeout=20)
    assert bad.returncode == 1 and "--state" in bad.stderr
