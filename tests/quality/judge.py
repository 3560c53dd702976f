#!/usr/bin/env python3
"""How good a Fashion-MNIST model's pictures are, as the daemon samples them.

judge.py BUILD_FOLDER CACHE_FOLDER MODEL_FOLDER ...   needs PyTorch, NumPy, Pillow and Debian's dataset-fashion-mnist

A small convolutional network is trained to tell the ten classes apart. Of each model, the daemon draws SAMPLES pictures for each of
SEEDS (DDIM, 50 steps, guidance 1, the classes in turn). Printed of each seed and as the median: the Frechet distance between the
features (the classifier's last hidden layer) of the pictures and those of the 60,000 training pictures (Heusel et al. 2017,
formula 6), and how many pictures the classifier calls what was asked for. The last line of a model gives its medians over the first
model's. Classifier and pictures stay in CACHE_FOLDER, so that a run that was cut short goes on where it was.
"""
import gzip
import hashlib
import http.client
import io
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from torch import nn

DATA = pathlib.Path("/usr/share/datasets/fashion-mnist")
SEEDS, SAMPLES, AT_ONCE, CLASSES = (1, 2, 3), 5000, 50, 10
REQUEST = {"n": AT_ONCE, "sampler": "ddim", "steps": 50, "output": {"layout": "grid"}, "deadline_ms": 3600000}
EPOCHS, BATCH = 4, 128


def idx(name, header):
    return np.frombuffer(gzip.decompress((DATA / name).read_bytes()), np.uint8, offset=header)


def real(part):
    """Pictures [n,28,28] and their classes [n]."""
    return idx(part + "-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28), idx(part + "-labels-idx1-ubyte.gz", 8)


# ---- the classifier ----


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        def layer(i, o, stride):
            return [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.features = nn.Sequential(*layer(1, 32, 2), *layer(32, 48, 1), *layer(48, 96, 2), nn.Flatten(),
                                      nn.Dropout(0.3), nn.Linear(96 * 49, 128), nn.ReLU())
        self.classes = nn.Linear(128, CLASSES)


def batches(pictures, size):
    for i in range(0, len(pictures), size):
        yield torch.from_numpy(pictures[i:i + size].astype(np.float32) / 127.5 - 1)[:, None]


def train(pictures, labels):
    torch.manual_seed(0)
    net = Classifier()
    steps = EPOCHS * -(-len(pictures) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(pictures)).numpy()
        for x, y in zip(batches(pictures[order], BATCH), torch.from_numpy(labels[order].astype(np.int64)).split(BATCH)):
            loss = nn.functional.cross_entropy(net.classes(net.features(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net


def classifier(cache):
    file = cache / "classifier.pt"
    if not file.exists():
        torch.save(train(*real("train")).state_dict(), file)
    net = Classifier()
    net.load_state_dict(torch.load(file))
    return net.eval()


@torch.no_grad()
def look(net, pictures):
    """Features [n,128] in double precision, and classes [n]."""
    features = torch.cat([net.features(x) for x in batches(pictures, 500)])
    return features.double().numpy(), net.classes(features).argmax(1).numpy()


# ---- the Frechet distance ----


def moments(features):
    return features.mean(0), np.cov(features, rowvar=False)


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def frechet(a, b):
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    half = root(cov_a)
    return ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root(half @ cov_b @ half))


# ---- the daemon ----


class Daemon:
    def __init__(self, build, model):
        self.folder = tempfile.TemporaryDirectory()
        os.symlink(model, self.folder.name + "/judged")
        self.log = open(self.folder.name + "/log", "w+")
        self.process = subprocess.Popen([build + "/denoised", "--listen", "127.0.0.1:0", "--models", self.folder.name], stderr=self.log)
        while not (found := re.search(r"listening on http://127\.0\.0\.1:(\d+)", pathlib.Path(self.log.name).read_text())):
            assert self.process.poll() is None, pathlib.Path(self.log.name).read_text()
            time.sleep(0.01)
        self.connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=3600)

    def pictures(self, labels, seed):
        """[n,28,28], out of one picture of all."""
        body = json.dumps(dict(REQUEST, model="judged", class_label=labels, seed=seed))
        self.connection.request("POST", "/generate", body, {"Content-Type": "application/json", "Accept": "image/png"})
        reply = self.connection.getresponse()
        data = reply.read()
        assert reply.status == 200, data
        grid = np.array(Image.open(io.BytesIO(data)).convert("L"))
        rows, columns = grid.shape[0] // 28, grid.shape[1] // 28
        return grid.reshape(rows, 28, columns, 28).swapaxes(1, 2).reshape(-1, 28, 28)[:len(labels)]

    def close(self):
        self.process.terminate()
        self.process.wait()


def sampled(build, cache, model, seed):
    what = b"".join(next(pathlib.Path(model).glob(name)).read_bytes() for name in ("**/*.safetensors", "**/scheduler_config.json"))
    file = cache / ("%s-%d.npy" % (hashlib.sha256(what).hexdigest()[:16], seed))
    if not file.exists():
        daemon = Daemon(build, model)
        labels = [i % CLASSES for i in range(AT_ONCE)]
        parts = [daemon.pictures(labels, seed * 1000000 + i) for i in range(0, SAMPLES, AT_ONCE)]
        daemon.close()
        np.save(file, np.concatenate(parts))
    return np.load(file)


def judge(build, cache, model, net, truth):
    """Medians of the Frechet distance and of the share of pictures that are what was asked for."""
    asked, found = np.arange(SAMPLES) % CLASSES, []
    for seed in SEEDS:
        features, classes = look(net, sampled(build, cache, model, seed))
        found.append((frechet(truth, moments(features)), (classes == asked).mean()))
        print("%s, seed %d: Frechet distance %.3f, %.2f %% as asked" % (model, seed, found[-1][0], 100 * found[-1][1]), flush=True)
    return [statistics.median(column) for column in zip(*found)]


def main():
    build, cache, models = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2]), [os.path.abspath(m) for m in sys.argv[3:]]
    cache.mkdir(parents=True, exist_ok=True)
    net = classifier(cache)
    pictures, labels = real("t10k")
    features, classes = look(net, pictures)
    truth = moments(look(net, real("train")[0])[0])
    print("the classifier is right on %.2f %% of the test set, whose Frechet distance to the training set is %.3f" %
          (100 * (classes == labels).mean(), frechet(truth, moments(features))), flush=True)
    first = None
    for model in models:
        distance, share = judge(build, cache, model, net, truth)
        first = first or (distance, share)
        print("%s, median: %.3f (%.2f times the first), %.2f %% (%+.2f points)" %
              (model, distance, distance / first[0], 100 * share, 100 * (share - first[1])), flush=True)


if __name__ == "__main__":
    main()
