"""The Training view of the page, in a headless Chromium, against the real daemon."""
import os

import pytest

pytest.importorskip("selenium")

from boxes import Box  # noqa: E402
from browser import Page  # noqa: E402
from serving import make_models  # noqa: E402
from test_jobs import PREVIEWS, job, put_dataset, submit, wait  # noqa: E402

SHOTS = os.environ.get("PAGE_SHOTS")  # a folder: what it looks like, for people


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    box = Box(make_models(tmp_path_factory.mktemp("models")), tmp_path_factory.mktemp("state"))
    d = box.start()
    d.base = "http://%s:%d" % d.address
    put_dataset(d)
    yield box
    box.stop()


@pytest.fixture
def page(tmp_path, box):
    page = Page(str(tmp_path))
    page.open(box.d.base)
    yield page
    assert page.js("return window.violations") == [] and page.messages() == []
    page.quit()


def curve_steps(page):
    return int(page.js("return /to (\\d+)$/.exec(document.querySelector('.chart').lastChild.lastChild.textContent)?.[1] ?? 0"))


def wait_state(page, state):
    page.wait("return document.querySelector('#job article').dataset.state === arguments[0]", state, timeout=60)


def shoot(page, name):
    for width in (1200, 390):
        page.size(width, 900)
        assert page.js("return document.documentElement.scrollWidth <= innerWidth"), "it is wider than the window"
        if SHOTS:
            page.driver.save_screenshot("%s/%s-%d.png" % (SHOTS, name, width))
    page.plain()


def test_a_job_is_watched_paused_resumed_and_published(page, box):
    d = box.d
    id = submit(d, name="squares", steps=1000000, preview=PREVIEWS, eval={"fraction": 0.1, "every_steps": 20})
    page.click("#tab-training")
    page.wait("return document.querySelector('#jobs .job-name')?.textContent === 'squares'")
    page.click("#jobs button")
    wait_state(page, "running")
    page.wait("return document.querySelector('.chart .held').getAttribute('d')")
    before = curve_steps(page)
    page.wait("return Number(/to (\\d+)$/.exec(document.querySelector('.chart').lastChild.lastChild.textContent)?.[1]) > arguments[0]", before)
    page.wait("return document.querySelector('.samples img')?.naturalWidth === 16", timeout=60)
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

    page.click("[data-action=resume]")
    wait_state(page, "running")
    page.wait("return Number(/to (\\d+)$/.exec(document.querySelector('.chart').lastChild.lastChild.textContent)[1]) > arguments[0]", info["step"])

    page.click("[data-action=cancel]")
    wait_state(page, "cancelled")
    assert job(d, id)["state"] == "cancelled"
    page.click("#tab-pictures")
    page.wait("return [...document.querySelectorAll('#f-model option')].some((o) => o.value === 'squares')")
