"""Clients that are slow, rude, many, or gone, and what libmicrohttpd would make of them."""
import re
import resource
import socket
import struct
import time

import pytest

from test_http import refused

# The limits that the test daemon is built with (tests/unit/server/meson.build).
HEADER_S, BODY_S, IDLE_S, STALL_S, BODIES_MAX = 1.5, 1.5, 3, 2.5, 24 << 20
SWEEP_S = 2  # deadlines are looked at once a second

POST = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
GET = "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(body):
    return POST % (len(body), body)


HANG = post('{"do":"hang"}')


def settled_fds(daemon, want, timeout=8):
    end = time.monotonic() + timeout
    while daemon.fds() != want:
        assert time.monotonic() < end, "%d descriptors, wanted %d" % (daemon.fds(), want)
        time.sleep(0.05)


def reset(client):
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_refusals_keep_the_connection(shared):
    client = shared.client()
    for _ in range(30):
        refused(client.ask("GET", "/nosuch"), 404, "not_found")
        refused(client.ask("GET", "/generate"), 405, "method_not_allowed")
        refused(client.ask("GET", "/status", headers={"Accept": "x/y"}), 406, "not_acceptable", "Accept")
        refused(client.ask("GET", "/healthz", host="evil.example"), 403, "host_not_allowed", "Host")
        refused(client.ask("POST", "/denoise"), 411, "length_required")
        assert client.ask("POST", "/generate", {"do": "echo"}).status == 200


@pytest.mark.parametrize("leave", ["close", "reset", "half"])
@pytest.mark.parametrize("asked", ["hang", "stream"])
def test_vanished_client_is_noticed_while_suspended(start, asked, leave):
    daemon = start()
    fds = daemon.fds()
    client = daemon.client()
    client.send(HANG if asked == "hang" else GET % "/requests/silent/events")
    if asked == "stream":
        client.head()
    daemon.wait_status(open=1)
    if leave == "half":
        client.sock.shutdown(socket.SHUT_WR)
        daemon.wait_status(open=0, gone=1)
        assert client.closed() or asked == "stream"
        client.close()
    else:
        client.close() if leave == "close" else reset(client)
        daemon.wait_status(open=0, gone=1)
    settled_fds(daemon, fds)


def test_client_that_leaves_while_a_lane_works(start):
    daemon = start()
    clients = [daemon.client() for _ in range(20)]
    for client in clients:
        client.send(post('{"do":"later","ms":60}'))
    daemon.wait_status(open=20)
    for client in clients[::2]:
        reset(client)
    for client in clients[1::2]:
        assert client.reply().json() == {"later": True}
    daemon.wait_status(open=0, later=20)


def test_request_and_fin_in_one_packet_is_answered(shared):
    for _ in range(20):
        client = shared.client()
        client.send(GET % "/healthz" + GET % "/requests/second")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.reply().json() == {"status": "ok"}
        assert client.reply().json()["arg"] == "second"
        client.close()


def test_half_a_request_and_fin_ends_the_connection(start):
    daemon = start()
    fds = daemon.fds()
    for text in ("", "GET /hea", "GET /healthz HTTP/1.1\r\nHost: lo", post("{}")[:-1]):
        client = daemon.client()
        client.send(text)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.closed()
    settled_fds(daemon, fds)


def test_slow_head(shared):
    """A byte now and then is activity, but the deadline is absolute."""
    silent, slow, begun = shared.client(), shared.client(), shared.client()
    begun.send("GET /healthz HTTP/1.1\r\nHost:")
    begin = time.monotonic()
    text = GET % "/healthz"
    try:
        for c in text[:40]:
            slow.send(c)
            time.sleep(0.1)
    except (BrokenPipeError, ConnectionResetError):
        pass
    assert silent.closed()
    refused(begun.reply(), 408, "request_timeout")
    assert begun.closed()
    reply = slow.reply() if slow.more() else None
    assert reply is None or reply.status == 408
    assert time.monotonic() - begin < 40 * 0.1 + HEADER_S + SWEEP_S + 3


def test_slow_body(shared):
    stuck, slow = shared.client(), shared.client()
    body = '{"do":"echo","pad":"%s"}' % ("x" * 200)
    stuck.send(post(body)[:-100])
    try:
        slow.send(POST % (len(body), ""))
        for c in body:
            slow.send(c)
            time.sleep(0.05)
    except (BrokenPipeError, ConnectionResetError):
        pass
    for client in (stuck, slow):
        refused(client.reply(), 408, "request_timeout")
        assert client.closed()


def test_idle_keep_alive_ends(shared):
    client = shared.client()
    assert client.ask("GET", "/healthz").status == 200
    begin = time.monotonic()
    assert client.closed()
    assert time.monotonic() - begin > IDLE_S - 1


def test_reader_that_stops_is_cut(start):
    daemon = start()
    fds = daemon.fds()
    big, stream = daemon.client(), daemon.client()
    big.send(post('{"do":"big","bytes":30000000}'))
    stream.send(GET % "/requests/flood/events")
    begin = time.monotonic()
    settled_fds(daemon, fds + 2)
    settled_fds(daemon, fds, STALL_S + SWEEP_S + 8)
    assert time.monotonic() - begin > STALL_S - 1


def test_large_reply_to_a_slow_reader_is_whole(shared):
    client = shared.client()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.send(post('{"do":"big","bytes":5000000}'))
    while len(client.buf) < 500000:
        client.more()
        time.sleep(0.01)
    body = client.reply().body
    assert body == (b"abcdefghijklmnopqrstuvwxyz" * 200000)[:5000000]


def events_of(body):
    return re.findall(r"id: (\d+)\nevent: (\w+)\ndata: (.*)\n\n", body.decode())


def test_stream(shared):
    reply = shared.ask("GET", "/requests/slow/events", headers={"Accept": "text/event-stream"})
    assert reply.headers["content-type"] == "text/event-stream"
    assert reply.headers["cache-control"] == "no-store" and reply.headers["x-accel-buffering"] == "no"
    events = events_of(reply.body)
    assert [e[1] for e in events] == ["progress"] * 5 + ["done"]


def test_stream_keeps_the_connection(shared):
    client = shared.client()
    for _ in range(3):
        assert events_of(client.ask("GET", "/requests/slow/events").body)[-1][1] == "done"


def test_head_of_a_stream(shared):
    client = shared.client()
    assert client.ask("HEAD", "/requests/silent/events").headers["content-type"] == "text/event-stream"
    assert client.closed()  # and not one byte of a body


def test_slow_reader_loses_progress_and_nothing_else(shared):
    client = shared.client()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.send(GET % "/requests/flood/events")
    time.sleep(0.5)
    events = events_of(client.reply().body)
    images = [int(e[0]) for e in events if e[1] == "image"]
    progress = [int(e[0]) for e in events if e[1] == "progress"]
    assert images == list(range(64)) and all(len(e[2]) > 65536 for e in events if e[1] == "image")
    assert len(progress) < 1000 and progress == sorted(progress) and progress[-1] == 2000
    assert events[-1][1] == "done"


def test_stream_that_outgrows_its_bound_is_cut(start):
    daemon = start()
    fds = daemon.fds()
    client = daemon.client()
    client.send(GET % "/requests/overflow/events")
    daemon.wait_status(open=0, gone=1)
    settled_fds(daemon, fds)


def test_ping(shared):
    client = shared.client()
    client.send(GET % "/requests/silent/events")
    client.head()
    for _ in range(2):
        assert client.take(int(client.until(b"\r\n"), 16)) == b": ping\n\n"
        client.take(2)


def test_connection_limit(start):
    """At the limit new clients wait; the first that leaves lets one in at once, again and again."""
    daemon = start(nofile=160)
    clients = [daemon.client() for _ in range(96)]
    for client in clients:
        assert client.ask("GET", "/healthz").status == 200
    for _ in range(20):
        waiting = daemon.client(timeout=2)
        waiting.send(GET % "/healthz")
        clients.pop(0).close()
        assert waiting.reply().status == 200
        clients.append(waiting)


def test_too_few_descriptors(start_fails):
    assert "file descriptors are too few" in start_fails(nofile=100)


def test_no_place_is_lost(start):
    """More lost clients of every sort than there are places."""
    daemon = start(nofile=160)
    fds = daemon.fds()
    texts = [HANG, GET % "/requests/silent/events", GET % "/requests/flood/events", post('{"do":"big","bytes":3000000}'),
             post('{"do":"later","ms":1}'), "GET /heal", post("{}")[:-1], "\x16\x03\x01\x02\x00\x01\x00", "\r\n\r\n",
             GET % "/healthz", "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n\r\n"]
    for i in range(330):
        client = daemon.client()
        client.send(texts[i % len(texts)])
        if i % 3 == 0:
            time.sleep(0.002)
        client.close() if i % 2 else reset(client)
    settled_fds(daemon, fds)
    daemon.wait_status(open=0)


def test_a_thousand_connections(start):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    daemon = start()
    fds = daemon.fds()
    clients = [daemon.client(timeout=30) for _ in range(1000)]
    for i, client in enumerate(clients):
        client.send(GET % ("/requests/%d" % i))
    for i, client in enumerate(clients):
        assert client.reply().json()["arg"] == str(i)
    for client in clients:
        client.send(HANG)
    daemon.wait_status(timeout=30, open=1000)
    for client in clients:
        client.close()
    daemon.wait_status(timeout=30, open=0, gone=1000)
    settled_fds(daemon, fds)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_bodies_have_a_common_bound(start):
    daemon = start()
    head = "POST /denoise HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-safetensors\r\nContent-Length: %d\r\n\r\n"
    first, second = daemon.client(), daemon.client()
    first.send(head % (BODIES_MAX // 2))
    first.send(b"x" * (BODIES_MAX // 2 - 1))
    time.sleep(0.3)
    second.send(head % (BODIES_MAX // 2))
    try:
        second.send(b"x" * (BODIES_MAX // 2 - 1))
    except (BrokenPipeError, ConnectionResetError):
        pass
    refused(second.reply(), 503, "memory")
    first.send(b"x")
    assert first.reply().json()["bytes"] == BODIES_MAX // 2
    body = b"y" * (BODIES_MAX // 2)
    assert daemon.ask("POST", "/denoise", body, {"Content-Type": "application/x-safetensors"}).json()["bytes"] == len(body)


def test_waiting_costs_no_cpu(start):
    """Everything that can be left waiting, waiting at once: no busy loop."""
    daemon = start()
    texts = ["", "GET /heal", post("{}")[:-1], HANG, GET % "/requests/silent/events", GET % "/requests/flood/events",
             post('{"do":"big","bytes":9000000}'), GET % "/healthz", "\x16\x03\x01\x02\x00\x01\x00"]
    for _ in range(3):
        for text in texts:
            client = daemon.client()
            client.send(text)
    half = daemon.client()
    half.send(post("{}")[:-1])
    half.sock.shutdown(socket.SHUT_WR)
    for _ in range(10):  # what there is to do is done some time; a busy loop never ends
        before = daemon.cpu_s()
        time.sleep(0.5)
        if daemon.cpu_s() - before < 0.1:
            return
    pytest.fail("it never came to rest")
