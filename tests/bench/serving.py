"""The daemon as a server: serving.py BUILD_FOLDER [PART ...]. Parts: mixed probes http health start memory.

Every figure is a ratio, or a median of several runs in one go. DENOISED_PEER_PYTHON names a Python with fastapi, uvicorn,
pillow, torch and diffusers for `mixed`; nginx is used by `health` if it is installed.
"""
import concurrent.futures
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MODEL = ROOT + "/models/fashion-mnist"
BUILD = os.path.abspath(sys.argv[1])


class Daemon:
    def __init__(self, *args):
        begin = time.perf_counter()
        self.log = tempfile.NamedTemporaryFile("r", suffix=".log")
        env = {k: v for k, v in os.environ.items() if not k.startswith("DENOISED_")}
        self.process = subprocess.Popen([BUILD + "/server/denoised", "--listen", "127.0.0.1:0", "--models", ROOT + "/models", *args],
                                        stderr=open(self.log.name, "w"), env=env)
        while not (found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", open(self.log.name).read())):
            assert self.process.poll() is None, open(self.log.name).read()
            time.sleep(0.001)
        self.port = int(found[1])
        while self.get("/readyz")[0] != 200:
            time.sleep(0.001)
        self.start_s = time.perf_counter() - begin

    def request(self, method, path, body=None, headers=None, connection=None):
        c = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        data = json.dumps(body).encode() if body is not None else None
        c.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        r = c.getresponse()
        return r.status, r.read()

    def get(self, path):
        return self.request("GET", path)

    def generate(self, **body):
        status, data = self.request("POST", "/generate", body)
        assert status == 200, data
        return json.loads(data)

    def rss(self):
        return int(re.search(r"VmRSS:\s+(\d+)", open("/proc/%d/status" % self.process.pid).read())[1]) * 1024

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def percentile(values, p):
    return sorted(values)[min(len(values) - 1, int(p * len(values)))]


def all_at_once(function, items):
    with concurrent.futures.ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(function, items))


def mixed_requests():
    rng = random.Random(0)
    return [dict(n=1, seed=i, steps=rng.choice([10, 20, 30, 50]), class_label=i % 10, scale=rng.choice([1.0, 3.0])) for i in range(32)]


def ours(r):
    body = dict(n=r["n"], seed=r["seed"], steps=r["steps"], class_label=r["class_label"], sampler="ddim")
    if r["scale"] != 1:
        body["guidance"] = {"cfg": {"scale": r["scale"]}}
    return body


def wait_port(port):
    while socket.socket().connect_ex(("127.0.0.1", port)):
        time.sleep(0.05)


def mixed():
    """32 mixed requests at once, images per second, beside FastAPI and diffusers."""
    requests, rates = mixed_requests(), {"denoised": [], "fastapi": []}
    python, port = os.environ.get("DENOISED_PEER_PYTHON"), 18761
    peer = subprocess.Popen([python, HERE + "/fastapi_peer.py", MODEL, str(port), str(os.cpu_count())]) if python else None
    if peer:
        wait_port(port)
    d = Daemon()

    def post_peer(r):
        c = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        c.request("POST", "/generate", json.dumps(r), {"Content-Type": "application/json"})
        c.getresponse().read()

    d.generate(steps=3)
    for _ in range(3):
        begin = time.perf_counter()
        all_at_once(lambda r: d.generate(**ours(r)), requests)
        rates["denoised"].append(32 / (time.perf_counter() - begin))
        if peer:
            begin = time.perf_counter()
            all_at_once(post_peer, requests)
            rates["fastapi"].append(32 / (time.perf_counter() - begin))
    d.close()
    if peer:
        peer.kill()
    median = {k: statistics.median(v) for k, v in rates.items() if v}
    print("mixed: denoised %.2f images/s" % median["denoised"], end="")
    print(", fastapi %.2f images/s, ratio %.1f" % (median["fastapi"], median["denoised"] / median["fastapi"]) if peer else ", fastapi not installed")


def probes():
    """16 requests of 200 steps run; 30 probes of 10 steps come one by one. Compared with ideal processor sharing."""
    d = Daemon()
    d.generate(steps=3)
    stop, alone = threading.Event(), statistics.median([time_one(d, 10, i) for i in range(5)])

    def background(i):
        while not stop.is_set():
            d.generate(n=1, seed=i, steps=200, sampler="ddim")

    threads = [threading.Thread(target=background, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    time.sleep(2)
    times, rows_ms = [], []
    for i in range(30):
        times.append(time_one(d, 10, 1000 + i))
        step = json.loads(d.get("/status")[1])["devices"][0]
        rows_ms.append(step["step_ms"])
    stop.set()
    for t in threads:
        t.join()
    d.close()
    # Processor sharing among 17 equal requests: a probe of 10 rows gets 1/17 of the device, whose speed is a step's rows per ms.
    step_ms = statistics.median(rows_ms)
    ideal = 10 * step_ms
    print("probes: p50 %.0f ms; alone %.0f ms; processor sharing (10 steps of %.1f ms) %.0f ms; ratio %.2f"
          % (statistics.median(times), alone, step_ms, ideal, statistics.median(times) / ideal if ideal else 0))


def time_one(d, steps, seed):
    begin = time.perf_counter()
    d.generate(n=1, seed=seed, steps=steps, sampler="ddim")
    return (time.perf_counter() - begin) * 1e3


def http_cost():
    """Wall time of a request minus its queue, device and encoding time, one by one on one connection."""
    d, costs = Daemon(), []
    c = http.client.HTTPConnection("127.0.0.1", d.port, timeout=60)
    for i in range(300):
        begin = time.perf_counter()
        status, data = d.request("POST", "/generate", dict(seed=i, steps=1, sampler="ddim"), connection=c)
        wall = (time.perf_counter() - begin) * 1e3
        t = json.loads(data)["timing"]
        costs.append(wall - t["queue_ms"] - t["device_ms"])
    d.close()
    print("http: total minus queue and device: p50 %.2f ms, p99 %.2f ms" % (statistics.median(costs), percentile(costs, 0.99)))


def hammer(port, path, count):
    c, times = http.client.HTTPConnection("127.0.0.1", port, timeout=60), []
    for _ in range(count):
        begin = time.perf_counter()
        c.request("GET", path)
        c.getresponse().read()
        times.append((time.perf_counter() - begin) * 1e3)
    return percentile(times, 0.99)


def start_nginx(folder, port):
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not nginx:
        return None
    with open(folder + "/nginx.conf", "w") as f:
        f.write("daemon off; pid %s/pid; error_log /dev/null; events {} http { access_log off; server { listen 127.0.0.1:%d;"
                " location / { return 200 ok; } } }" % (folder, port))
    process = subprocess.Popen([nginx, "-c", folder + "/nginx.conf"])
    wait_port(port)
    return process


def health():
    """/healthz p99 while every core computes: median of 5 runs of 10,000; nginx in turn."""
    d, port = Daemon(), 18762
    stop = threading.Event()
    ours_p99, nginx_p99 = [], []

    def busy():
        while not stop.is_set():
            d.generate(n=16, steps=50)

    with tempfile.TemporaryDirectory() as folder:
        nginx = start_nginx(folder, port)
        worker = threading.Thread(target=busy)
        worker.start()
        time.sleep(0.5)
        for _ in range(5):
            ours_p99.append(hammer(d.port, "/healthz", 10000))
            if nginx:
                nginx_p99.append(hammer(port, "/", 10000))
        stop.set()
        worker.join()
        if nginx:
            nginx.terminate()
            nginx.wait()
    d.close()
    print("health: p99 %.2f ms" % statistics.median(ours_p99), "| nginx p99 %.2f ms" % statistics.median(nginx_p99) if nginx_p99 else "| nginx not installed")


def start():
    times = []
    for _ in range(20):
        d = Daemon()
        times.append(d.start_s)
        d.close()
    print("start: to ready %.3f s (median of 20)" % statistics.median(times))


def memory():
    d = Daemon()
    for _ in range(20):
        d.generate(n=16, steps=20)
    after_traffic = d.rss()

    def cycle(i):
        d.request("POST", "/models/fashion-mnist/unload?wait=true", {})
        d.request("POST", "/models/fashion-mnist/load?wait=true", {})

    loads = []
    for i in range(1000):
        cycle(i)
        if i == 99 or i >= 900:
            loads.append(d.rss())
    cancels = []
    for i in range(10000):
        status, data = d.request("POST", "/generate", dict(steps=50), {"Prefer": "respond-async"})
        d.request("DELETE", "/requests/" + json.loads(data)["id"])
        if i == 99 or i == 9999:
            cancels.append(d.rss())
    d.close()
    mb = 1 << 20
    print("memory: %.1f MB resident after a request of 16 rows" % (after_traffic / mb))
    print("memory: load and unload: %+.2f MB from the 100th to the 1,000th cycle" % ((statistics.median(loads[1:]) - loads[0]) / mb))
    print("memory: cancelled requests: %+.2f MB from the 100th to the 10,000th" % ((cancels[1] - cancels[0]) / mb))


PARTS = {"mixed": mixed, "probes": probes, "http": http_cost, "health": health, "start": start, "memory": memory}

if __name__ == "__main__":
    for part in sys.argv[2:] or PARTS:
        PARTS[part]()
