"""A headless Chromium, and the daemons that its page comes from."""
import http.server
import json
import os
import re
import threading
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

WEB = os.environ["DENOISED_WEB"]
FLAGS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
         "--window-size=1280,900"]

# Runs before the page: notes what the content security policy stopped, and every picture that is shown.
WATCH = """
window.violations = [];
addEventListener('securitypolicyviolation', (e) => violations.push(e.violatedDirective + ' ' + e.blockedURI));
window.seen = [];
new MutationObserver((changes) => {
    for (const { target } of changes)
        if (target.matches('.tiles img'))
            seen.push({ src: target.src, state: target.closest('.run').dataset.state ?? 'running' });
}).observe(document, { subtree: true, attributes: true, attributeFilter: ['src'] });
"""


class Page:
    """The page in the browser, as a test sees it."""

    def __init__(self, download_dir):
        options = webdriver.ChromeOptions()
        for flag in FLAGS:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        self.downloads = download_dir
        self.cdp("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        self.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=download_dir)

    def cdp(self, command, **args):
        return self.driver.execute_cdp_cmd(command, args)

    def js(self, text, *args):
        return self.driver.execute_script(text, *args)

    def open(self, base, ready=True):
        self.base = base
        self.driver.get(base + "/")
        if ready:
            self.wait("return !document.querySelector('#make').disabled")

    def wait(self, text, *args, timeout=15):
        """Until the script's value is true; that value."""
        end = time.monotonic() + timeout
        while True:
            value = self.js(text, *args)
            if value:
                return value
            assert time.monotonic() < end, "never: %s; %s" % (text, self.text("body"))
            time.sleep(0.02)

    def at(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0])?.innerText", selector)

    def click(self, selector):
        self.at(selector).click()

    def write(self, param, text):
        """Put text into the field that `param` names."""
        self.js("""const [param, text] = arguments, row = document.querySelector(`[data-param="${param}"]`);
                   const field = row.querySelector('textarea, input:not([type=range])');
                   field.value = text;
                   field.dispatchEvent(new Event('input', { bubbles: true }));""", param, str(text))

    def choose(self, param, words):
        select = self.at("[data-param='%s'] select" % param)
        self.js("""const [select, words] = arguments;
                   select.value = [...select.options].find((o) => o.text === words).value;
                   select.dispatchEvent(new Event('change', { bubbles: true }));""", select, words)

    def wait_run(self, state="done", timeout=30):
        return self.wait("return document.querySelector('.run')?.dataset.state === arguments[0]", state, timeout=timeout)

    def pictures(self):
        """Base64 of the final pictures on the stage."""
        return self.js("return [...document.querySelectorAll('.run:first-child .tiles img')].map((i) => i.src.split(',')[1])")

    def messages(self):
        """What the console complained of since it was last asked."""
        return [m["message"] for m in self.driver.get_log("browser") if m["level"] in ("SEVERE", "WARNING")]

    def size(self, width, height):
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def media(self, **features):
        self.cdp("Emulation.setEmulatedMedia",
                 features=[{"name": k.replace("_", "-"), "value": v} for k, v in features.items()])

    def plain(self):
        self.cdp("Emulation.clearDeviceMetricsOverride")
        self.media()

    def quit(self):
        self.driver.quit()


def press(page, *keys):
    ActionChains(page.driver).send_keys(*keys).perform()


def tab_to(page, test, *args, tabs=80):
    """Press Tab until the focused element passes; every stop must show that it has the focus."""
    for _ in range(tabs):
        press(page, Keys.TAB)
        seen = page.js("""const a = document.activeElement, chip = a.closest('.chip, .pick')?.querySelector('span');
            const outline = (n) => { const s = getComputedStyle(n); return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2; };
            return [a.id || a.textContent, a === document.body || outline(chip ?? a)]""")
        assert seen[1], "the focus on %r cannot be seen" % seen[0]
        if page.js("const a = document.activeElement; return " + test, *args):
            return
    raise AssertionError("Tab never comes to " + test)


def luminance(colour):
    parts = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def check_contrast(page, least):
    """WCAG AA: 4.5 between a text and the nearest background behind it, for more texts than `least`, in both themes."""
    for scheme in ("light", "dark"):
        page.media(prefers_color_scheme=scheme)
        pairs = page.js("""
            const behind = (n) => { for (; n; n = n.parentElement) { const b = getComputedStyle(n).backgroundColor;
                                    if (!/, 0\\)$|transparent/.test(b)) return b; } };
            return [...document.querySelectorAll('label, legend, p, h1, h2, h3, button, a, summary, span, pre, input, select')]
                .filter((n) => n.offsetParent && !n.closest('.hidden, .skip, .pulse > .dot') && (n.textContent.trim() || n.value))
                .map((n) => [n.outerHTML.slice(0, 60), getComputedStyle(n).color, behind(n)])""")
        assert len(pairs) > least
        for what, front, back in pairs:
            a, b = sorted([luminance(front), luminance(back)])
            assert (b + 0.05) / (a + 0.05) >= 4.5, (scheme, what, front, back)
        ground = luminance(page.js("return getComputedStyle(document.documentElement).backgroundColor"))
        assert (ground < 0.2) == (scheme == "dark")


class Impostor(http.server.ThreadingHTTPServer):
    """A server that gives the page's own files, and for the rest what it is told: names that no daemon would accept."""

    daemon_threads = True

    def __init__(self, policy, answers, events):
        super().__init__(("127.0.0.1", 0), ImpostorHandler)
        self.policy, self.answers, self.events, self.bodies = policy, answers, events, []
        self.base = "http://127.0.0.1:%d" % self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()


class ImpostorHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def reply(self, kind, data):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, events):
        text = "".join("event: %s\ndata: %s\n\n" % (name, json.dumps(data)) for name, data in events)
        self.reply("text/event-stream", text.encode())

    def do_GET(self):
        name = self.path.lstrip("/") or "index.html"
        if self.path in self.server.answers:
            self.reply("application/json", json.dumps(self.server.answers[self.path]).encode())
        elif self.path in self.server.events:
            self.stream(self.server.events[self.path])
        elif re.fullmatch(r"[a-z]+\.(html|js|css|svg)", name) and os.path.exists(os.path.join(WEB, name)):
            kinds = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
            with open(os.path.join(WEB, name), "rb") as f:
                self.reply(kinds[name.rsplit(".", 1)[1]], f.read())
        else:
            self.send_error(404)

    def do_POST(self):
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"null"))
        self.stream(self.server.events[self.path])
