"""Requests as they should be and as they should not be: methods, types, lengths, headers, paths, one byte over each limit."""
import json
import re

import pytest

URI_MAX, HEAD_MAX, FIELDS_MAX, QUERY_MAX, BODY_MAX = 4096, 12 << 10, 64, 16, 64 << 10
GENERATE = dict(method="POST", path="/generate")


def refused(reply, status, code, param=None):
    assert reply.status == status, (reply.status, reply.body)
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"type", "code", "param", "message"}
    assert error["code"] == code and error["param"] == param and error["message"], error
    return reply


def test_health(shared):
    reply = shared.ask("GET", "/healthz")
    assert reply.status == 200 and reply.json() == {"status": "ok"}
    assert re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"])
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_head_is_get_without_the_body(shared):
    client = shared.client()
    head = client.ask("HEAD", "/healthz")
    get = client.ask("GET", "/healthz")
    assert head.status == 200 and head.headers["content-length"] == get.headers["content-length"] == str(len(get.body))


def test_options_says_what_is_allowed(shared):
    reply = shared.ask("OPTIONS", "/generate")
    assert reply.status == 204 and reply.headers["allow"] == "POST, OPTIONS"
    assert "access-control-allow-origin" not in reply.headers
    refused(shared.ask("OPTIONS", "/nowhere"), 404, "not_found")


def test_wrong_method_names_the_right_ones(shared):
    reply = refused(shared.ask("GET", "/generate"), 405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"
    reply = refused(shared.ask("POST", "/requests/abc", {}), 405, "method_not_allowed")
    assert reply.headers["allow"] == "GET, HEAD, DELETE"
    refused(shared.ask("BREW", "/healthz"), 405, "method_not_allowed")


def test_unknown_paths(shared):
    for path in ("/nosuch", "/generate/", "/requests/", "/requests//events", "/healthz/x", "/../etc/passwd", "//healthz"):
        refused(shared.ask("GET", path), 404, "not_found")


def test_page_and_its_files(shared):
    client = shared.client()
    page = client.ask("GET", "/")
    assert page.status == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    again = client.ask("GET", "/", headers={"If-None-Match": page.headers["etag"]})
    assert again.status == 304 and again.body == b""
    other = client.ask("GET", "/", headers={"If-None-Match": '"other"'})
    assert other.status == 200 and other.body == page.body
    assert client.ask("GET", "/app.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert client.ask("HEAD", "/app.js").status == 200
    refused(client.ask("DELETE", "/app.js"), 405, "method_not_allowed")


def test_path_arguments_and_query_are_decoded(shared):
    reply = shared.ask("GET", "/requests/a%2Fb?state=a%20b+c&x=%C3%A9&empty").json()
    assert reply["arg"] == "a/b" and reply["path"] == "/requests/a%2Fb"
    assert (reply["state"], reply["x"], reply["empty"]) == ("a b c", "é", "")


@pytest.mark.parametrize("query", ["a=%", "a=%1", "a=%zz", "a=%00", "a=%0a", "%7f=1"])
def test_bad_escapes(shared, query):
    refused(shared.ask("GET", "/requests/x?" + query), 400, "invalid")


def test_doubled_and_too_many_query_parameters(shared):
    refused(shared.ask("GET", "/requests/x?a=1&a=2"), 400, "duplicate_field", "a")
    good = "&".join("p%d=1" % i for i in range(QUERY_MAX))
    assert shared.ask("GET", "/requests/x?" + good).status == 200
    refused(shared.ask("GET", "/requests/x?" + good + "&q=1"), 400, "limit")


def test_uri_limit(shared):
    path = "/requests/x?a=" + "b" * (URI_MAX - len("/requests/x?a="))
    assert shared.ask("GET", path).status == 200
    refused(shared.ask("GET", path + "b"), 414, "uri_too_long")


def test_head_limits(shared):
    fixed = len("Host") + len("localhost") + 4 + len("X-A") + 4
    assert shared.ask("GET", "/healthz", headers={"X-A": "b" * (HEAD_MAX - fixed)}).status == 200
    refused(shared.ask("GET", "/healthz", headers={"X-A": "b" * (HEAD_MAX - fixed + 1)}), 431, "headers_too_large")
    assert shared.ask("GET", "/healthz", headers={"X-%d" % i: "1" for i in range(FIELDS_MAX - 1)}).status == 200
    refused(shared.ask("GET", "/healthz", headers={"X-%d" % i: "1" for i in range(FIELDS_MAX)}), 431, "headers_too_large")


def raw(shared, text):
    client = shared.client()
    client.send(text)
    reply = client.reply()
    assert client.closed()
    return reply


def test_what_libmicrohttpd_refuses_is_json_too(shared):
    refused(raw(shared, "GET /%s HTTP/1.1\r\n" % ("a" * 40000)), 414, "uri_too_long")
    refused(raw(shared, "GET / HTTP/1.1\r\nX: %s\r\n" % ("a" * 40000)), 431, "headers_too_large")
    refused(raw(shared, "GET / FTP/1.1\r\n\r\n"), 400, "invalid")
    assert raw(shared, "GET / HTTP/2.0\r\n\r\n").status == 505
    refused(raw(shared, "GET / HTTP/1.1\r\nHost localhost\r\n\r\n"), 400, "invalid")
    refused(raw(shared, "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9x\r\n\r\n"), 400, "bad_header")
    refused(raw(shared, "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %s\r\n\r\n" % ("9" * 30)), 400, "bad_header")
    bad_chunk = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" \
                "Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    refused(raw(shared, bad_chunk), 400, "invalid")


HEADS = {
    "no host": ("GET /healthz HTTP/1.1\r\n\r\n", 400, "bad_header", "Host"),
    "no host in 1.0": ("GET /healthz HTTP/1.0\r\n\r\n", 400, "bad_header", "Host"),
    "two hosts": ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400, "bad_header", "Host"),
    "bad host": ("GET /healthz HTTP/1.1\r\nHost: a@b\r\n\r\n", 400, "bad_header", "Host"),
    "length and coding": ("POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
                          "Transfer-Encoding: chunked\r\n\r\n", 400, "bad_header", "Content-Length"),
    "two lengths": ("POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
                    400, "bad_header", "Content-Length"),
    "unknown coding": ("POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                       400, "bad_header", "Transfer-Encoding"),
    "name with a blank": ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length : 2\r\n\r\n", 400, "bad_header", None),
    "name not a token": ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nA(b): 2\r\n\r\n", 400, "bad_header", None),
    "control character": ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: a\x01b\r\n\r\n", 400, "bad_header", "X-A"),
    "doubled type": ("POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     "content-type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 400, "bad_header", "Content-Type"),
    "absolute form": ("GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "invalid", None),
    "blank in the path": ("GET /heal thz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "invalid", None),
    "bytes in the path": ("GET /\xe9 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "invalid", None),
}


@pytest.mark.parametrize("name", HEADS)
def test_head_hygiene(shared, name):
    text, status, code, param = HEADS[name]
    client = shared.client()
    client.send(text)
    refused(client.reply(), status, code, param)


def test_lists_may_be_repeated(shared):
    client = shared.client()
    client.send("GET /status HTTP/1.1\r\nHost: localhost\r\nAccept: text/html;q=0.5\r\nAccept: text/event-stream\r\n\r\n")
    assert client.reply().json()["gives"] == "text/event-stream"


def test_body_limit(shared):
    pad = BODY_MAX - len(json.dumps({"do": "echo", "pad": ""}))
    body = json.dumps({"do": "echo", "pad": "x" * pad}).encode()
    assert len(body) == BODY_MAX
    assert shared.ask("POST", "/generate", body).body == body
    client = shared.client()
    client.send("POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" %
                (BODY_MAX + 1))
    refused(client.reply(), 413, "too_large")  # not one byte of the body was sent
    assert client.closed()


def test_a_body_that_is_refused_is_not_waited_for(shared):
    client = shared.client()
    client.send("POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                "Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
    refused(client.reply(), 413, "too_large")


def test_expect_continue(shared):
    client = shared.client()
    client.send("POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
                "Content-Length: 2\r\n\r\n")
    assert client.head()[0] == 100
    client.send("{}")
    assert client.reply().body == b"{}"


def test_expect_continue_without_a_body(shared):
    client = shared.client()
    one = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\r\n"
    client.send(one + one)
    for _ in range(2):
        assert client.reply().json() == {"status": "ok"}


def test_chunked_body(shared):
    client = shared.client()
    head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.send(head + "1\r\n{\r\n1;ext=1\r\n}\r\n0\r\n\r\n")
    assert client.reply().body == b"{}"
    client.send(head + "".join("1000\r\n%s\r\n" % ("x" * 4096) for _ in range(17)))
    refused(client.reply(), 413, "too_large")
    assert client.closed()


def test_large_binary_body(shared):
    body = bytes(range(256)) * 4096 * 8
    reply = shared.ask("POST", "/denoise", body, {"Content-Type": "application/x-safetensors"})
    assert reply.json() == {"bytes": len(body), "sum": sum(body)}


def test_length_is_required_where_a_body_is(shared):
    refused(shared.ask("POST", "/denoise"), 411, "length_required")


def test_no_body_is_an_empty_one_for_json(shared):
    reply = shared.ask("POST", "/generate")
    assert reply.status == 200 and reply.body == b""


def test_body_where_there_is_none(shared):
    refused(shared.ask("GET", "/healthz", {}), 413, "too_large")
    refused(shared.ask("GET", "/", {}), 413, "too_large")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                                  "application/json; charset=latin-1", "json", "application/json/x", ""])
def test_wrong_type(shared, kind):
    refused(shared.ask("POST", "/generate", b"{}", {"Content-Type": kind}), 415, "unsupported_media_type", "Content-Type")


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON", 'application/json; charset="UTF-8"',
                                  "application/json;charset=utf-8"])
def test_right_type(shared, kind):
    assert shared.ask("POST", "/generate", b"{}", {"Content-Type": kind}).status == 200


def test_content_encoding_is_refused(shared):
    refused(shared.ask("POST", "/generate", b"{}", {"Content-Encoding": "gzip"}), 415, "unsupported_media_type",
            "Content-Encoding")


ACCEPT = [(None, "application/json", 0), ("*/*", "application/json", 0), ("text/event-stream", "text/event-stream", 1),
          ("application/json, text/event-stream", "application/json", 1),
          ("application/json;q=0.5, text/event-stream", "text/event-stream", 1), ("text/*", "text/event-stream", 1),
          ("*/*;q=0.1, text/event-stream;q=0.2", "text/event-stream", 1),
          ("application/json;q=0, */*", "text/event-stream", 1)]


@pytest.mark.parametrize("accept,gives,given", ACCEPT)
def test_accept(shared, accept, gives, given):
    reply = shared.ask("GET", "/status", headers={"Accept": accept} if accept else {}).json()
    assert (reply["gives"], reply["given"]) == (gives, given)


@pytest.mark.parametrize("accept", ["image/gif", "application/json;q=0", "text/html, image/*;q=0.5", "application/jso", "x"])
def test_not_acceptable(shared, accept):
    refused(shared.ask("GET", "/status", headers={"Accept": accept}), 406, "not_acceptable", "Accept")


def test_request_id_is_taken_or_made(shared):
    assert shared.ask("GET", "/healthz", headers={"X-Request-Id": "my.id_1-2"}).headers["x-request-id"] == "my.id_1-2"
    shared.wait_log("event=request id=my.id_1-2 tenant=local method=GET route=/healthz code=200 ms=")
    assert shared.ask("GET", "/healthz", headers={"X-Request-Id": "a" * 64}).headers["x-request-id"] == "a" * 64
    for bad in ("a" * 65, "a b", "a\tb", 'a"b', ""):
        made = shared.ask("GET", "/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)
    reply = refused(shared.ask("GET", "/nosuch", headers={"X-Request-Id": "on-errors-too"}), 404, "not_found")
    assert reply.headers["x-request-id"] == "on-errors-too"


def test_bad_json_names_what_is_wrong(shared):
    assert shared.ask("POST", "/generate", b"{").code == "invalid_json"
    refused(shared.ask("POST", "/generate", b'{"a":1,"a":2}'), 400, "duplicate_field", "a")
    refused(shared.ask("POST", "/generate", b"[" * 60000), 400, "too_complex")


def test_pipelining(shared):
    client = shared.client()
    one = "GET /requests/%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
    client.send("".join(one % i for i in range(50)))
    assert [client.reply().json()["arg"] for _ in range(50)] == [str(i) for i in range(50)]


def test_pipelining_behind_one_that_waits(shared):
    client = shared.client()
    body = '{"do":"later","ms":30}'
    later = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    client.send(later % (len(body), body) + "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.reply().json() == {"later": True}
    assert client.reply().json() == {"status": "ok"}


def test_http_1_0_closes(shared):
    client = shared.client()
    client.send("GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert client.reply().status == 200
    assert client.closed()


def test_later_endpoints_are_refused_by_name(shared):
    refused(shared.ask("GET", "/usage"), 501, "not_implemented")


def test_openapi_and_metrics(shared):
    assert shared.ask("GET", "/openapi.json").json()["openapi"].startswith("3.")
    assert shared.ask("GET", "/openapi.json").json()["openapi"].startswith("3.")
    shared.ask("POST", "/generate", {})
    shared.ask("GET", "/nosuch")
    reply = shared.ask("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = reply.body.decode()
    assert re.search(r'^denoised_requests_total\{model="echo",route="/generate",code="200"\} [1-9]', text, re.M)
    assert re.search(r'^denoised_requests_total\{model="",route="other",code="404"\} [1-9]', text, re.M)
