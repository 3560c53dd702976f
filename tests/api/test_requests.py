"""Streams, asynchronous requests, cancelling, limits, draining."""
import json
import signal
import socket
import time

import pytest

from serving import A_WHILE, MANY, PATIENCE, SANITIZED, copy_model, decoded, png_read, serving, sha256, write_json

BASE = {"model": "tiny", "seed": 7, "steps": 6, "class_label": "b", "sampler": "ddim"}
LONG = {"model": "tiny", "seed": 1, "steps": 1000, "n": MANY, "class_label": 0, "sampler": "ddim"}


def begin(d, body, headers=()):
    """Send POST /generate and leave it open."""
    client = d.client(PATIENCE)
    data = json.dumps(body).encode()
    lines = ["POST /generate HTTP/1.1", "Host: localhost", "Content-Type: application/json",
             "Content-Length: %d" % len(data)] + ["%s: %s" % h for h in dict(headers).items()]
    client.send("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
    return client


def running(d, n=1, timeout=PATIENCE):
    """The ids of n requests that run."""
    end = time.monotonic() + timeout
    while True:
        ids = [r["id"] for r in d.ask("GET", "/requests?state=running").json()["requests"]]
        if len(ids) >= n:
            return ids
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- streams ----


def test_a_stream_tells_the_whole_story_in_order(d):
    plain = d.result(**dict(BASE, n=2))
    for headers, more in (({}, {}), ({"Accept": "text/event-stream"}, {})):
        body = dict(BASE, n=2, preview_every=2, **more)
        events = list(d.events(dict(body, stream=True), headers=headers))
        ids = [e[0] for e in events]
        names = [e[1] for e in events]
        assert ids == sorted(set(ids)) and names[0] == "queued" and names[-1] == "done"
        assert set(names) - {"preview"} == {"queued", "progress", "image", "done"}  # a busy daemon may skip every preview
        queued, done = events[0][2], events[-1][2]
        assert queued["seed"] == 7 and queued["position"] >= 0 and queued["eta_ms"] >= 0 and len(queued["id"]) == 32
        assert done["model"] == "tiny@1" and done["seed"] == 7 and done["timing"]["row_steps"] == 12
        steps = [e[2]["step"] for e in events if e[1] == "progress"]
        assert steps == sorted(set(steps)) and steps[-1] == 6 and all(e[2]["steps"] == 6 for e in events if e[1] == "progress")
        for e in events:
            if e[1] == "preview":
                assert e[2]["step"] in (2, 4) and e[2]["index"] in (0, 1) and png_read(decoded(e[2]))[:3] == (16, 16, 3)
        images = {e[2]["index"]: e[2] for e in events if e[1] == "image"}
        assert [images[k]["sha256"] for k in (0, 1)] == [i["sha256"] for i in plain["images"]]
        assert [decoded(images[k]) for k in (0, 1)] == [decoded(i) for i in plain["images"]]


def test_previews_come_while_it_runs(d):
    events = d.events(dict(LONG, preview_every=2, stream=True))
    id = next(events)[2]["id"]
    for _, name, data in events:
        if name == "preview":
            break
    assert data["step"] % 2 == 0 and 0 <= data["index"] < MANY and png_read(decoded(data))[:3] == (16, 16, 3)
    d.ask("DELETE", "/requests/" + id)
    assert list(events)[-1][1] == "error"


def test_a_stream_ends_with_its_error(d):
    events = list(d.events({"model": "spoilt", "steps": 5, "stream": True}))
    assert events[-1][1] == "error" and events[-1][2]["error"]["code"] == "non_finite"
    with pytest.raises(AssertionError, match="out_of_range"):  # what is known before it begins is an ordinary refusal
        list(d.events({"model": "tiny", "steps": 0, "stream": True}))


# ---- asynchronous requests ----


def test_asynchronous_results(d):
    plain = d.result(**dict(BASE, n=3))
    id = d.submit(**dict(BASE, n=3))
    info = d.wait_state(id, "succeeded")
    assert info["model"] == "tiny@1" and info["numerics"] == plain["numerics"] and info["seed"] == 7 and info["n"] == 3
    assert info["step"] == info["steps"] == 6 and info["timing"]["row_steps"] == 18
    assert 0 <= info["finished_at"] - info["created_at"] < 60
    assert [i["sha256"] for i in info["images"]] == [i["sha256"] for i in plain["images"]]
    for k, image in enumerate(info["images"]):
        assert image["url"] == "/requests/%s/images/%d" % (id, k) and image["seed"] == 7 + k and "b64" not in image
        reply = d.ask("GET", image["url"])
        assert reply.body == decoded(plain["images"][k]) and reply.headers["content-type"] == "image/png"
        assert reply.headers["x-seed"] == str(7 + k)
    assert d.ask("GET", "/requests/%s/images/3" % id).code == "not_found"
    assert d.ask("GET", "/requests/%s/images/x" % id).code == "not_found"
    grid = d.wait_state(d.submit(**dict(BASE, n=4, output={"layout": "grid"})), "succeeded")
    assert png_read(d.ask("GET", grid["images"][0]["url"]).body)[:3] == (32, 32, 3) and len(grid["images"]) == 1
    bad = d.wait_state(d.submit(model="spoilt", steps=4), "failed")
    assert bad["error"]["code"] == "non_finite" and "images" not in bad


def test_refusals_come_before_the_202(d):
    newest = d.ask("GET", "/requests?limit=1").json()["requests"]
    for fields, code in (({"steps": 0}, "out_of_range"), ({"class_label": "zebra"}, "unknown_value")):
        assert d.generate({"Prefer": "respond-async"}, **dict(BASE, **fields)).code == code
    reply = d.generate({"Prefer": "respond-async", "Accept": "image/png"}, **BASE)
    assert reply.status == 406
    assert d.ask("GET", "/requests?limit=1").json()["requests"] == newest  # nothing is kept of them


def test_events_can_be_read_later_and_resumed(d):
    id = d.submit(**dict(BASE, n=2, preview_every=2))
    d.wait_state(id, "succeeded")
    path = "/requests/%s/events" % id
    events = list(d.events(path=path))
    names = [e[1] for e in events]
    assert names[0] == "queued" and names[-1] == "done" and names.count("image") == 2 and names.count("progress") == 1
    assert all(e[2]["url"].startswith("/requests/" + id) and "b64" not in e[2] for e in events if e[1] == "image")
    for at in (0, 1, len(events) - 1, len(events)):
        last = events[at - 1][0] if at else 0
        assert list(d.events(path=path, headers={"Last-Event-ID": str(last)})) == events[at:]
    assert d.ask("GET", path, headers={"Last-Event-ID": "x", "Accept": "text/event-stream"}).code == "bad_header"


def test_a_running_request_can_be_watched(d):
    id = d.submit(**LONG)
    seen = d.events(path="/requests/%s/events" % id)
    first = [next(seen) for _ in range(4)]
    assert first[0][1] == "queued" and {e[1] for e in first[1:]} == {"progress"}
    d.ask("DELETE", "/requests/" + id)
    rest = list(seen)
    assert rest[-1][1] == "error" and rest[-1][2]["error"]["code"] == "cancelled"


def test_the_list_of_requests(d):
    ids = [d.submit(**dict(BASE, seed=s)) for s in range(5)]
    for id in ids:
        d.wait_state(id, "succeeded")
    page = d.ask("GET", "/requests?limit=3&state=succeeded").json()
    assert [r["id"] for r in page["requests"]] == ids[:1:-1]
    page = d.ask("GET", "/requests?limit=2&after=" + page["next"]).json()
    assert [r["id"] for r in page["requests"]] == [ids[1], ids[0]]
    assert d.ask("GET", "/requests?state=running").json()["requests"] == []
    for query, code in (("state=lost", "unknown_value"), ("limit=0", "out_of_range"), ("foo=1", "unknown_field"),
                        ("after=0", "wrong_type"), ("after=" + ids[0], "wrong_type"), ("after=-1", "wrong_type")):
        assert d.ask("GET", "/requests?" + query).code == code
    assert d.ask("GET", "/requests/" + "0" * 32).code == "not_found"
    assert d.ask("GET", "/requests/nonsense").code == "not_found"


def walk(d, query):
    """The pages of the list."""
    pages, after = [], ""
    while after is not None:
        reply = d.ask("GET", "/requests?%s%s" % (query, after))
        pages.append([r["id"] for r in reply.json()["requests"]])
        assert len(reply.body) <= 64 << 10
        after = reply.json()["next"] and "&after=" + reply.json()["next"]
    return pages


def test_a_long_list_comes_in_pages(models):
    with serving(models, "--load", "tiny") as d:
        ids = [d.submit(**dict(BASE, steps=1)) for _ in range(120)]
        d.wait_status(PATIENCE, running=0, waiting=0)
        pages = walk(d, "limit=1000")
        assert len(pages) > 1 and len(pages[0]) > 50 and sum(pages, []) == ids[::-1]
        assert [len(p) for p in walk(d, "limit=75")] == [75, 45]


def test_a_page_goes_on_after_a_request_of_which_nothing_is_kept(d):
    before = d.submit(**BASE)
    d.wait_state(before, "succeeded")
    client = begin(d, LONG)
    id = running(d)[0]
    page = d.ask("GET", "/requests?limit=1").json()
    assert [r["id"] for r in page["requests"]] == [id]
    d.ask("DELETE", "/requests/" + id)
    assert client.reply().code == "cancelled" and d.ask("GET", "/requests/" + id).status == 410
    again = d.ask("GET", "/requests?limit=1&after=" + page["next"]).json()
    assert [r["id"] for r in again["requests"]] == [before]


# ---- cancelling ----


def test_cancel_an_asynchronous_request(d):
    id = d.submit(**LONG)
    running(d)
    info = d.ask("DELETE", "/requests/" + id).json()
    assert info["state"] == "cancelled" and info["step"] < 1000 and info["error"]["code"] == "cancelled"
    assert d.ask("DELETE", "/requests/" + id).json() == d.info(id)  # again: nothing happens
    assert d.memory()["slots"] == 0


def test_few_cancelled_requests_are_kept(models):
    with serving(models, "--load", "tiny", "--max-rows", "4") as d:  # a cancel takes effect after a batch
        done = d.submit(**BASE)
        d.wait_state(done, "succeeded")
        ids = [d.submit(**dict(LONG, n=4)) for _ in range(70)]
        for id in ids:
            assert d.ask("DELETE", "/requests/" + id).status == 200
        assert d.ask("GET", "/requests/" + ids[0]).status == 410 and d.info(ids[-1])["state"] == "cancelled"
        assert d.info(done)["state"] == "succeeded"


def test_cancel_a_synchronous_request_by_its_id(d):
    client = begin(d, LONG)
    id = running(d)[0]
    assert d.ask("DELETE", "/requests/" + id).json()["state"] == "cancelled"
    reply = client.reply()
    assert reply.status == 409 and reply.code == "cancelled"
    assert d.ask("GET", "/requests/" + id).code == "expired"  # nothing is kept of it


def test_a_vanished_client_cancels_its_own_request_only(d):
    other = d.submit(**LONG)
    for headers, body in (({}, LONG), ({}, dict(LONG, stream=True))):
        client = begin(d, body, headers)
        running(d, 2)
        client.close()
        end = time.monotonic() + PATIENCE
        while d.ask("GET", "/status").json()["running"] > 1:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert d.info(other)["state"] == "running"
    d.ask("DELETE", "/requests/" + other)
    assert d.memory()["slots"] == 0


def test_one_may_run_on_without_its_client(d):
    body = dict(BASE, steps=A_WHILE)
    client = begin(d, dict(body, on_disconnect="continue"))
    id = running(d)[0]
    client.close()
    info = d.wait_state(id, "succeeded")
    assert [i["sha256"] for i in info["images"]] == d.shas(**body)
    assert sha256(d.ask("GET", info["images"][0]["url"]).body)


def test_nothing_grows_by_cancelled_requests(models):
    with serving(models, "--load", "tiny") as d:

        def cancel_some(n):
            for _ in range(n):
                client = begin(d, dict(LONG, n=2, preview_every=5))
                client.close()
            d.wait_status(PATIENCE, running=0, waiting=0)

        cancel_some(100)
        time.sleep(1.2)  # what is free goes back twice a second
        before, files = d.rss_kb(), d.fds()
        cancel_some(200)
        end = time.monotonic() + PATIENCE
        while d.fds() > files + 2 or not (SANITIZED or d.rss_kb() - before < 1024):
            assert time.monotonic() < end, (before, d.rss_kb(), files, d.fds())
            time.sleep(0.1)
        memory = d.memory()
        assert memory["slots"] == memory["results"] == 0


# ---- limits ----


def test_old_results_are_gone(models):
    with serving(models, "--load", "tiny", "--result-ttl", "1s") as d:
        id = d.submit(**BASE)
        d.wait_state(id, "succeeded")
        end = time.monotonic() + PATIENCE
        while d.ask("GET", "/requests/" + id).status == 200:
            assert time.monotonic() < end
            time.sleep(0.05)
        for path in ("", "/images/0", "/events"):
            reply = d.ask("GET", "/requests/" + id + path)
            assert reply.status == 410 and reply.code == "expired"
        assert d.memory()["results"] == 0


def test_a_result_that_is_dropped_can_be_read_to_its_end(tmp_path):
    """Answers share the kept bytes: many slow readers cost no copies, and what they read stays whole."""
    path = copy_model("unet_adm", tmp_path, "tiny")
    write_json(path + "/denoised.json", {"sizes": [[32, 32]]})
    with serving(tmp_path, "--result-bytes", "205000") as d:
        body = dict(BASE, class_label=1, height=32, width=32, steps=1, n=64, output={"layout": "grid"})
        id = d.submit(**body)
        d.wait_state(id, "succeeded")
        wanted = d.ask("GET", "/requests/%s/images/0" % id).body
        assert png_read(wanted)[:3] == (256, 256, 3)
        before, clients = d.rss_kb(), []
        for _ in range(16):
            client = d.client(PATIENCE)
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.send("GET /requests/%s/images/0 HTTP/1.1\r\nHost: localhost\r\n\r\n" % id)
            assert client.head()[0] == 200
            clients.append(client)
        assert SANITIZED or d.rss_kb() - before < 8 * len(wanted) >> 10
        end = time.monotonic() + PATIENCE
        while d.ask("GET", "/requests/" + id).status == 200:  # until others need its room
            assert time.monotonic() < end
            d.wait_state(d.submit(model="tiny", class_label=1, steps=1), "succeeded")
        assert all(client.take(len(wanted)) == wanted for client in clients)


def test_results_are_bounded_by_bytes(models):
    with serving(models, "--load", "tiny", "--result-bytes", "40000") as d:
        ids = []
        for s in range(20):
            ids.append(d.submit(**dict(BASE, seed=s)))
            d.wait_state(ids[-1], "succeeded")
        kept = [id for id in ids if d.ask("GET", "/requests/" + id).status == 200]
        assert kept == ids[-len(kept):] and 0 < len(kept) < 20
        assert d.memory()["results"] <= 40000
        assert d.ask("GET", "/requests/" + ids[0]).status == 410


def test_the_queue_is_bounded(models):
    with serving(models, "--load", "tiny", "--max-queue-ms", "2000") as d:
        first = d.submit(**LONG)  # an idle device takes anything
        running(d)
        reply = d.generate(**BASE)
        assert reply.status == 429 and reply.code == "queue_full"
        assert int(reply.headers["retry-after"]) >= 1
        assert d.metrics()['denoised_requests_failed_total{model="tiny",reason="rejected"}'] == 1
        d.ask("DELETE", "/requests/" + first)
        assert d.generate(**BASE).status == 200


def test_retry_after_is_true(models):
    with serving(models, "--load", "tiny", "--max-queue-ms", "1000") as d:
        d.submit(**dict(BASE, steps=A_WHILE, n=6))
        running(d)
        reply = d.generate(**dict(BASE, steps=A_WHILE, n=2))
        waits = 0
        while reply.status == 429:  # each time it says when; more often than once only if the machine has become slower
            waits += 1
            before = d.ask("GET", "/status").json()["queue_ms"]
            time.sleep(int(reply.headers["retry-after"]))
            assert d.ask("GET", "/status").json()["queue_ms"] < before and waits < 10
            reply = d.generate(**dict(BASE, steps=A_WHILE, n=2))
        assert reply.status == 200


def test_a_deadline_that_cannot_be_met_is_refused(d):
    d.result(**BASE)
    reply = d.generate(**dict(LONG, deadline_ms=50))
    assert reply.status == 429 and reply.code == "deadline" and reply.json()["error"]["param"] == "deadline_ms"
    assert "retry-after" not in reply.headers  # not even alone
    assert d.generate(**dict(BASE, deadline_ms=60000)).status == 200


def test_too_large_for_the_memory(models):
    with serving(models, "--load", "tiny") as d:
        d.result(**BASE)
        held = d.memory()
    limit = sum(v for k, v in held.items() if k != "limit") + (300 << 10)
    with serving(models, "--load", "tiny", "--memory", str(limit)) as d:
        reply = d.generate(**dict(LONG, n=64))
        assert reply.status == 503 and reply.code == "memory" and int(reply.headers["retry-after"]) >= 1
        assert d.shas(**BASE) and d.memory()["slots"] == d.memory()["results"] == 0


def test_priority(models):
    """Three alike but for priority share narrow batches: they end in its order."""
    with serving(models, "--load", "tiny", "--max-rows", "4") as d:
        body, text, order = dict(BASE, n=8, steps=20), b"", ("low", "normal", "high")
        for p in order:
            data = json.dumps(dict(body, priority=p)).encode()
            text += (b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Prefer: respond-async\r\nContent-Length: %d\r\n\r\n" % len(data)) + data
        client = d.client(PATIENCE)
        client.send(text)  # all in one piece: none has a start
        ids = {p: client.reply().json()["id"] for p in order}
        infos = {p: d.wait_state(id, "succeeded") for p, id in ids.items()}
        assert infos["high"]["finished_at"] < infos["normal"]["finished_at"] < infos["low"]["finished_at"]


def test_tenants_see_their_own(models, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa alice\nbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb bob\n"
                      "cccccccccccccccccccccccccccccccc root use,admin\n")
    with serving(models, "--load", "tiny", "--token-file", str(tokens)) as d:
        who = {n: {"Authorization": "Bearer " + n[0] * 32} for n in ("alice", "bob", "c")}
        reply = d.generate(dict(who["alice"], Prefer="respond-async"), **BASE)
        path = reply.headers["location"]
        assert d.ask("GET", path, headers=who["alice"]).status == 200
        assert d.ask("GET", path, headers=who["bob"]).code == "forbidden"
        assert d.ask("DELETE", path, headers=who["bob"]).code == "forbidden"
        assert d.ask("GET", path, headers=who["c"]).status == 200
        assert d.ask("GET", "/requests", headers=who["bob"]).json()["requests"] == []
        assert d.ask("GET", "/requests?after=1000000", headers=who["bob"]).json()["requests"] == []
        assert len(d.ask("GET", "/requests", headers=who["c"]).json()["requests"]) == 1
        assert d.ask("POST", "/models/tiny/unload", headers=who["bob"]).status == 403
        assert d.ask("GET", path).status == 401


def test_every_request_has_a_line_with_its_work(models):
    """Answered, streamed, asynchronous, abandoned: who, which model, how many rows, how long."""
    with serving(models, "--load", "tiny") as d:
        tail = r" .*model=tiny .*rows=%d queue_ms=[0-9.]+ device_ms=[0-9.]+"
        d.result(**dict(BASE, n=1, steps=3))
        d.wait_log(r"event=request .*code=200" + tail % 3)
        list(d.events(dict(BASE, n=1, steps=4)))
        d.wait_log(r"event=request .*code=200" + tail % 4)
        id = d.submit(**dict(BASE, n=1, steps=5))
        d.wait_log(r"event=request_ended id=%s tenant=local state=succeeded" % id + tail % 5)
        client = begin(d, LONG)
        running(d)
        client.close()
        d.wait_log(r"event=request_ended .*state=cancelled model=tiny reason=cancelled rows=")


# ---- stopping ----


def test_draining_lets_running_work_finish(models):
    with serving(models, "--load", "tiny", "--drain-ms", "600000") as d:
        client = begin(d, dict(BASE, steps=A_WHILE, n=4))
        running(d)
        idle = d.client()
        d.proc.send_signal(signal.SIGTERM)
        d.wait_log("event=draining")
        assert idle.ask("POST", "/generate", BASE).code == "draining"
        reply = client.reply()
        assert reply.status == 200 and len(reply.json()["images"]) == 4
        assert d.proc.wait(PATIENCE) == 0


def test_the_end_of_draining(models):
    with serving(models, "--load", "tiny", "--drain-ms", "200") as d:
        client = begin(d, LONG)
        stream = d.events(dict(LONG, stream=True))
        assert next(stream)[1] == "queued"
        d.submit(**LONG)
        running(d, 3)
        d.proc.send_signal(signal.SIGTERM)
        reply = client.reply()
        assert reply.status == 503 and reply.code == "draining"
        assert list(stream)[-1][2]["error"]["code"] == "draining"
        assert d.proc.wait(PATIENCE) == 0
