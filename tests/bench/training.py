"""The training step beside PyTorch's: data, forward, loss, backward, clipping, AdamW, the average of weights; processes alternate.

training.py BUILD_FOLDER [MODEL ...], a MODEL being fashion-mnist or ddpm-cifar10. DENOISED_PEER_PYTHON names a Python that has
torch and diffusers (none: its column says so). Prints medians in ms, the ratio, both processes' peak memory, and our share of
time spent waiting for data; then what the arena takes in fp32 and with activations in bf16.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile

from forward import HERE, Runner, models, peer_python

BATCH = {"fashion-mnist": 64, "ddpm-cifar10": 16}
ROUNDS = 3
SECONDS = 6


class Trainer(Runner):
    """A Runner of steps, whose process says what it took when its input ends."""

    command = "step"

    def close(self):
        self.process.stdin.close()
        lines = self.process.stdout.read().split("\n")
        self.process.wait()
        return next((json.loads(line) for line in lines if line.startswith("{")), {})


def compare(name, ours, folder, batch, python, threads):
    runners = [Trainer("denoised", [ours, folder, str(batch), "0"])]
    if python:
        runners.append(Trainer("PyTorch", [python, HERE + "/peers.py", "training", folder, str(threads)]))
    times = {r.name: [] for r in runners}
    for r in runners:  # memory is touched, kernels are chosen
        r.times(batch, 0)
    for _ in range(ROUNDS):
        for r in runners:
            times[r.name] += r.times(batch, SECONDS)
    took = {r.name: r.close() for r in runners}
    median = {k: statistics.median(v) for k, v in times.items() if v}
    cells = ["%s %.1f ms, peak %.0f MB" % (k, median[k], took[k]["peak_mb"]) for k in median]
    cells += ["%.2f x" % (median["PyTorch"] / median["denoised"]) if "PyTorch" in median else "PyTorch not installed"]
    print("training %s, batch %d: %s; waited for data %.2f %%" % (name, batch, ", ".join(cells), 100 * took["denoised"]["waited"]),
          flush=True)


def print_precisions(name, ours, folder, batch):
    for precision in ("0", "1"):
        out = subprocess.run([ours, folder, str(batch), "1", "cpu", str(batch), precision], capture_output=True, text=True, check=True)
        print("training %s" % out.stdout.split("\n")[0].replace(folder, name), flush=True)


def main():
    build = os.path.abspath(sys.argv[1])
    python, threads = peer_python(), len(os.sched_getaffinity(0))
    ours = build + "/tests/bench/training"
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in models(build, scratch):
            if len(sys.argv) < 3 or name in sys.argv[2:]:
                compare(name, ours, folder, BATCH[name], python, threads)
                print_precisions(name, ours, folder, BATCH[name])


if __name__ == "__main__":
    main()
