"""Who may ask: Host, Origin, tokens, addresses."""
import os
import stat

import pytest

from test_http import refused

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef-admin"


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# team\n\n%s alice\n%s bob use,admin\n" % (ALICE, BOB))
    return str(path)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.1.2.3:8760", "[::1]", "[::1]:80"])
def test_loopback_hosts(shared, host):
    assert shared.ask("GET", "/healthz", host=host).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "128.0.0.1", "[::2]", "0.0.0.0", "127.0.0.1.x.y"])
def test_foreign_hosts(shared, host):
    refused(shared.ask("GET", "/healthz", host=host), 403, "host_not_allowed", "Host")


@pytest.mark.parametrize("host", ["", "a b", "localhost:", "localhost:99999", "localhost:8a", "[::1", "[]", "[::1]x", "a/b", "é"])
def test_malformed_hosts(shared, host):
    refused(shared.ask("GET", "/healthz", host=host), 400, "bad_header", "Host")


def test_host_names(start):
    daemon = start("--host-names", "diffuse.example,Other.Example")
    assert daemon.ask("GET", "/healthz", host="diffuse.example:80").status == 200
    assert daemon.ask("GET", "/healthz", host="other.example").status == 200
    refused(daemon.ask("GET", "/healthz", host="x.diffuse.example"), 403, "host_not_allowed", "Host")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost.evil.example", "http://localhost:81", "localhost", ""])
def test_foreign_origins(shared, origin):
    reply = refused(shared.ask("POST", "/generate", {}, {"Origin": origin}), 403, "origin_not_allowed", "Origin")
    assert "access-control-allow-origin" not in reply.headers


def test_own_origin(shared):
    assert shared.ask("POST", "/generate", {}, {"Origin": "http://localhost"}).status == 200
    assert shared.ask("POST", "/generate", {}, {"Origin": "https://localhost"}).status == 200  # behind a TLS proxy
    assert shared.ask("POST", "/generate", {}, {"Origin": "http://localhost:8760"}, host="localhost:8760").status == 200
    assert shared.ask("POST", "/generate", {}, {"Origin": "http://[::1]:8760"}, host="[::1]:8760").status == 200


def test_cors(start):
    daemon = start("--cors-origin", "https://app.example")
    headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    preflight = daemon.ask("OPTIONS", "/generate", headers=headers)
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert preflight.headers["access-control-allow-methods"] == "POST"
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers
    reply = daemon.ask("POST", "/generate", {}, {"Origin": "https://app.example"})
    assert reply.status == 200 and reply.headers["access-control-allow-origin"] == "https://app.example"
    assert reply.headers["vary"] == "Origin" and "X-Request-Id" in reply.headers["access-control-expose-headers"]
    lost = refused(daemon.ask("GET", "/nosuch", headers={"Origin": "https://app.example"}), 404, "not_found")
    assert lost.headers["access-control-allow-origin"] == "https://app.example"  # a page may read its errors
    refused(daemon.ask("OPTIONS", "/generate", headers={"Origin": "https://evil.example"}), 403, "origin_not_allowed", "Origin")
    assert daemon.ask("GET", "/healthz").headers["vary"] == "Origin"


def bearer(token):
    return {"Authorization": "Bearer " + token}


def test_tokens(start, tokens):
    daemon = start("--token-file", tokens)
    for headers in ({}, bearer("wrong-0123456789abcdef"), bearer(""), bearer(ALICE[:-1]), bearer(ALICE + "x"),
                    {"Authorization": ALICE}, {"Authorization": "Basic " + ALICE}):
        reply = refused(daemon.ask("GET", "/status", headers=headers), 401, "unauthorized", "Authorization")
        assert reply.headers["www-authenticate"] == "Bearer"
    assert daemon.ask("GET", "/requests/x", headers=bearer(ALICE)).json()["tenant"] == "alice"
    assert daemon.ask("GET", "/requests/x", headers={"Authorization": "bearer " + BOB}).json()["tenant"] == "bob"
    for path in ("/healthz", "/readyz", "/", "/openapi.json"):
        assert daemon.ask("GET", path).status in (200, 503)
    refused(daemon.ask("GET", "/metrics"), 401, "unauthorized", "Authorization")
    daemon.ask("GET", "/status", headers=dict(bearer(ALICE), **{"X-Request-Id": "hers"}))
    daemon.wait_log("id=hers tenant=alice ")


def test_a_body_without_a_token_is_not_read(start, tokens):
    client = start("--token-file", tokens).client()
    client.send("POST /denoise HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-safetensors\r\n"
                "Content-Length: 1000000\r\n\r\n")
    refused(client.reply(), 401, "unauthorized", "Authorization")
    assert client.closed()


def test_admin_scope(start, tokens):
    daemon = start("--token-file", tokens)
    refused(daemon.ask("POST", "/admin/drain", headers=bearer(ALICE)), 403, "forbidden", "Authorization")
    assert daemon.ask("POST", "/admin/drain", headers=bearer(BOB)).status == 202


def test_the_log_has_no_token(start, tokens):
    daemon = start("--token-file", tokens)
    daemon.ask("GET", "/status?token=" + ALICE, headers=bearer(ALICE))
    assert ALICE not in daemon.stop()


@pytest.mark.parametrize("text,why", [("short\n", "16 to 256"), ("x" * 257, "16 to 256"), ("", "no token"),
                                      ("%s a b c\n" % ALICE, ":1: more than"), ("\n%s al/ice\n" % ALICE, ":2: a name"),
                                      ("%s alice root\n" % ALICE, "scopes"), ("%s a\n%s b\n" % (ALICE, ALICE), "twice"),
                                      ("x" * 600, "longer than"), ("\x7f" * 20, "visible")])
def test_bad_token_files_stop_the_start(start_fails, tmp_path, text, why):
    path = tmp_path / "tokens"
    path.write_text(text)
    said = start_fails("--token-file", str(path))
    assert why in said and ALICE not in said


def test_missing_token_file(start_fails, tmp_path):
    assert "No such file" in start_fails("--token-file", str(tmp_path / "none"))


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
def test_open_addresses_need_tokens(start, start_fails, tokens, listen):
    said = start_fails(listen=listen)
    assert "token-file" in said and "insecure" in said
    assert start("--token-file", tokens, listen=listen).ask("GET", "/healthz").status == 200
    daemon = start("--insecure", listen=listen)
    daemon.wait_log("level=warn event=insecure")
    assert daemon.ask("GET", "/healthz").status == 200


def test_unix_socket(start, start_fails, tmp_path):
    path = str(tmp_path / "d.sock")
    daemon = start(listen="unix:" + path)
    assert daemon.address == path and daemon.ask("GET", "/healthz").status == 200
    assert "Address already in use" in start_fails(listen="unix:" + path)
    daemon.stop()
    assert not os.path.exists(path)


def test_a_socket_left_by_a_crash_is_replaced_and_nothing_else_is(start, start_fails, tmp_path):
    path = tmp_path / "d.sock"
    daemon = start(listen="unix:%s" % path)
    daemon.proc.kill()
    daemon.proc.wait()
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert start(listen="unix:%s" % path).ask("GET", "/healthz").status == 200
    other = tmp_path / "file"
    other.write_text("precious")
    assert "Address already in use" in start_fails(listen="unix:%s" % other)
    assert other.read_text() == "precious"


def test_ipv6_and_several_addresses(start):
    daemon = start(listen="[::1]:0,127.0.0.1:0")
    assert daemon.address[0] == "::1"
    assert daemon.ask("GET", "/healthz", host="[::1]:%d" % daemon.address[1]).status == 200
    match = daemon.wait_log(r"listening on http://127\.0\.0\.1:(\d+)")
    daemon.address = ("127.0.0.1", int(match.group(1)))
    assert daemon.ask("GET", "/healthz").status == 200


def test_taken_port(start, start_fails):
    daemon = start()
    assert "Address already in use" in start_fails(listen="127.0.0.1:%d" % daemon.address[1])


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:99999", "nosuch.invalid:1", "unix:", "unix:/" + "x" * 200, "[::1:1"])
def test_bad_addresses(start_fails, listen):
    assert "listen" in start_fails(listen=listen)
