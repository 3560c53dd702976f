"""A training job and everything else on one device: beside_job.py BUILD_FOLDER [PART ...]. Parts: share latency health memory.

The job trains the bundled model's network on made-up pictures.
"""
import http.client
import json
import os
import re
import statistics
import struct
import sys
import tempfile
import threading
import time

from serving import Daemon, hammer

GB = 1 << 30
SHARES = (0.2, 0.5)
YIELD_MS, STEPS = 20, 20
JOB = {"dataset": "noise", "from": "fashion-mnist", "steps": 1000000, "batch_size": 64, "checkpoint": {"every_steps": 0, "every_s": 0}}


def npy(n):
    """The start of a file of n pictures, uint8 [n,28,28,1]."""
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 28, 28, 1), }" % n
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


class Box(Daemon):
    """A daemon with a state folder of its own and a data set in it."""

    def __init__(self, *args):
        self.state = tempfile.TemporaryDirectory()
        super().__init__("--state", self.state.name, *args)
        self.generate(n=1, steps=1)  # the model is loaded
        self.upload("noise", npy(2000) + os.urandom(2000 * 784))

    def upload(self, name, body):
        status, data = self.request_bytes("PUT", "/datasets/" + name, body, "application/x-npy")
        assert status in (200, 201), data

    def request_bytes(self, method, path, body, kind):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        c.request(method, path, body, {"Content-Type": kind})
        r = c.getresponse()
        return r.status, r.read()

    def job(self, **fields):
        status, data = self.request("POST", "/jobs", {**JOB, "name": "beside", **fields})
        assert status == 201, data
        return json.loads(data)["id"]

    def job_info(self, id):
        return json.loads(self.get("/jobs/" + id)[1])

    def running(self, **fields):
        """A job some steps after its start."""
        id = self.job(**fields)
        while self.job_info(id)["step"] < 3:
            time.sleep(0.05)
        return id

    def device_s(self, kind):
        text = self.get("/metrics")[1].decode()
        return float(re.search(r'^denoised_device_seconds_total\{kind="%s"\} (\S+)' % kind, text, re.M)[1])

    def anonymous(self):
        return int(re.search(r"RssAnon:\s+(\d+)", open("/proc/%d/status" % self.process.pid).read())[1]) * 1024


def share():
    """What a job gets of the device when nothing else is asked."""
    d = Box()
    d.running()
    busy, begin = d.device_s("train"), time.perf_counter()
    time.sleep(20)
    print("share: alone, a job has %.1f %% of the device" % (100 * (d.device_s("train") - busy) / (time.perf_counter() - begin)))
    d.close()


def median_ms(d, count=40):
    times = []
    for seed in range(count):
        begin = time.perf_counter()
        d.generate(n=1, seed=seed, steps=STEPS, sampler="ddim")
        times.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(times)


def latency():
    """p50 of single requests, alone and beside a job that is paused and resumed in turn."""
    d = Box("--yield-ms", str(YIELD_MS))
    for share in SHARES:
        id, alone, beside = d.running(train_share=share), [], []
        for _ in range(3):
            d.request("POST", "/jobs/%s/pause" % id)
            while d.job_info(id)["state"] != "paused":
                time.sleep(0.05)
            alone.append(median_ms(d))
            d.request("POST", "/jobs/%s/resume" % id)
            step = d.job_info(id)["step"]
            while d.job_info(id)["step"] <= step:
                time.sleep(0.05)
            beside.append(median_ms(d))
        d.request("POST", "/jobs/%s/cancel" % id)
        idle, busy = statistics.median(alone), statistics.median(beside)
        print("latency: train_share %.1f: p50 of %d steps %.0f ms, alone %.0f ms: %.2f times; 1/(1 - share) is %.2f, and %d segments of %d ms" %
              (share, STEPS, busy, idle, busy / idle, 1 / (1 - share), STEPS, YIELD_MS))
    d.close()


def health():
    """/healthz while a job trains and is checkpointed, 1 GB arrives and 100 jobs are committed."""
    d, stop = Box(), threading.Event()
    d.running(checkpoint={"every_steps": 20})

    def big():
        n = GB // 784
        body, block = npy(n), os.urandom(784 << 10)
        def parts():
            yield body
            for i in range(0, n, 1024):
                yield block[:784 * min(1024, n - i)]
        c = http.client.HTTPConnection("127.0.0.1", d.port, timeout=600)
        c.request("PUT", "/datasets/big", parts(), {"Content-Type": "application/x-npy", "Content-Length": str(len(body) + 784 * n)})
        r = c.getresponse()
        assert r.status in (200, 201), r.read()
        r.read()

    def commits():
        for _ in range(100):
            d.job()

    threads = [threading.Thread(target=f) for f in (big, commits)]
    for t in threads:
        t.start()
    p99 = []
    while any(t.is_alive() for t in threads) or len(p99) < 5:
        p99.append(hammer(d.port, "/healthz", 1000))
    print("health: p99 %.2f ms (median of %d runs of 1,000; worst %.2f)" % (statistics.median(p99), len(p99), max(p99)))
    d.close()


def memory():
    """What a job adds to the process, beside its plan."""
    d = Box()
    before = d.anonymous()
    id = d.running()
    time.sleep(10)
    plan = d.job_info(id)["plan"]
    planned = plan["total"] - plan["copies"] - plan["previews"]  # neither is made here
    print("memory: a job planned %.1f MB and added %.1f MB" % (planned / 1e6, (d.anonymous() - before) / 1e6))
    d.close()


PARTS = {"share": share, "latency": latency, "health": health, "memory": memory}

if __name__ == "__main__":
    for part in sys.argv[2:] or PARTS:
        PARTS[part]()
