"""The Training view of the page, in a headless Chromium, against the real daemon."""
import json
import os
import time

import pytest

pytest.importorskip("selenium")

from boxes import Box  # noqa: E402
from browser import Page, check_contrast, press, tab_to  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from serving import PATIENCE, make_models  # noqa: E402
from test_datasets import idx, pictures, png, tar  # noqa: E402
from test_jobs import JOB, PREVIEWS, UNET, dots, job, put_dataset, submit, wait  # noqa: E402
from uploads import slow_tar  # noqa: E402

SHOTS = os.environ.get("PAGE_SHOTS")  # a folder: what it looks like, for people


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    box = Box(make_models(tmp_path_factory.mktemp("models")), tmp_path_factory.mktemp("state"))
    d = box.start()
    d.base = "http://%s:%d" % d.address
    put_dataset(d)
    yield box
    box.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    page = Page(str(tmp_path_factory.mktemp("downloads")))
    yield page
    page.quit()


@pytest.fixture
def page(browser, box):
    """The Training view; a test that provokes refusals takes them out with `messages`. What it began is cancelled at its end."""
    browser.plain()
    browser.messages()
    browser.open(box.d.base)
    browser.click("#tab-training")
    browser.wait("return /job|New/.test(document.querySelector('#jobs-text').textContent)")
    yield browser
    assert browser.js("return window.violations") == [] and browser.messages() == []
    browser.driver.get("about:blank")
    for state in ("running", "queued", "paused"):
        for left in box.d.ask("GET", "/jobs?limit=50&state=" + state).json()["jobs"]:
            box.d.ask("POST", "/jobs/%s/cancel" % left["id"])


def curve_steps(page):
    return int(page.js("return /to (\\d+)$/.exec(document.querySelector('.chart').lastChild.lastChild.textContent)?.[1] ?? 0"))


def wait_state(page, state):
    page.wait("return document.querySelector('#job article')?.dataset.state === arguments[0]", state, timeout=60)


def shoot(page, name):
    for width in (1200, 390):
        page.size(width, 900)
        assert page.js("return document.documentElement.scrollWidth <= innerWidth"), "it is wider than the window"
        if SHOTS:
            page.size(width, page.js("return document.documentElement.scrollHeight"))
            page.driver.save_screenshot("%s/%s-%d.png" % (SHOTS, name, width))
    page.plain()


def field(page, param, text):
    """Put text into the field of the new job that `param` names."""
    page.js("""const [param, text] = arguments, row = document.querySelector(`#new-form [data-param="${param}"]`);
               const field = row.querySelector('select, textarea, input:not([type=range])');
               field.value = text;
               field.dispatchEvent(new Event('input', { bubbles: true }));
               field.dispatchEvent(new Event('change', { bubbles: true }));""", param, text)


def open_form(page):
    page.click("#new-open")
    page.wait("return document.querySelector('#j-dataset').value")  # the datasets have come


def look_again(page):
    """The view asks at once when it is opened, else every two seconds."""
    page.click("#tab-pictures")
    page.click("#tab-training")


def job_of(page):
    """The id of the job that is shown, of the list's pressed button."""
    return page.js("return document.querySelector('#jobs [aria-pressed=true]').parentNode.dataset.key")


# ---- a job that is there ----


def test_a_job_is_watched_paused_resumed_and_published(page, box):
    d = box.d
    id = submit(d, name="squares", steps=1000000, preview=dict(PREVIEWS, every_steps=20), eval={"fraction": 0.1, "every_steps": 20})
    page.wait("return document.querySelector('#jobs .job-name')?.textContent === 'squares'")
    page.click("#jobs button")
    wait_state(page, "running")
    page.wait("return document.querySelector('.chart .held').getAttribute('d')")
    before = curve_steps(page)
    page.wait("return Number(/to (\\d+)$/.exec(document.querySelector('.chart').lastChild.lastChild.textContent)?.[1]) > arguments[0]", before)
    page.wait("return document.querySelector('.samples img')?.naturalWidth === 16", timeout=60)
    page.wait("return document.querySelectorAll('.samples li').length > 5", timeout=60)  # more than a phone is wide
    assert page.text(".previews h3") == "Previews"
    assert page.js("return [...document.querySelector('.samples li').querySelectorAll('figcaption')].map((n) => n.textContent)") == ["blue", "green", "red"]
    shoot(page, "running")

    page.js("""const s = document.querySelector('.share input'); s.value = 0.7; s.dispatchEvent(new Event('change'))""")
    page.wait("return document.querySelector('.share span').textContent.endsWith('70\u00a0%')")
    page.click("[data-action=pause]")
    wait_state(page, "paused")
    info = wait(d, id, "paused")
    assert info["train_share"] == 0.7
    page.wait("return document.querySelector('.chart').lastChild.lastChild.textContent.endsWith(' ' + arguments[0])", info["step"])
    assert not page.at("[data-action=pause]").is_enabled()

    page.click("[data-action=publish]")
    page.js("document.querySelector('.publish input').value = 'Not A Name'")
    page.click(".publish button")
    page.wait("return !document.querySelector('#job .error').hidden")
    page.messages()  # that refusal is in the console
    page.js("document.querySelector('.publish input').value = 'squares'")
    page.click(".publish button")
    page.wait("return document.querySelector('#job .status').textContent.includes('published as squares@1')", timeout=60)
    assert "squares" in [m["name"] for m in d.ask("GET", "/models").json()["models"]]
    page.wait("return [...document.querySelectorAll('#new-template option')].some((o) => o.value === 'like:squares')")
    page.click("[data-action=publish]")
    assert page.text("#publish-hint").startswith("There is a model squares: ")
    shoot(page, "publish")
    page.click("[data-action=publish]")

    page.click("[data-action=resume]")
    wait_state(page, "running")
    page.wait("return Number(/to (\\d+)$/.exec(document.querySelector('.chart').lastChild.lastChild.textContent)[1]) > arguments[0]", info["step"])

    assert "images/s" in page.text("#job .status") and "e+" not in page.text("#job .status")
    page.click("[data-action=cancel]")
    assert page.js("return document.activeElement.textContent") == "Keep it"  # not at once
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.js("return document.activeElement.dataset.action") == "cancel" and job(d, id)["state"] == "running"
    page.click("[data-action=cancel]")
    page.click("[data-action=end]")
    wait_state(page, "cancelled")
    assert page.js("return document.activeElement.tagName") == "H3" and not page.at("[data-action=end]").is_displayed()
    assert job(d, id)["state"] == "cancelled"
    page.click("#tab-pictures")
    page.wait("return [...document.querySelectorAll('#f-model option')].some((o) => o.value === 'squares')")


def test_older_previews(page, box):
    d = box.d
    id = submit(d, name="often", steps=1000000, eval={}, preview={"every_steps": 1, "steps": 1})

    def made():
        return len({s["step"] for s in d.ask("GET", "/jobs/%s/samples" % id).json()["samples"]})

    wait(d, id, "running", step=1)
    end = time.monotonic() + PATIENCE
    while made() < 14:
        assert time.monotonic() < end
        time.sleep(0.05)
    d.ask("POST", "/jobs/%s/pause" % id)
    wait(d, id, "paused")
    look_again(page)
    page.wait("return document.querySelector('#jobs .job-name')?.textContent === 'often'")
    page.click("#jobs button")
    page.wait("return document.querySelectorAll('.samples li').length === 12 && !document.querySelector('.previews button').hidden")
    page.at(".previews button").send_keys(Keys.ENTER)
    page.wait("return document.querySelectorAll('.samples li').length === arguments[0]", min(made(), 24))
    page.wait("return document.querySelectorAll('.samples img[src]').length === arguments[0]", min(made(), 24))
    assert page.at(".previews button").is_displayed() == (made() > 24) and page.js("return document.activeElement.className") == "samples"


def test_older_jobs(page, box):
    d = box.d
    had = len(d.ask("GET", "/jobs?limit=50").json()["jobs"])
    ids = [submit(d, name="old-%d" % k, steps=1000000) for k in range(23)]
    for id in ids:
        assert d.ask("POST", "/jobs/%s/cancel" % id).status in (200, 202)
    newest = ids[::-1]
    look_again(page)
    keys = "return [...document.querySelector('#jobs').children].map((i) => i.dataset.key)"
    page.wait("const keys = (() => { %s })(); return keys[0] === arguments[0] && keys.length === 20" % keys, newest[0])
    page.at("#jobs-older").send_keys(Keys.ENTER)
    page.wait("return document.querySelector('#jobs').children.length === arguments[0]", 23 + had)
    assert page.js(keys)[:23] == newest
    assert page.js("return document.activeElement.parentNode.dataset.key") == newest[20]  # the first that it brought
    assert not page.at("#jobs-older").is_displayed() and page.text("#jobs-text") == "%d jobs" % (23 + had)
    last = submit(d, name="newer", steps=1000000)
    look_again(page)  # at all of them
    page.wait("const keys = (() => { %s })(); return keys[0] === arguments[0] && keys.length === arguments[1]" % keys, last, 24 + had)


# ---- a new one ----


def test_a_job_from_the_keyboard_on_a_phone(page, box):
    """Tab, Enter, Space and arrows do all of it: start from a model, pause, resume, share, publish, cancel."""
    d = box.d
    page.driver.refresh()
    page.wait("return !document.querySelector('#make').disabled")
    page.size(390, 844)
    tab_to(page, "a.id === 'tab-training'")
    press(page, Keys.ENTER)
    tab_to(page, "a.id === 'new-open'")
    press(page, Keys.ENTER)
    page.wait("return document.activeElement.id === 'new-template' && document.querySelector('#j-dataset').value === 'dots'")
    tab_to(page, "a.id === 'j-from'")
    while page.js("return document.activeElement.value") != "tiny":
        press(page, Keys.ARROW_DOWN)
    assert not page.at("#j-model").is_displayed()
    tab_to(page, "a.id === 'j-objective-prediction'")
    press(page, Keys.ARROW_DOWN)  # the first of the document's choices
    tab_to(page, "a.type === 'range' && a.closest('[data-param]').dataset.param === 'train_share'")
    press(page, Keys.ARROW_RIGHT)
    page.js("window.heard = []; new MutationObserver(() => heard.push(document.querySelector('#live').textContent)).observe("
            "document.querySelector('#live'), { childList: true, characterData: true, subtree: true })")
    tab_to(page, "a.id === 'new-submit'")
    press(page, Keys.ENTER)
    page.wait("return document.activeElement === document.querySelector('#job h3')")
    assert page.js("return heard[0]").startswith("dots is accepted, ")
    wait_state(page, "running")
    page.wait("return document.querySelector('#jobs [aria-pressed=true]')")
    id = job_of(page)
    request = job(d, id)["request"]
    assert request["from"] == "tiny@1" and request["train_share"] == 0.25 and request["objective"]["prediction"] == "epsilon"
    assert "model" not in request and request["preview"]["every_steps"] == 200
    shoot(page, "accepted")
    page.size(390, 844)

    tab_to(page, "a.dataset.action === 'pause'")
    press(page, Keys.SPACE)
    wait_state(page, "paused")
    assert page.js("return document.activeElement.dataset.action") == "resume"  # the focus is handed on
    assert page.text("#live") == "dots: paused."
    at = wait(d, id, "paused")["step"]
    press(page, Keys.ENTER)
    wait_state(page, "running")
    wait(d, id, "running", step=at + 1)  # it is on its device again, where publishing finds it
    tab_to(page, "a.dataset.action === 'publish'")
    press(page, Keys.ENTER)
    page.wait("return document.activeElement.value === 'dots'")
    press(page, Keys.ENTER)
    page.wait("return document.querySelector('#live').textContent.startsWith('Published as dots@')", timeout=60)
    tab_to(page, "a.type === 'range'")
    press(page, Keys.ARROW_RIGHT)
    page.wait("return document.querySelector('.share span').textContent.endsWith('30\u00a0%')")
    assert job(d, id)["train_share"] == 0.3
    page.driver.find_element("css selector", "[data-action=cancel]").send_keys(Keys.ENTER)
    press(page, Keys.TAB, Keys.ENTER)
    wait_state(page, "cancelled")


WRONG = [("name", "Not A Name", {"name": "Not A Name"}), ("steps", "0", {"steps": 0}), ("optimizer.lr", "fast", {"optimizer": {"lr": "fast"}}),
         ("lr_schedule.warmup_steps", "99999", {"lr_schedule": {"warmup_steps": 99999}}), ("augment", '[{"kind": "flip", "p": 2}]', {"augment": [{"kind": "flip", "p": 2}]}),
         ("objective.snr_gamma", "3", {"objective": {"snr_gamma": 3}}), ("micro_batch", "3", {"micro_batch": 3}),
         ("preview.labels", "yellow", {"preview": {"labels": "yellow", "every_steps": 200}})]


def test_refusals_of_a_job_are_at_their_field(page, box):
    open_form(page)
    fields = page.js("return [...document.querySelectorAll('#new-form [data-param]')].map((n) => n.dataset.param)")
    schemas = box.d.ask("GET", "/openapi.json").json()["components"]["schemas"]
    for name, schema in schemas["JobRequest"]["properties"].items():  # everything that the daemon takes
        sub = schemas[schema["$ref"].rsplit("/", 1)[1]]["properties"] if "$ref" in schema else None
        assert name == "kind" or all(p in fields for p in (["%s.%s" % (name, k) for k in sub] if sub else [name])), name
    assert [o.text for o in page.all("#j-precision option")] == ["default (fp32)"] + schemas["JobRequest"]["properties"]["precision"]["enum"]

    field(page, "model", "{")
    page.click("#new-submit")
    assert page.text("#new-form [data-param=model] .error") == "model is not well-formed JSON"
    body = dict(JOB, steps=2000, batch_size=32, model=UNET)
    body = {k: v for k, v in body.items() if k not in ("micro_batch", "checkpoint", "eval", "objective", "augment", "ema")}
    field(page, "model", json.dumps(UNET))
    field(page, "name", "t")
    for param, text, wrong in WRONG:
        page.js("document.querySelector('#new-more').open = false")
        before = page.js("return document.querySelector(`#new-form [data-param=\"${arguments[0]}\"]`).querySelector('select, textarea, input:not([type=range])').value", param)
        field(page, param, text)
        page.click("#new-submit")
        error = page.wait("""const e = document.querySelector(`#new-form [data-param="${arguments[0]}"] .error`);
                             return !e.hidden && e.textContent""", param)
        page.wait("return !document.querySelector('#new-submit').disabled")
        assert error == box.d.ask("POST", "/jobs", {**body, **wrong}).json()["error"]["message"]
        assert page.js("""const a = document.activeElement; return [a.closest('[data-param]')?.dataset.param, a.getAttribute('aria-invalid')]""") == [param, "true"]
        assert page.at("#new-form [data-param='%s'] .error" % param).is_displayed() and len(page.all(".error:not([hidden])")) == 1
        field(page, param, before)
    assert all("40" in m or "42" in m for m in page.messages())


def test_a_small_network_from_scratch_and_its_plan(page, box):
    open_form(page)
    assert page.at("#j-model").get_attribute("value") != ""  # there from the beginning, for the dataset
    field(page, "model", "{}")
    page.click("#new-fill")
    page.wait("return document.querySelector('#new-template-text').textContent")
    config = json.loads(page.at("#j-model").get_attribute("value"))
    assert config["sample_size"] == 16 and config["in_channels"] == 3 and config["num_class_embeds"] == 4  # three classes and none
    for param, text in {"name": "scratch", "batch_size": "8", "steps": "100000", "precision": "bf16", "ema.decay": "0.99", "augment": '[{"kind": "flip", "p": 0.5}]'}.items():
        field(page, param, text)
    shoot(page, "new")
    page.click("#new-submit")
    wait_state(page, "running")
    page.wait("return document.querySelector('#jobs [aria-pressed=true]')")
    info = job(box.d, job_of(page))
    assert info["request"]["model"] == config and info["request"]["ema"]["decay"] == 0.99 and info["request"]["precision"] == "bf16"
    assert info["request"]["objective"]["label_dropout"] == 0.1 and info["request"]["preview"]["labels"] == "all"
    assert [a["kind"] for a in info["request"]["augment"]] == ["flip"]
    plan = dict(page.js("return [...document.querySelectorAll('.plan div')].map((n) => [...n.children].map((c) => c.textContent))"))
    assert list(plan)[0] == "total" and plan["micro batch"] == str(info["plan"]["micro_batch"]) and plan["numerics"] == info["plan"]["numerics"]
    parts = {k: float(plan[k].split()[0]) * {"B": 1, "KB": 1e3, "MB": 1e6}[plan[k].split()[1]] for k in ("weights", "moments", "arena", "total")}
    for key, value in parts.items():
        assert abs(value - info["plan"][key]) <= 0.06 * info["plan"][key], key


def fill_from(page, value):
    """By the keyboard: the list of templates, and the button behind it."""
    page.js("const s = document.querySelector('#new-template'); s.focus(); document.querySelector('#new-template-text').textContent = ''")
    press(page, Keys.HOME)
    while page.js("return document.querySelector('#new-template').value") != value:
        before = page.js("return document.querySelector('#new-template').selectedIndex")
        press(page, Keys.ARROW_DOWN)
        assert page.js("return document.querySelector('#new-template').selectedIndex") == before + 1
    tab_to(page, "a.id === 'new-fill'", tabs=1)
    press(page, Keys.ENTER)
    return page.wait("return document.querySelector('#new-template-text').textContent")


def send_form(page, box, name):
    """The request as it was resolved; the job is ended."""
    field(page, "name", name)
    page.click("#new-submit")
    page.wait("return document.querySelector('#job h3')?.textContent === arguments[0]", name)
    page.wait("return document.querySelector('#jobs [aria-pressed=true] .job-name')?.textContent === arguments[0]", name)
    id = job_of(page)
    box.d.ask("POST", "/jobs/%s/cancel" % id)
    return job(box.d, id)["request"]


def test_a_new_job_begins_with_an_old_one_or_a_model(page, box):
    d = box.d
    old = submit(d, name="old", steps=2, augment=[{"kind": "flip", "p": 0.5}, {"kind": "rotate", "amount": 4}], precision="bf16",
                 schedule={"beta_schedule": "squaredcos_cap_v2"}, optimizer={"betas": [0.8, 0.99], "lr": 3e-4}, ema={"every": 2},
                 objective={"prediction": "v", "weighting": "min_snr", "snr_gamma": 4, "timesteps": "logit_normal"},
                 preview=dict(PREVIEWS, seeds=[5, 6]), checkpoint={"every_s": 0}, lr_schedule={"kind": "cosine", "warmup_steps": 1}, seed=77)
    wait(d, old)
    request = job(d, old)["request"]
    assert d.ask("POST", "/jobs/%s/publish" % old, {"as": "cosine"}).status == 200
    page.driver.refresh()
    page.wait("return !document.querySelector('#make').disabled")
    page.click("#tab-training")
    open_form(page)
    page.wait("return [...document.querySelectorAll('#new-template option')].some((o) => o.value === 'job:' + arguments[0])", old)

    assert "It can be changed" in fill_from(page, "job:" + old)
    assert page.text("#new-more summary").startswith("More (")
    shoot(page, "template")
    assert send_form(page, box, "again") == dict(request, name="again")  # nothing is lost on the way through the form

    open_form(page)
    fill_from(page, "like:cosine")
    like = send_form(page, box, "like")
    assert like["model"] == UNET and "from" not in like and like["schedule"] == request["schedule"]
    assert like["objective"]["prediction"] == "v" and like["objective"]["label_dropout"] == 0.1 and like["preview"]["labels"] == "all"
    assert like["dataset"] == request["dataset"] and like["steps"] == 2000

    open_form(page)
    fill_from(page, "further:cosine")
    assert not page.at("#j-model").is_displayed()
    further = send_form(page, box, "further")
    assert further["from"] == "cosine@1" and "model" not in further and further["objective"]["prediction"] == "v"
    assert d.ask("POST", "/jobs/%s/publish" % old, {"as": "cosine"}).status == 200  # cosine@1 is not the live one any more
    tab_to(page, "a.dataset.action === 'again'")
    press(page, Keys.ENTER)  # of the card: the job that is looked at
    page.wait("return document.querySelector('#new-template-text').textContent.startsWith('Filled in: further, ')")
    assert page.js("return document.activeElement.id") == "new-template"
    assert send_form(page, box, "last") == dict(further, name="last")

    put_dataset(d, "gone", dots(9))
    lost = submit(d, name="lost", dataset="gone", steps=2, eval={})
    wait(d, lost)
    assert d.ask("DELETE", "/datasets/gone").status == 200
    look_again(page)
    open_form(page)
    page.wait("return [...document.querySelectorAll('#new-template option')].some((o) => o.value === 'job:' + arguments[0])", lost)
    page.wait("return ![...document.querySelectorAll('#j-dataset option')].some((o) => o.value === 'gone')")
    assert "dataset gone is here no more" in fill_from(page, "job:" + lost)


def test_a_lost_answer_is_no_second_job(page, box):
    open_form(page)
    field(page, "model", json.dumps(UNET))
    field(page, "name", "once")
    page.js("""const real = fetch;
        window.fetch = async (path, options) => {
            const answer = await real(path, options);
            if (options?.method !== 'POST')
                return answer;
            window.fetch = real;
            throw new TypeError('the connection was lost');
        };""")
    page.click("#new-submit")
    page.wait("return document.querySelector('#new-error').textContent === 'The server does not answer.'")
    page.click("#new-submit")
    page.wait("return document.activeElement === document.querySelector('#job h3')")
    assert page.text("#job h3") == "once"
    jobs = box.d.ask("GET", "/jobs").json()["jobs"]
    assert [j["name"] for j in jobs].count("once") == 1


# ---- datasets ----


def names(page):
    return page.js("return [...document.querySelectorAll('.dataset-name')].map((n) => n.textContent)")


def put_files(page, *paths):
    page.js("document.querySelector('#upload-more').open = true")
    page.at("#upload-files").send_keys("\n".join(str(p) for p in paths))


def test_uploads_and_what_they_report(page, box, tmp_path):
    broken = tmp_path / "Some Pictures.tar"
    broken.write_bytes(tar(pictures(6) + [("b/torn.png", png(8, 8, 3)[:60])]))
    put_files(page, broken)
    assert page.text("#upload-chosen").startswith("Some Pictures.tar, ")
    assert page.at("#upload-name").get_attribute("value") == "some-pictures"
    page.click("#upload-send")
    page.wait("return !document.querySelector('#upload-files-error').hidden")
    assert "torn.png" in page.text("#upload-files-error") and page.js("return document.activeElement.id") == "upload-files"
    assert all("400" in m for m in page.messages()) and "some-pictures" not in names(page)

    page.at("#upload-skip").send_keys(Keys.SPACE)
    page.click("#upload-send")
    page.wait("return document.activeElement.id === 'upload-report'")
    report = page.text("#upload-report").replace("\n\n", "\n").split("\n")
    assert report[0].startswith("some-pictures: 6 pictures · 8×8 · 2 classes") and report[1] == "Classes: a, b"
    assert report[2] == "1 file left out:" and report[3].startswith("b/torn.png: ")
    page.wait("return document.querySelector('.dataset-name').textContent === 'some-pictures'")
    shoot(page, "uploaded")

    page.driver.refresh()  # it is the first choice of a new job
    page.wait("return !document.querySelector('#make').disabled")
    page.click("#tab-training")
    open_form(page)
    page.wait("return document.querySelector('#j-dataset').value === 'some-pictures' && document.querySelector('#j-name').value === 'some-pictures'")

    files = []
    for name, data in idx():
        (tmp_path / name).write_bytes(data)
        files.append(tmp_path / name)
    put_files(page, *files)  # two files: the page packs them
    assert page.text("#upload-chosen").startswith("2 files, ")
    page.js("document.querySelector('#upload-name').value = 'digits'")
    page.click("#upload-send")
    page.wait("return document.activeElement.id === 'upload-report'")
    assert page.text("#upload-report").startswith("digits: 4 pictures · 8×8 · 3 classes")
    page.wait("return document.querySelector('#j-dataset').value === 'digits' && document.querySelector('#j-name').value === 'digits'")
    assert json.loads(page.at("#j-model").get_attribute("value"))["sample_size"] == 8  # the network follows
    whole = box.d.ask("PUT", "/datasets/whole", tar(idx()), {"Content-Type": "application/x-tar"}).json()
    assert box.d.ask("GET", "/datasets/digits").json()["hash"] == whole["hash"]


def test_a_folder_is_dropped(page, box, tmp_path):
    deep = "x" * 90
    for name, data in pictures(5):
        path = tmp_path / "birds" / deep / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    page.js("document.querySelector('#upload-more').open = true; document.querySelector('#upload-drop').scrollIntoView()")
    x, y = page.js("const r = document.querySelector('#upload-drop').getBoundingClientRect(); return [r.x + 20, r.y + 20]")
    data = {"items": [], "files": [str(tmp_path / "birds")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.cdp("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)
    page.wait("return document.querySelector('#upload-chosen').textContent.startsWith('5 files, ')")
    assert page.at("#upload-name").get_attribute("value") == "birds"
    page.click("#upload-send")
    page.wait("return document.activeElement.id === 'upload-report'")
    assert "birds: 5 pictures · 8×8 · 2 classes" in page.text("#upload-report")


def test_an_upload_is_cancelled(page, box, tmp_path):
    big = tmp_path / "big.npy"
    big.write_bytes(os.urandom(8 << 20))
    put_files(page, big)
    page.cdp("Network.enable")
    page.cdp("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=1 << 20)
    try:
        page.at("#upload-send").send_keys(Keys.ENTER)
        page.wait("const b = document.querySelector('#upload-bar'); return b.value > 1e5 && b.max === arguments[0]", 8 << 20)
        assert page.text("#upload-text").endswith(" of 8.4 MB")
        assert page.js("return document.activeElement.id") == "upload-text"
        press(page, Keys.TAB, Keys.ENTER)
        page.wait("return document.activeElement.id === 'upload-send' && document.querySelector('#upload-progress').hidden")
        assert page.text("#live") == "The upload is cancelled."
    finally:
        page.cdp("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
        page.cdp("Network.disable")
    assert "big" not in [s["name"] for s in box.d.ask("GET", "/datasets").json()["datasets"]]
    assert page.text("#upload-chosen").startswith("big.npy")  # and can be tried again


def test_an_import_is_cancelled(page, box, tmp_path):
    """All is sent and the server reads: cancelling stops that, and what the name meant before stays."""
    d = box.d
    before = put_dataset(d, "slow", dots(9))["hash"]
    (tmp_path / "slow.tar").write_bytes(slow_tar(1900))
    put_files(page, tmp_path / "slow.tar")
    page.at("#upload-send").send_keys(Keys.ENTER)
    page.wait("return document.querySelector('#upload-text').textContent.startsWith('Sent.')")
    assert page.js("return [document.activeElement.id, document.querySelector('#upload-bar').hasAttribute('value')]") == ["upload-text", False]
    shoot(page, "importing")
    press(page, Keys.TAB, Keys.ENTER)
    page.wait("return document.activeElement.id === 'upload-send' && document.querySelector('#upload-progress').hidden")
    assert page.text("#live") == "The upload is cancelled." and page.text("#upload-chosen").startswith("slow.tar")
    assert not page.at("#upload-report").is_displayed() and not page.at("#upload-files-error").is_displayed()
    assert all("404" in m or "409" in m for m in page.messages())
    assert d.ask("GET", "/datasets/slow").json()["hash"] == before and os.listdir(box.state + "/incoming") == []

    (tmp_path / "late.tar").write_bytes(slow_tar(300))  # a server that does not hear of it in time
    put_files(page, tmp_path / "late.tar")
    page.js("""const real = fetch;
        document.querySelector('#upload-name').value = 'late';
        window.fetch = (path, options) => real(options?.method === 'DELETE' ? path.replace('late', 'later') : path, options);""")
    page.click("#upload-send")
    page.wait("""if (!document.querySelector('#upload-text').textContent.startsWith('Sent.'))
                     return false;
                 document.querySelector('#upload-cancel').click();
                 return document.querySelector('#upload-text').textContent === 'Asking the server to stop …';""")
    page.wait("return document.activeElement.id === 'upload-report'", timeout=60)
    assert page.text("#upload-report").startswith("Too late to be cancelled. late: 300 pictures")
    assert page.messages() and "late" in [s["name"] for s in d.ask("GET", "/datasets").json()["datasets"]]
    for name in ("late", "slow"):
        assert d.ask("DELETE", "/datasets/" + name).status == 200


def test_what_others_send_is_told(page, box):
    client = box.d.client()
    client.send("PUT /datasets/others HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-tar\r\nContent-Length: 900000\r\n\r\n")
    end = time.monotonic() + PATIENCE
    while not box.d.ask("GET", "/datasets").json()["imports"]:
        assert time.monotonic() < end
    look_again(page)
    page.wait("return document.querySelector('#datasets-text').textContent.endsWith(' · others is on its way')")
    client.close()
    page.wait("return !document.querySelector('#datasets-text').textContent.includes('others')")


def test_datasets_are_deleted_unless_they_are_used(page, box):
    d = box.d
    put_dataset(d, "spare", dots(9))
    id = submit(d, dataset="dots", steps=1000000)
    look_again(page)
    page.wait("""return [...document.querySelectorAll('#datasets li')].some((l) => l.textContent.includes('spare')) &&
        [...document.querySelectorAll('#datasets .hint')].some((h) => h.textContent.endsWith('used by 1 job'))""")
    for name, gone in (("dots", False), ("spare", True)):
        page.js("document.querySelector(`[aria-label='Delete ${arguments[0]}']`).focus()", name)
        press(page, Keys.ENTER)
        assert page.js("return document.activeElement.getAttribute('aria-label')") == "Keep " + name  # not at once
        press(page, Keys.TAB, Keys.ENTER)
        if gone:
            page.wait("return ![...document.querySelectorAll('.dataset-name')].some((n) => n.textContent === arguments[0])", name)
            assert page.text("#live") == "spare is deleted."
        else:
            error = page.wait("const e = document.querySelector('#datasets .error:not([hidden])'); return e && e.textContent")
            assert error == d.ask("DELETE", "/datasets/" + name).json()["error"]["message"] and "job" in error
            assert all("409" in m for m in page.messages())
    assert [s["name"] for s in d.ask("GET", "/datasets").json()["datasets"]].count("dots") == 1
    d.ask("POST", "/jobs/%s/cancel" % id)
    page.wait("return ![...document.querySelectorAll('#datasets .hint')].some((h) => h.textContent.includes('used by'))")


def test_curves_of_a_job_that_was_over_before_the_daemon_started(page, box):
    """Events tell nothing of it any more: its metrics.csv has all."""
    id = submit(box.d, name="before", steps=12, eval={"fraction": 0.1, "every_steps": 4})
    wait(box.d, id)
    page.driver.get("about:blank")
    d = box.again()
    d.base = "http://%s:%d" % d.address
    page.open(d.base)
    page.click("#tab-training")
    page.wait("return document.querySelector('#job h3')?.textContent === 'before'")
    page.wait("return document.querySelector('.chart').lastChild.lastChild.textContent === 'steps 1 to 12'")
    rows = [line.split(",") for line in d.ask("GET", "/jobs/%s/metrics.csv" % id).body.decode().splitlines()]
    now = "now %.3g, held out %.3g" % tuple(float([r[3] for r in rows if r[2] == kind][-1]) for kind in ("step", "eval"))
    assert page.text(".chart .hint") == now and page.js("return document.querySelector('.chart .held').getAttribute('d').split('M').length - 1") == 3


def test_steps_that_are_told_again_take_the_place_of_what_was(page, box):
    """After kill -9 a job goes on from its checkpoint, behind what the page has seen: with the event `resumed`, or without one."""
    got = page.driver.execute_async_script("""
        const done = arguments[0];
        (async () => {
            const { Card } = await import(new URL('card.js', document.baseURI));
            const { components } = await (await fetch('openapi.json')).json();
            const job = { id: 'x', name: 'x', state: 'running', dataset: 'd@1', device: 'cpu', step: 0, steps: 9, train_share: 0.2, plan: {} };
            const card = new Card(job, components.schemas, { again() {}, models: () => [] });
            card.controller = new AbortController();
            card.controller.abort(); // it asks for nothing
            const tell = (event, ...steps) => steps.forEach((step) => card.on(event, { step, steps: 9, loss: card.losses = (card.losses ?? 0) + 1 }));
            tell('step', 1, 2, 3); tell('eval', 3); tell('step', 4, 5); tell('eval', 5);
            tell('resumed', 3); tell('step', 4, 5, 6);
            tell('step', 5); tell('eval', 5); tell('eval', 5);
            done([card.steps.map((p) => p.step), card.evals.map((p) => p.step), card.steps.at(-1).loss]);
        })().catch((e) => done(String(e)));""")
    assert got == [[1, 2, 3, 4, 5], [3, 5], 12]


# ---- how it looks ----


def test_everything_of_the_view_has_a_name_and_fits(page, box):
    open_form(page)
    page.js("document.querySelectorAll('#training details').forEach((n) => { n.open = true; })")
    nodes = page.cdp("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in nodes if not n.get("ignored") and n["role"]["value"] in
                ("button", "textbox", "combobox", "slider", "checkbox", "link", "progressbar", "region", "img")]
    assert len(controls) > 60
    assert [n["role"]["value"] for n in controls if not n.get("name", {}).get("value")] == []
    for width in (320, 390, 768, 1280):
        page.size(width, 700)
        wide = page.js("""return [...document.querySelectorAll('body *')].filter((n) => !n.closest('.hidden, .skip') && n.offsetParent &&
            n.getBoundingClientRect().right > innerWidth + 1).map((n) => n.outerHTML.slice(0, 80))""")
        assert wide == [] and page.js("return document.documentElement.scrollWidth <= innerWidth")
        small = page.js("""return [...document.querySelectorAll('button, select, summary, .pick, .check, input:not([type=checkbox])')].filter((n) =>
            n.offsetParent && n.getBoundingClientRect().height < 24).map((n) => n.outerHTML.slice(0, 80))""")
        assert small == []
    shoot(page, "form")
    check_contrast(page, 150)
