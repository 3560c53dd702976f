"""Our network forward beside PyTorch, ONNX Runtime and OpenVINO: processes alternate, with a pause for spinning threads.

forward.py BUILD_FOLDER [MODEL ...], a MODEL being fashion-mnist, ddpm-cifar10 or resblock (single ResNet blocks, between maps
in the runtime's own layout). DENOISED_PEER_PYTHON names a Python that has torch, diffusers, onnx, onnxscript, onnxruntime and
openvino (none: the peers' columns say so). Prints medians in ms and the ratios peer / ours.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PEERS = ["eager", "channels_last", "onnxruntime", "openvino"]
RESBLOCKS = ["resblock:64:28", "resblock:128:32", "resblock:128:16", "resblock:256:16"]  # channels, height and width
ROUNDS = 3


class Runner:
    """A process that times forwards on request."""

    command = "forward"

    def __init__(self, name, args):
        self.name = name
        self.process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def times(self, batch, seconds):
        try:
            self.process.stdin.write("%s %d %g\n" % (self.command, batch, seconds))
            self.process.stdin.flush()
        except BrokenPipeError:
            return []
        for line in self.process.stdout:
            if line.startswith("R["):
                time.sleep(0.4)
                return json.loads(line[1:])
        return []

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def peer_python():
    python = os.environ.get("DENOISED_PEER_PYTHON", sys.executable)
    ok = subprocess.run([python, "-c", "import torch, diffusers"], capture_output=True).returncode == 0
    return python if ok else None


def models(build, scratch):
    yield "fashion-mnist", ROOT + "/models/fashion-mnist"
    folder = scratch + "/ddpm-cifar10"
    subprocess.run([build + "/tests/bench/random_model", HERE + "/configs/ddpm-cifar10.json", folder], check=True)
    yield "ddpm-cifar10", folder


def compare(name, ours, subject, peers, batches, python, threads):
    runners = [Runner("denoised", ours)]
    if python:
        runners += [Runner(k, [python, HERE + "/peers.py", k, subject, str(threads)]) for k in peers]
    for batch in batches:
        times = {r.name: [] for r in runners}
        for _ in range(ROUNDS):
            for r in runners:
                times[r.name] += r.times(batch, 1.5 if batch < 16 else 3)
        median = {k: statistics.median(v) for k, v in times.items() if v}
        ours = median["denoised"]
        cells = ["%s %.2f ms (%.2f x)" % (k, median[k], median[k] / ours) if k in median else k + " not installed"
                 for k in [r.name for r in runners] + ([] if python else peers)]
        print("%s, batch %d: %s" % (name, batch, ", ".join(cells)), flush=True)
    for r in runners:
        r.close()


def wanted(name):
    return len(sys.argv) < 3 or name in sys.argv[2:]


def main():
    build = os.path.abspath(sys.argv[1])
    python, threads = peer_python(), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in models(build, scratch):
            if wanted(name):
                ours = [build + "/tests/bench/forward_server", folder, "cpu"]
                compare(name, ours, folder, PEERS, (1, 4, 16), python, threads)
    for name in RESBLOCKS:
        if wanted("resblock"):
            ours = [build + "/tests/bench/forward", "-s", "-t", str(threads), name]
            compare(name, ours, name, PEERS[:2], (1, 4, 16, 64), python, threads)


if __name__ == "__main__":
    main()
