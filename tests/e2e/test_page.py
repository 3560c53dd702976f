"""The page at /, in a headless Chromium, against the real daemon."""
import glob
import json
import os
import re
import shlex
import threading
import time

import pytest

pytest.importorskip("selenium")

from browser import WEB, Impostor, Page, check_contrast, press, tab_to  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from serving import copy_model, decoded, png_read, serving, write_json  # noqa: E402

LABELS = ["plain", '<img src="x" onerror="window.pwned=1">', '"><script>window.pwned=1</script>', "it's $(touch x); `y`",
          "javascript:window.pwned=1", "f", "g", "h", "Ankle Boot"]
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("models"))
    write_json(copy_model("unet_adm", root, "tiny") + "/denoised.json",
               {"labels": LABELS, "null_label": 9, "description": "<b onclick=alert(1)>tiny</b>"})
    copy_model("pipe_ddpm", root, "plain")
    return root


@pytest.fixture(scope="module")
def d(models):
    # the duration of a step shall not decide how many rows it has
    with serving(models, "--load", "tiny", "--step-ms", "5000") as daemon:
        daemon.base = "http://%s:%d" % daemon.address
        yield daemon


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    page = Page(str(tmp_path_factory.mktemp("downloads")))
    yield page
    page.quit()


@pytest.fixture
def page(browser):
    """At its end nothing may have been injected, stopped by the policy, or complained of; a test that provokes refusals takes
    them out with `messages` before."""
    browser.plain()
    browser.messages()
    yield browser
    assert browser.js("return window.violations") == []
    assert not browser.js("return window.pwned")
    assert browser.messages() == []
    if browser.js("return location.protocol") == "http:":
        browser.js("sessionStorage.clear()")  # the next test comes from the same origin
    browser.driver.get("about:blank")


@pytest.fixture
def ready(page, d):
    page.open(d.base)
    yield page
    for left in d.ask("GET", "/status").json()["requests"]:
        d.ask("DELETE", "/requests/" + left["id"])


def begin_long(page, n=16):
    """A run that lasts for many seconds, started."""
    for param, value in {"n": n, "steps": 1000, "guidance.cfg.scale": 2, "preview_every": 0}.items():
        page.write(param, value)
    page.click("#make")


# ---- what is served ----


def test_the_files_are_small_and_the_policy_strict(d):
    reply = d.ask("GET", "/")
    assert reply.headers["content-security-policy"] == POLICY and reply.headers["content-type"].startswith("text/html")
    assert not re.search(rb"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|https?://", reply.body)
    total = len(reply.body)
    for name in set(os.listdir(WEB)) - {"index.html", "embed.py", "robots.txt", "__pycache__"}:
        got = d.ask("GET", "/" + name)
        with open(os.path.join(WEB, name), "rb") as f:
            assert got.status == 200 and got.body == f.read()
        total += len(got.body)
    assert total < 128 << 10


# ---- making pictures ----


def test_from_the_keyboard_alone(ready, d):
    press(ready, Keys.TAB)
    assert ready.js("return document.activeElement.className") == "skip"
    tab_to(ready, "a.id === 'f-model'")
    tab_to(ready, "a.value === 'Ankle Boot'")
    press(ready, Keys.SPACE)
    tab_to(ready, "a.id === 'f-sampler'")
    press(ready, "ddi")
    tab_to(ready, "a.type === 'range' && a.closest('[data-param]').dataset.param === 'steps'")
    press(ready, Keys.END)
    tab_to(ready, "a.id === 'f-guidance-cfg-scale'")
    press(ready, "3")
    tab_to(ready, "a.id === 'f-seed'")
    press(ready, "7")
    tab_to(ready, "a.id === 'make'")
    press(ready, Keys.ENTER)
    ready.wait_run()
    previews = ready.js("return seen.filter((s) => s.state === 'running').map((s) => s.src)")
    assert len(set(previews)) >= 2  # it came out of the noise before it was done
    want = {"model": "tiny", "class_label": "Ankle Boot", "sampler": "ddim", "steps": 100, "guidance": {"cfg": {"scale": 3}}, "seed": 7}
    assert ready.pictures() == [d.result(**want)["images"][0]["b64"]]
    assert ready.text("#live") == "Done: 1 picture, seed 7."
    tab_to(ready, "a.download === 'tiny-Ankle-Boot-7.png'")


def test_a_finished_run_can_be_looked_through(ready):
    ready.write("steps", 200)
    ready.write("seed", 5)
    ready.click("#make")
    ready.wait_run()
    final = ready.pictures()
    scrub = ready.at(".scrub input")
    scrub.send_keys(Keys.HOME)
    first = ready.pictures()
    assert first != final and ready.text(".scrub output").startswith("step ")
    scrub.send_keys(Keys.END)
    assert ready.pictures() == final


def test_several_labels_take_turns(ready, d):
    for label in ("plain", "g"):
        ready.js("[...document.querySelectorAll('.chips input')].find((b) => b.value === arguments[0]).click()", label)
    assert ready.at("#f-n").get_attribute("value") == "2"
    ready.write("n", 3)
    ready.write("steps", 6)
    ready.write("seed", 30)
    ready.click("#make")
    ready.wait_run()
    want = d.result(model="tiny", n=3, seed=30, steps=6, class_label=["plain", "g", "plain"])
    assert ready.pictures() == [i["b64"] for i in want["images"]]


def test_more_fields_reach_the_server(ready, d):
    ready.click("#more summary")
    assert ready.at("#f-timesteps").is_displayed()
    ready.write("timesteps", "900, 500 100")
    ready.write("scheduler", '{"prediction_type": "v_prediction"}')
    ready.choose("output.layout", "grid")
    ready.choose("rng", "torch")
    ready.write("n", 4)
    ready.write("seed", 11)
    ready.choose("sampler", "ddim")
    ready.write("guidance.cfg.interval", "0.2 0.9")
    ready.write("guidance.cfg.scale", "2.5")
    ready.click("#make")
    ready.wait_run()
    want = d.result(model="tiny", n=4, seed=11, sampler="ddim", timesteps=[900, 500, 100], rng="torch", output={"layout": "grid"},
                    scheduler={"prediction_type": "v_prediction"}, guidance={"cfg": {"scale": 2.5, "interval": [0.2, 0.9]}})
    assert ready.pictures() == [want["images"][0]["b64"]]


def test_recent_pictures_are_made_again(ready, d):
    ready.write("n", 3)
    ready.write("seed", 40)
    ready.write("steps", 5)
    ready.click("#make")
    ready.wait_run()
    pictures = ready.pictures()
    ready.driver.refresh()
    ready.wait("return !document.querySelector('#make').disabled")
    recent = ready.all("#recent-list button")
    assert [b.text for b in recent] == ["40", "41", "42"]
    recent[2].click()
    value = lambda field: ready.at("#f-" + field).get_attribute("value")  # noqa: E731
    assert (value("seed"), value("steps"), value("n"), value("model")) == ("42", "5", "1", "tiny")
    ready.click("#make")
    ready.wait_run()
    assert ready.pictures() == pictures[2:]


def test_download(ready):
    ready.write("steps", 4)
    ready.write("seed", 8)
    ready.click("#make")
    ready.wait_run()
    ready.click("figcaption a")
    path, end = os.path.join(ready.downloads, "tiny-8.png"), time.monotonic() + 10
    while not os.path.exists(path):
        assert time.monotonic() < end, glob.glob(ready.downloads + "/*")
        time.sleep(0.02)
    with open(path, "rb") as f:
        data = f.read()
    assert data == decoded({"b64": ready.pictures()[0]}) and png_read(data)[:3] == (16, 16, 3)


def test_curl(ready, d):
    ready.js("document.querySelectorAll('.chips input')[3].click()")
    ready.write("steps", 3)
    ready.write("seed", 9)
    ready.click("#curl")
    words = shlex.split(ready.text("#curl-text").replace("\\\n", ""))
    assert words[:2] == ["curl", d.base + "/generate"]
    options = list(zip(words[2::2], words[3::2]))
    headers = dict(v.split(": ") for k, v in options if k == "-H")
    body = json.loads(dict(options)["-d"])
    assert body == {"model": "tiny", "class_label": LABELS[3], "steps": 3, "seed": 9}
    reply = d.ask("POST", "/generate", body, headers)
    assert reply.status == 200 and reply.headers["content-type"] == "image/png"
    assert dict(options)["-o"] == "picture.png"


# ---- sharing ----


def test_who_shares_the_step_is_seen(ready, d):
    other = d.submit(model="tiny", n=12, steps=1000, seed=1)
    begin_long(ready, 7)
    seen = ready.wait("""const cells = [...document.querySelectorAll('.strip .cell')].map((c) => c.textContent);
        return new Set(cells).size > 1 && [cells, document.querySelector('.strip').getAttribute('aria-label')]""")
    tag = ready.text(".run-head .tag")
    assert seen[0].count(tag) == 14 and len(seen[0]) == 26  # guidance is two rows
    assert "14 of request %s" % tag in seen[1] and seen[1].startswith("This step: ")
    ready.wait("""const queue = [...document.querySelectorAll('#queue li')].map((l) => l.children[0].textContent + l.children[1].textContent);
        return queue.length === 2 && queue.includes(arguments[0] + 'you') && queue.some((q) => q.endsWith('someone'))""", tag)
    assert ready.js("return new Set([...document.querySelectorAll('.history rect')].map((r) => r.getAttribute('class'))).size") == 2
    d.ask("DELETE", "/requests/" + other)
    ready.click(".cancel")
    ready.wait_run("cancelled")
    d.wait_status(running=0, waiting=0)
    ready.wait("return document.querySelector('#queue').children.length === 0")
    assert ready.text("#queue-text") == "Nobody is waiting."


def test_cancel(ready, d):
    begin_long(ready)
    ready.wait("return document.querySelector('.run progress').value > 3")
    ready.click(".cancel")
    ready.wait_run("cancelled")
    assert ready.text(".run .status") == "Cancelled." == ready.text("#live")
    assert ready.all(".cancel") == []
    d.wait_status(running=0, waiting=0)


def test_leaving_the_page_cancels(ready, d):
    begin_long(ready)
    ready.wait("return document.querySelector('.run progress').value > 0")
    ready.driver.get("about:blank")
    d.wait_status(timeout=9, running=0, waiting=0)  # Chromium itself keeps a page that was left for ten seconds
    ready.driver.get(d.base + "/")


def test_models_are_loaded_and_unloaded(ready, d):
    row = "[...document.querySelectorAll('#models li')].find((l) => l.children[1].textContent === 'plain')"
    assert ready.js("return [...document.querySelector('#f-model').options].map((o) => o.text)") == ["plain (available)", "tiny"]
    ready.wait("return " + row)
    ready.js(row + ".querySelector('button').click()")
    ready.wait("return %s.children[2].textContent.startsWith('loaded')" % row)
    ready.wait("return document.querySelector('#f-model').options[0].text === 'plain'")
    ready.choose("model", "plain")  # it takes no label
    assert not ready.at("[data-param=class_label]").is_displayed()
    ready.write("steps", 2)
    ready.click("#make")
    ready.wait_run()
    ready.js(row + ".querySelector('button').click()")
    ready.wait("return %s.children[2].textContent === 'available'" % row)
    d.wait_model("plain", "available")
    ready.click("#make")  # a request loads its model
    ready.wait("return document.querySelectorAll('.run').length === 1")
    ready.wait_run()
    assert d.model("plain")["state"] == "loaded"
    d.post("/models/plain/unload?wait=true")


# ---- errors ----


WRONG = [("steps", "0", "out_of_range"), ("steps", "many", "wrong_type"), ("seed", "-1", "out_of_range"), ("eta", "7", "out_of_range"),
         ("guidance.cfg.rescale", "5", "out_of_range"), ("scheduler", '{"no_such_key": 1}', None), ("height", "24", None)]


def test_errors_are_shown_at_their_field(ready, d):
    for param, text, code in WRONG:
        ready.js("document.querySelector('#more').open = false")
        ready.write(param, text)
        ready.write("guidance.cfg.scale", "2" if param == "guidance.cfg.rescale" else "")
        ready.click("#make")
        error = ready.wait("""const e = document.querySelector(`[data-param="${arguments[0]}"] .error`);
                              return !e.hidden && e.textContent""", param)
        value = json.loads(text) if text[0] in "{-0123456789" else text
        body = {"guidance": {"cfg": {"scale": 2, "rescale": 5}}} if "." in param else {param: value}
        refusal = d.generate(model="tiny", **body).json()["error"]
        assert error == refusal["message"] and (not code or refusal["code"] == code)
        focus = ready.js("""const a = document.activeElement;
                            return [a.closest('[data-param]').dataset.param, a.getAttribute('aria-invalid')]""")
        assert focus == [param, "true"]
        assert ready.at("[data-param='%s'] .error" % param).is_displayed() and ready.all(".run") == []
        assert len(ready.all(".error:not([hidden])")) == 1
        ready.write(param, "")
    assert all("40" in m or "42" in m for m in ready.messages())
    ready.write("steps", 2)
    ready.click("#make")
    ready.wait_run()
    assert ready.all(".error:not([hidden])") == [] and ready.all("[aria-invalid]") == []


def test_json_that_is_none_is_not_sent(ready):
    ready.write("scheduler", "{")
    ready.click("#make")
    assert ready.text("[data-param=scheduler] .error") == "scheduler is not well-formed JSON" and ready.all(".run") == []


def test_labels_are_inert(ready, d):
    assert ready.js("return [...document.querySelectorAll('.chip span')].map((s) => s.textContent)") == LABELS
    for k in range(5):
        ready.js("document.querySelectorAll('.chips input')[arguments[0]].click()", k)
    ready.write("steps", 2)
    ready.click("#make")
    ready.wait_run()
    assert ready.js("return document.querySelectorAll('.chips img, .run-head img, figcaption img, script:not([src])').length") == 0
    assert len(ready.all("#recent-list button")) == 5


def test_a_server_that_stops(page, models):
    with serving(models, "--load", "tiny", "--drain-ms", "100") as daemon:
        page.open("http://%s:%d" % daemon.address)
        begin_long(page)
        page.wait("return document.querySelector('.run progress').value > 0")
    page.wait_run("failed")
    page.wait("return document.querySelector('#pulse-dot').className === 'dot lost'")
    assert page.text("#pulse-text") == "no connection, trying again"
    page.messages()


# ---- the token ----


def test_the_token(page, models, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("correct-horse-battery alice use\n")
    with serving(models, "--load", "tiny", "--token-file", str(tokens)) as daemon:
        page.open("http://%s:%d" % daemon.address, ready=False)
        page.wait("return document.querySelector('#token-dialog').open")
        assert page.js("return document.activeElement.id") == "token"
        press(page, Keys.ESCAPE)
        page.wait("return !document.querySelector('#unlock').hidden")
        assert page.text("#pulse-text") == "locked" and not page.at("#make").is_enabled()
        page.click("#tab-training")  # it asks too
        page.wait("return document.querySelector('#token-dialog').open")
        press(page, Keys.ESCAPE)
        page.wait("return document.querySelector('#jobs-text').textContent.includes('TOKEN')")
        page.click("#unlock")
        page.wait("return document.querySelector('#token-dialog').open")
        press(page, "wrong", Keys.ENTER)
        page.wait("return document.querySelector('#token-why').textContent === 'the token is not known'")
        press(page, "correct-horse-battery", Keys.ENTER)
        page.wait("return !document.querySelector('#make').disabled")
        assert not page.at("#unlock").is_displayed()
        page.wait("return document.querySelector('#pulse-text').textContent === 'idle'")
        page.wait("return document.querySelector('#jobs-text').textContent === 'No job yet.'")
        page.click("#tab-pictures")
        page.write("steps", 3)
        page.click("#make")
        page.wait_run()
        page.click("#curl")
        assert "$DENOISED_TOKEN" in page.text("#curl-text") and "horse" not in page.text("body")
        page.click("#models button")  # alice may not
        page.wait("return document.querySelector('#models-error').textContent.includes('admin')")
        kept = page.js("return [document.cookie, localStorage.length, sessionStorage.getItem('denoised.token'), location.href]")
        assert kept == ["", 0, "correct-horse-battery", page.base + "/"]
        page.driver.get("about:blank")  # before the daemon goes
        assert all("401" in m or "403" in m for m in page.messages())


# ---- what no daemon would say ----


def test_a_hostile_server_is_inert_and_new_fields_appear(page, d):
    evil = '<img src="x" onerror="window.pwned=1"><script>window.pwned=1</script>'
    api = d.ask("GET", "/openapi.json").json()
    api["components"]["schemas"]["GenerateRequest"]["properties"].update({
        "sparkle": {"type": "integer", "minimum": 0, "maximum": 9, "default": 2, "description": evil},
        evil: {"type": "string", "enum": [evil, "b"], "default": evil, "x-unit": evil}})
    card = {"name": evil, "state": "loaded", "labels": [evil, "two"], "n_classes": 3, "sampler": evil, "description": evil,
            "defaults": {"steps": evil, "seed": evil}, "height": 8, "width": 8, "error": evil, "ms_per_row": 1.5, "bytes": 5}
    request = {"id": evil, "state": "running", "model": evil, "n": 2, "step": 1, "steps": 2}
    device = {"name": evil, "backend": evil, "threads": 1, "bytes": 1, "steps": 1, "row_steps": 1, "model": evil, "rows": 2,
              "step_ms": 1, "shares": [{"id": evil, "rows": 2}]}
    status = {"version": evil, "uptime_s": 1, "draining": False, "running": 1, "waiting": 0, "queue_ms": 3, "devices": [device],
              "requests": [request], "models": [card], "memory": {}}
    image = {"index": 0, "seed": evil, "content_type": "image/png", "b64": PNG}
    error = {"error": {"type": "x", "code": "x", "param": evil, "message": evil}}
    job = {"id": evil, "name": evil, "state": evil, "reason": evil, "dataset": evil, "device": evil, "step": 1, "steps": 2, "loss": 0.5,
           "train_share": 0.2, "published": evil, "plan": {"total": 5, "numerics": evil, "micro_batch": evil}}
    data = {"name": evil, "hash": evil, "images": evil, "bytes": 5, "channels": 1, "height_min": evil, "height_max": 8, "width_min": 8,
            "width_max": 8, "n_classes": 2, "classes": [evil, "b"], "pinned_by": 1}
    answers = {"/openapi.json": api, "/models": {"models": [card]}, "/jobs": {"jobs": [job], "next": None},
               "/datasets": {"datasets": [data], "imports": [{"name": evil}]}}
    server = Impostor(POLICY, answers, {
        "/status": [("status", status)],
        "/generate": [("queued", {"id": evil, "seed": evil, "position": 1, "eta_ms": 5}), ("constructor", {"x": 1}),
                      ("preview", {"index": 0, "step": evil, "b64": PNG}), ("image", image), ("error", error)]})
    try:
        page.open(server.base)
        page.wait("return document.querySelectorAll('#queue li').length === 1")
        page.click("#more summary")
        page.write("sparkle", 5)
        page.click("#make")
        page.wait_run("failed")
        body, = server.bodies
        assert body["sparkle"] == 5 and body["model"] == evil and body["stream"] is True
        assert page.text(".run .status") == evil and evil in page.text("#models") and evil in page.text(".device")
        page.click("#tab-training")
        page.click("#new-open")
        page.wait("return document.querySelector('#j-dataset').value === arguments[0] && document.querySelector('#job .plan')", evil)
        assert evil in page.text("#jobs") and evil in page.text("#job") and evil in page.text("#datasets") and evil in page.text("#j-from")
        assert page.js("return document.querySelectorAll('script:not([src]), img[onerror], img[src=x]').length") == 0
    finally:
        page.driver.get("about:blank")
        server.shutdown()
        page.messages()  # icons and streams that the navigation cut off


def test_event_streams_in_any_pieces(ready):
    """Every cut of a stream gives the same events."""
    got = ready.driver.execute_async_script("""
        const done = arguments[0];
        (async () => {
            const { events } = await import(new URL('sse.js', document.baseURI));
            const text = ': ping\\r\\n\\r\\nid: 1\\nevent: a\\ndata: {"x":"\\u00e9\\u4e2d\\ud83d\\ude00"}\\n\\n\\ndata:[1,\\ndata: 2]\\r\\n\\r\\nevent: cut\\ndata: 3\\n';
            const bytes = new TextEncoder().encode(text);
            const out = new Set();
            for (let cut = 1; cut < bytes.length; cut++) {
                const body = new ReadableStream({ start(c) {
                    for (let i = 0; i < bytes.length; i += cut)
                        c.enqueue(bytes.slice(i, i + cut));
                    c.close();
                } });
                const list = [];
                for await (const e of events({ body }))
                    list.push(e);
                out.add(JSON.stringify(list));
            }
            return [...out];
        })().then(done, (e) => done(String(e)));""")
    assert [json.loads(g) for g in got] == [[{"event": "a", "data": {"x": "é中😀"}, "id": "1"},
                                             {"event": "message", "data": [1, 2], "id": "1"}]]


# ---- how it looks ----


def test_nothing_is_wider_than_the_screen(ready):
    ready.size(320, 640)
    ready.js("document.querySelector('#more').open = true")
    ready.write("n", 3)
    ready.write("steps", 3)
    ready.click("#curl")
    ready.click("#make")
    ready.wait_run()
    for width in (320, 390, 768, 1280):
        ready.size(width, 640)
        wide = ready.js("""const wide = [...document.querySelectorAll('body *')].filter((n) => !n.closest('.hidden, .skip') &&
            n.getBoundingClientRect().right > innerWidth + 1).map((n) => n.outerHTML.slice(0, 80));
            const root = document.documentElement;
            return [root.scrollWidth - root.clientWidth, innerWidth, wide]""")
        assert wide == [0, width, []]
        small = ready.js("""return [...document.querySelectorAll('button, select, summary, input:not([type=checkbox])')].filter((n) =>
            n.offsetParent && n.getBoundingClientRect().height < 24).map((n) => n.outerHTML.slice(0, 80))""")
        assert small == []


def test_text_can_be_read(ready):
    ready.js("document.querySelector('#more').open = true; document.querySelectorAll('.chips input')[1].click()")
    ready.write("steps", 0)
    ready.click("#make")
    ready.wait("return document.querySelector('#f-steps').ariaInvalid")
    assert all("400" in m for m in ready.messages())
    check_contrast(ready, 40)


def test_everything_has_a_name(ready):
    """Chromium's own accessibility tree: no control without a name, no unlabelled region."""
    ready.click("#more summary")
    nodes = ready.cdp("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in nodes if not n.get("ignored") and n["role"]["value"] in
                ("button", "textbox", "combobox", "slider", "checkbox", "link", "progressbar", "region", "img")]
    assert len(controls) > 30
    assert [n["role"]["value"] for n in controls if not n.get("name", {}).get("value")] == []
    assert ready.js("return document.querySelector('#live').getAttribute('aria-live')") == "polite"


def test_less_motion_when_asked(ready, d):
    begin_long(ready)
    ready.wait("return document.querySelector('#pulse-dot').className === 'dot busy'")
    for wish, moves in (("no-preference", True), ("reduce", False)):
        ready.media(prefers_reduced_motion=wish)
        assert ready.js("return document.getAnimations().some((a) => a.animationName)") == moves
    ready.click(".cancel")
    ready.wait_run("cancelled")


def test_no_more_runs_than_connections(ready, d):
    """A browser opens six connections to one server: the page keeps some for itself and says so."""
    for n in range(3):
        begin_long(ready)
        ready.wait("return document.querySelectorAll('.run .tag:not(:empty)').length === arguments[0]", n + 1)
    ready.click("#make")
    assert "3 requests of this page are running" in ready.text("#form-error") and len(ready.all(".run")) == 3
    d.wait_status(running=3)
    for button in ready.all(".cancel"):
        button.click()
    ready.wait("return document.querySelectorAll('.run[data-state=cancelled]').length === 3")
    d.wait_status(running=0, waiting=0)
