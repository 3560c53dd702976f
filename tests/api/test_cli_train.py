"""`denoise` for training: datasets, jobs and model versions, against the real daemon and against servers that lie."""
import gzip
import io
import json
import os
import re
import signal
import struct
import subprocess
import tarfile
import time
import zipfile

import pytest

from boxes import Box
from command import (DENOISE, PNG, begin, denoise, end, environment, heard, kitty_pictures, lie, on_terminal, plain, refusal, stream,
                     url_of)
from conftest import Daemon
from serving import BINARY, PATIENCE, copy_model, st_write
from test_jobs import JOB, SIDE, STEPS, UNET, dots
from uploads import slow_tar

HALF = STEPS // 2
LONG = ["--steps", "10000000"]  # far longer than a test


@pytest.fixture(scope="module")
def box(models, tmp_path_factory):
    box = Box(models, tmp_path_factory.mktemp("box") / "state")
    box.start()
    yield box
    box.stop()


@pytest.fixture(scope="module")
def d(box):
    return box.d


@pytest.fixture(scope="module")
def url(d):
    return url_of(d)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """dots/, a folder of classes; job.json, a job without a dataset."""
    root = tmp_path_factory.mktemp("files")
    with tarfile.open(fileobj=io.BytesIO(dots())) as tar:
        tar.extractall(root / "dots")
    (root / "job.json").write_text(json.dumps({k: v for k, v in JOB.items() if k != "dataset"}))
    return root


@pytest.fixture(scope="module")
def dataset(url, files):
    """The same pictures on the daemon: name@hash."""
    return denoise(url, "datasets", "push", "dots", str(files / "dots"), "-q").ok().out.decode().strip()


def train(url, files, *args, **more):
    done = denoise(url, "train", str(files / "job.json"), *args, **more).ok()
    assert re.fullmatch(rb"\w{32}\n", done.out), done.out
    return done.out.decode().strip(), done.err


def job(d, id):
    return d.ask("GET", "/jobs/" + id).json()


def until(condition):
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def wait(d, id, state, step=0):
    until(lambda: job(d, id)["state"] == state and job(d, id)["step"] >= step)


def shown(d, id):
    """Its previews as they are to be saved: name -> PNG."""
    out, after = {}, ""
    while after is not None:
        page = d.ask("GET", "/jobs/%s/samples?limit=4%s" % (id, after and "&after=" + after)).json()
        for s in page["samples"]:
            number = s["url"].rsplit("-", 1)[1]
            out["%07d-%d-%s-%s.png" % (s["step"], s["seed"], number, s["label"])] = d.ask("GET", s["url"]).body
        after = page["next"]
    return out


def saved(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


# ---- from a folder of pictures to a model ----


def test_from_a_folder_to_a_model(d, url, files, dataset, tmp_path):
    previews = ["--preview-every-steps", str(HALF), "--preview-labels", "all", "--preview-seeds", "5", "--preview-steps", "1"]
    id, err = train(url, files, "--dataset", "./dots/", "--dataset-name", "shoes", "--follow", "-o", str(tmp_path / "seen"), *previews, cwd=files)
    info = job(d, id)
    assert info["state"] == "succeeded" and info["step"] == STEPS
    assert info["dataset"].replace("shoes@", "dots@") == dataset  # the hash is of the content
    assert "shoes: 60 images of 16x16x3, 3 classes (blue, green, red), " in err
    assert re.search(r"^memory: .*: weights .*, gradients .*, moments .*, ema .*, arena .*, data .*, copies .*, previews ", err, re.M)
    assert re.search(r"^4 rows a pass, \d+ blocks computed twice, [0-9.]+ GFLOP a step$", err, re.M)
    evals = re.findall(r"^evaluation after step (\d+): loss [0-9.]+; by timestep(( [0-9.]+| -){8})$", err, re.M)
    assert [int(e[0]) for e in evals] == [HALF, STEPS]
    assert re.search(r"^step \d+ of %d, loss [0-9.]+(, [0-9.e+]+ step/s)?, .* left$" % STEPS, err, re.M)
    assert re.search(r"^saved \d previews? in .*/seen, the last of step \d+$", err, re.M) and re.search(r"^trained: %d steps in .*, loss [0-9.]+, evaluation [0-9.]+;" % STEPS, err, re.M)
    again = denoise(url, "jobs", "follow", id).ok()  # it is over: the same is told
    assert re.findall(r"^evaluation.*", again.err, re.M) == re.findall(r"^evaluation.*", err, re.M)

    pictures = shown(d, id)
    assert pictures and {name.split("-", 2)[2] for name in pictures} == {"0-blue.png", "1-green.png", "2-red.png"}
    assert saved(tmp_path / "seen") == pictures and all(png[:4] == b"\x89PNG" for png in pictures.values())
    done = denoise(url, "jobs", "samples", id, "-o", "again", cwd=tmp_path).ok()
    assert saved(tmp_path / "again") == pictures and done.err == "saved %d previews in again\n" % len(pictures)
    listed = [line.split() for line in denoise(url, "jobs", "samples", id).ok().out.decode().splitlines()]
    assert listed[0] == ["STEP", "SEED", "LABEL", "SHA256"] and len(listed) == 1 + len(pictures)
    assert listed[1][:2] == [str(max(int(name[:7]) for name in pictures)), "5"] and len(listed[1][3]) == 64
    raw = json.loads(denoise(url, "jobs", "samples", id, "--raw").ok().out)
    assert raw == d.ask("GET", "/jobs/%s/samples" % id).json()

    path = tmp_path / "m.csv"
    denoise(url, "jobs", "metrics", id, "-o", str(path)).ok()
    assert path.read_bytes() == d.ask("GET", "/jobs/%s/metrics.csv" % id).body == denoise(url, "jobs", "metrics", id).ok().out
    assert path.read_bytes().count(b"\n") == 1 + STEPS + 2
    kept = denoise(url, "jobs", "checkpoints", id).ok().out.decode().split("\n")
    assert kept[0].split() == ["STEP", "BYTES", "EVAL", "LOSS", "BEST", "CREATED"]
    assert re.match(r"%d +\S+ .B +[0-9.]+ +(best)? +\d{4}-" % STEPS, kept[1]), kept
    card = denoise(url, "jobs", "show", id).ok().out.decode()
    assert re.search(r'^request +\{\n +"kind": "train",$', card, re.M) and max(map(len, card.split("\n"))) < 120
    assert re.search(r"^created_at +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", card, re.M) and re.search("^state +succeeded$", card, re.M)
    assert denoise(url, "jobs", "publish", id, "made").ok().out == b"made@1\n"
    assert denoise(url, "models", "publish", id, "made").ok().out == b"made@2\n"
    assert d.result(model="made", steps=2, n=1, class_label=1)["model"] == "made@2"


def test_versions(d, url, tmp_path):
    folder = copy_model("pipe_ddpm", tmp_path, "ddpm")
    assert denoise(url, "models", "push", "ddpm", folder).ok().out == b"ddpm@1\n"
    ask = dict(seed=3, steps=3, n=1)
    assert d.sha(model="ddpm", **ask) == d.sha(model="plain", **ask)
    done = denoise(url, "models", "pull", "ddpm", "-o", "d.tar.zst", cwd=tmp_path).ok()
    assert re.fullmatch(r"wrote d.tar.zst, \S+ .B\n", done.err) and sorted(os.listdir(tmp_path)) == ["d.tar.zst", "ddpm"]
    assert denoise(url, "models", "pull", "ddpm@1", "-q").ok().out == (tmp_path / "d.tar.zst").read_bytes()
    done = denoise(url, "models", "push", "ddpm", "-", stdin=(tmp_path / "d.tar.zst").read_bytes()).ok()
    assert done.out == b"ddpm@2\n" and "ddpm@1 stays live" in done.err
    denoise(url, "models", "delete", "ddpm@1").failed(3, "live")
    assert denoise(url, "models", "alias", "ddpm@2").ok().out == b"ddpm@2 is live\n"
    assert d.result(model="ddpm", **ask)["model"] == "ddpm@2"
    assert denoise(url, "models", "delete", "ddpm@1").ok().out == b"ddpm@1 is gone\n"
    assert denoise(url, "models", "save", "ddpm", "kept").ok().out == b"kept@1\n"
    assert d.sha(model="kept", **ask) == d.sha(model="plain", **ask)
    denoise(url, "models", "alias", "ddpm@9").failed(3, "model_not_found")
    recipe = json.loads(denoise(url, "models", "config", "ddpm").ok().out)
    assert recipe == d.ask("GET", "/models/ddpm/config").json() and recipe["objective"] == {"prediction": "epsilon"}
    denoise(url, "models", "config", "nothing").failed(3, "model_not_found")
    (tmp_path / "ddpm" / "unet" / "config.json").write_text("{}")
    denoise(url, "models", "push", "bad", folder).failed(3)
    assert d.ask("GET", "/models/bad").json()["versions"] == []


def test_a_job_of_flags_alone(d, url, dataset):
    flags = ["--name", "flags", "--dataset", dataset, "--model", json.dumps(UNET), "--steps=3", "--batch-size", "4",
             "--optimizer-kind", "sgd", "--optimizer-momentum", "0.5", "--augment", "flip,cutout", "--lr-schedule-kind=cosine",
             "--ema-warmup=false", "--preview-seeds", "3,1", "--train-share", "0.75", "--eval-fraction", "0"]
    done = denoise(url, "train", *flags, "-q").ok()
    assert done.err == ""
    request = job(d, done.out.decode().strip())["request"]
    assert (request["name"], request["dataset"], request["model"]["sample_size"]) == ("flags", dataset, SIDE)
    assert request["optimizer"]["kind"] == "sgd" and request["optimizer"]["momentum"] == 0.5 and request["train_share"] == 0.75
    assert [a["kind"] for a in request["augment"]] == ["flip", "cutout"] and request["lr_schedule"]["kind"] == "cosine"
    assert request["ema"]["warmup"] is False and request["preview"]["seeds"] == [3, 1]


def test_flags_win_over_the_file(d, url, files, dataset):
    id, err = train(url, files, "--dataset", "dots", "--steps", "2", "--objective-label-dropout", "0.25", "--from", "tiny",
                    "--augment", '[{"kind":"rotate","amount":5}]')
    request = job(d, id)["request"]
    assert request["steps"] == 2 and request["objective"]["label_dropout"] == 0.25 and request["objective"]["low_discrepancy"]
    assert request["from"] == "tiny@1" and "model" not in request and request["dataset"] == dataset
    assert [(a["kind"], a["amount"]) for a in request["augment"]] == [("rotate", 5)]
    assert "`denoise jobs follow %s`" % id in err
    text = (files / "job.json").read_bytes()
    done = denoise(url, "train", "-", "--dataset", "dots", "--steps", "2", "-q", stdin=text).ok()
    assert job(d, done.out.decode().strip())["request"]["objective"] == dict(request["objective"], label_dropout=0.1)


def test_every_field_of_a_job_has_a_flag(d):
    schemas = d.ask("GET", "/openapi.json").json()["components"]["schemas"]
    text = denoise("", "train", "--help").ok().out.decode()

    def check(schema, prefix):
        for name, value in schema["properties"].items():
            below = schemas[value["$ref"].split("/")[-1]] if "$ref" in value else None
            flag = prefix + name.replace("_", "-")
            if below:
                check(below, flag + "-")
            else:
                assert re.search(r"^      --%s( |$)" % flag, text, re.M), flag

    check(schemas["JobRequest"], "")
    assert "--grid" not in text and "--skip-broken" in text
    text = denoise("", "jobs", "set", "--help").ok().out.decode()
    assert "--train-share" in text and "--priority" in text and "--steps" not in text


# ---- jobs while they run ----


def test_ctrl_c_leaves_it_and_others_change_it(d, url, files, dataset):
    process = begin(url, "train", str(files / "job.json"), "--dataset", "dots", *LONG, "--follow")
    id = process.stdout.readline().decode().strip()
    heard(process, b"step ")
    end(process, signal.SIGINT).failed(130, "it goes on without you: `denoise jobs follow %s`" % id)
    assert job(d, id)["state"] == "running"
    listed = denoise(url, "jobs", "--state", "running").ok().out.decode().split("\n")
    assert listed[0].split()[:4] == ["ID", "STATE", "NAME", "DATASET"] and listed[1].split()[:4] == [id, "running", "t", "dots"]
    follower = begin(url, "jobs", "follow", id)
    heard(follower, b"step ")
    done = denoise(url, "jobs", "set", id, "--train-share", "0.5", "--priority", "high").ok()
    assert re.fullmatch(rb"%s is running at step \d+ of 10000000, share 0.5, priority high\n" % id.encode(), done.out)
    for change, words in (("save", "is saved"), ("pause", "pauses")):
        done = denoise(url, "jobs", change, id).ok()
        assert re.fullmatch("%s %s at the end of its step, after step \\d+ of 10000000\n" % (id, words), done.out.decode()), done.out
    heard(follower, b"; `denoise jobs resume %s` goes on" % id.encode())
    wait(d, id, "paused")
    denoise(url, "jobs", "resume", id).ok()
    wait(d, id, "running")
    denoise(url, "jobs", "set", id, "--train-share", "7").failed(3, "train_share")
    denoise(url, "jobs", "cancel", id).ok()
    end(follower).failed(3, "the job is cancelled")
    denoise(url, "jobs", "follow", id).failed(3, "the job is cancelled")


def test_a_failed_job(url, files, dataset):
    """Weights run away, and no step is finite any more."""
    args = ["--optimizer-kind", "sgd", "--optimizer-lr", "100", "--optimizer-clip-norm", "0", "--nan-max", "2", "--eval-fraction", "0"]
    done = denoise(url, "train", str(files / "job.json"), "--dataset", "dots", *args, *LONG, "--follow")
    done.failed(5)
    assert "denoise: " in done.err


def test_pages(d, url, files, dataset):
    ids = [train(url, files, "--dataset", "dots", "--steps", "2", "-q")[0] for _ in range(2)]
    page = denoise(url, "jobs", "--limit", "1").ok().out.decode()
    assert page.count("\n") == 3 and ids[1] in page and page.endswith("more: --after %s\n" % ids[1])
    assert ids[0] in denoise(url, "jobs", "--limit=1", "--after", ids[1]).ok().out.decode()
    assert len(json.loads(denoise(url, "jobs", "--raw").ok().out)["jobs"]) >= 2


def test_bar_curve_and_previews_on_a_terminal(url, files, dataset):
    args = ["train", str(files / "job.json"), "--dataset", "dots", "-f", "--steps", "16", "--batch-size", "4", "--eval-fraction", "0",
            "--preview-every-steps", "8", "--preview-steps", "1"]
    code, out = on_terminal(url, *args, columns=100, TERM="xterm-kitty")
    assert code == 0 and len(kitty_pictures(out)) >= 1 and all(p[:4] == b"\x89PNG" for p in kitty_pictures(out)), out
    bar = "\r\x1b\\[K[\u2588\u2591]{32} \\d+/16  loss [0-9.]+ [\u2581-\u2588]{1,12}  ([0-9.e+]+ step/s, )?.* left"
    assert re.search(bar, out.decode()), out.decode()


def test_a_daemon_that_dies_is_waited_for(models, files, tmp_path):
    args = ["--listen", "unix:%s/s" % tmp_path, "--models", models, "--load", "none", "--state", str(tmp_path / "state"),
            "--upload-bytes", "1MiB"]
    daemon, process = Daemon(BINARY, args).started(), None
    try:
        url = url_of(daemon)
        denoise(url, "datasets", "push", "dots", str(files / "dots"), "-q").ok()
        os.mkdir(tmp_path / "large")
        (tmp_path / "large" / "a.npy").write_bytes(bytes(8 << 20))
        denoise(url, "datasets", "push", "large", str(tmp_path / "large")).failed(3, "larger than 1048576 bytes")  # while it is sent
        denoise(url, "datasets", "push", "large", str(tmp_path / "large" / "a.npy")).failed(3, "can have 1048576 bytes")  # before
        seen = tmp_path / "seen"
        process = begin(url, "train", str(files / "job.json"), "--dataset", "dots", *LONG, "--checkpoint-every-steps", "2", "-f",
                        "--preview-every-steps", "5", "--preview-labels", "all", "--preview-steps", "1", "-o", str(seen))
        id = process.stdout.readline().decode().strip()
        until(lambda: daemon.ask("GET", "/jobs/%s/checkpoints" % id).json()["checkpoints"] and saved(seen))
        daemon.stop(want=-signal.SIGKILL, sig=signal.SIGKILL)
        daemon = Daemon(BINARY, args).started()
        wait(daemon, id, "running", 1)
        until(lambda: shown(daemon, id))
        denoise(url, "jobs", "cancel", id).ok()
        end(process).failed(3, "the job is cancelled")
        pictures, files_now = shown(daemon, id), saved(seen)
        assert {name: files_now.get(name) for name in pictures} == pictures  # those that were made while nobody listened, too
    finally:
        if process and process.poll() is None:
            process.kill()
        daemon.stop()


# ---- datasets ----


def test_ctrl_c_stops_an_import(box, d, url, tmp_path):
    (tmp_path / "slow.tar").write_bytes(slow_tar(1900))
    process = begin(url, "datasets", "push", "slow", str(tmp_path / "slow.tar"))
    until(lambda: any(".import-" in name for name in os.listdir(box.state + "/incoming")))
    end(process, signal.SIGINT).failed(130, "interrupted; nothing is stored")
    assert d.ask("GET", "/datasets/slow").status == 404 and os.listdir(box.state + "/incoming") == []


def npy(shape, data):
    head = str({"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


def pixels(n):
    return bytes(i * 5 % 251 for i in range(n))


def test_what_can_be_pushed(d, url, files, dataset, tmp_path):
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as z:
        for folder in ("blue", "green", "red"):
            for name in os.listdir(files / "dots" / folder):
                z.writestr(folder + "/" + name, (files / "dots" / folder / name).read_bytes())
    (tmp_path / "dots.zip").write_bytes(zipped.getvalue())
    (tmp_path / "dots.tar").write_bytes(dots())
    (tmp_path / "a.npy").write_bytes(npy((3, 8, 8), pixels(192)))
    (tmp_path / "a.safetensors").write_bytes(st_write({"images": ("U8", [3, 8, 8, 1], pixels(192))}))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">IIII", 0x803, 3, 8, 8) + pixels(192)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 3) + b"\0\1\0")

    def push(name, *paths, **more):
        done = denoise(url, "datasets", "push", name, *paths, cwd=tmp_path, **more).ok()
        card = d.ask("GET", "/datasets/" + name).json()
        assert done.out.decode() == "%s@%s\n" % (name, card["hash"])
        return card["hash"], done.err

    hash = dataset.split("@")[1]
    assert push("z", "dots.zip")[0] == push("t", "dots.tar")[0] == push("stdin", "-", stdin=dots())[0] == hash
    first, err = push("npy", "a.npy")
    assert err == "npy: 3 images of 8x8x1, 0 classes, 192 B\n" or re.match(r"(sent .*\n)+npy: 3 images of 8x8x1, 0 classes, ", err)
    assert push("st", "a.safetensors")[0] == first
    assert "3 images of 8x8x1, 2 classes" in push("idx", "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte")[1]
    lines = denoise(url, "datasets").ok().out.decode().split("\n")
    assert lines[0].split() == ["NAME", "HASH", "IMAGES", "SIZE", "CLASSES", "BYTES", "JOBS", "CREATED"]
    assert any(re.match(r"idx +[0-9a-f]{12} +3 +8x8x1 +2 ", line) for line in lines), lines
    assert re.search("^hash +%s$" % hash, denoise(url, "datasets", "show", "z").ok().out.decode(), re.M)
    assert json.loads(denoise(url, "datasets", "show", "z@" + hash[:8], "--raw").ok().out)["images"] == 60
    assert denoise(url, "datasets", "delete", "z").ok().out.decode() == "z@%s is gone\n" % hash
    denoise(url, "datasets", "show", "z").failed(3, "not_found")


def test_names_of_every_kind_and_broken_files(d, url, files, tmp_path):
    """Names that a tar has to write in its long form, and of letters beyond ASCII; a file that is no picture."""
    png = (files / "dots" / "red" / os.listdir(files / "dots" / "red")[0]).read_bytes()
    for folder in ("k\u00e4se", "n" * 120):
        os.mkdir(tmp_path / folder)
        (tmp_path / folder / ("p" * 150 + ".png")).write_bytes(png)
        (tmp_path / folder / "\u96ea.png").write_bytes(png)
    denoise(url, "datasets", "push", "names", str(tmp_path), LC_ALL="C").ok()
    assert d.ask("GET", "/datasets/names").json()["classes"] == ["k\u00e4se", "n" * 120]
    (tmp_path / "k\u00e4se" / "bad.png").write_bytes(png[:50])
    denoise(url, "datasets", "push", "broken", str(tmp_path)).failed(3, "bad.png")
    done = denoise(url, "datasets", "push", "broken", str(tmp_path), "--skip-broken").ok()
    assert re.search("^left out 1 file:\n  k\u00e4se/bad.png: .+$", done.err, re.M)
    denoise(url, "train", str(files / "job.json"), "--dataset", "%s/" % tmp_path, "--dataset-name", "x").failed(3, "bad.png")


def test_a_name_that_is_here_only(url, files):
    done = denoise(url, "train", "job.json", "--dataset", "job.json", cwd=files).failed(3, "not_found", "--dataset ./job.json")
    assert done.out == b""


@pytest.mark.parametrize("kind, text", [("link", "a/b.png: a symbolic link"), ("pipe", "a/b.png: neither a file nor a folder"),
                                        ("nothing", "there is no file in it")])
def test_what_is_not_sent(tmp_path, kind, text):
    os.mkdir(tmp_path / "a")
    if kind == "link":
        os.symlink("/etc/hostname", tmp_path / "a" / "b.png")
    elif kind == "pipe":
        os.mkfifo(tmp_path / "a" / "b.png")
    for command in ("datasets", "models"):
        denoise("http://127.0.0.1:1", command, "push", "x", str(tmp_path)).failed(2, text)
    denoise("http://127.0.0.1:1", "train", "--name=x", "--steps=1", "--batch-size=1", "--from=x", "--dataset", "%s/" % tmp_path,
            "--dataset-name", "x").failed(2, text)


@pytest.mark.parametrize("args, text", [
    (["jobs", "nonsense"], "jobs nonsense is no command"),
    (["jobs", "--limit", "3", "pause", "x"], "pause is superfluous"),
    (["jobs", "pause"], "ID is missing"),
    (["jobs", "pause", "a/b"], "cannot be the id"),
    (["jobs", "follow", ".."], "cannot be the id"),
    (["jobs", "metrics", "?"], "cannot be the id"),
    (["jobs", "set", "abc"], "what is to be set?"),
    (["jobs", "set", "abc", "--priority"], "needs a value"),
    (["jobs", "set", "abc", "--steps", "4"], "--steps is no flag"),
    (["jobs", "publish", "abc"], "NAME is missing"),
    (["jobs", "publish", "abc", "Upper"], "a name matches"),
    (["jobs", "publish", "abc", "m@1"], "must be NAME,"),
    (["datasets", "push", "x"], "PATH... is missing"),
    (["datasets", "push", "x/y", "."], "a name matches"),
    (["datasets", "push", "x", "/nonexistent"], "/nonexistent: No such file"),
    (["datasets", "push", "x", "/etc/hostname", "/etc/hostname"], "two files have this name"),
    (["datasets", "push", "x", "/etc/hostname", "/etc"], "a folder must be the only one"),
    (["datasets", "push", "x", "/etc/hostname", "--skip-broken=perhaps"], "must be true or false"),
    (["datasets", "delete", "x@../y"], "must be NAME or"),
    (["models", "pull", "../x", "-o", "y"], "a name matches"),
    (["models", "pull", "x", "-o", "/nonexistent/y"], "/nonexistent"),
    (["models", "alias", "x"], "must be NAME@VERSION"),
    (["models", "alias", "x@two"], "a version is a number"),
    (["models", "delete", "x"], "must be NAME@VERSION"),
    (["train", "/nonexistent"], "/nonexistent: No such file"),
    (["train", "--steps", "many"], "steps must be an integer"),
    (["train", "--model", "[]"], "model must be a JSON object"),
    (["train", "--augment", "[}"], "words, or a JSON list"),
    (["train", "--grid"], "--grid is no flag"),
    (["train", "--dataset-name", "x"], "with a slash"),
    (["train", "--dataset", "x", "--skip-broken"], "with a slash"),
    (["train", "--dataset", "/", ], "--dataset-name is needed"),
    (["train", "--dataset", "./x", "--dataset-name", "X"], "a name matches"),
    (["train", "--show", "ascii", "-f"], "--show must be"),
    (["train", "--dataset", "./", "--dataset-name", "x", "--name", "x", "--steps", "2"], "batch_size"),
    (["train", "--dataset", "./", "--dataset-name", "x", "--name", "x", "--steps", "0", "--batch-size", "1", "--from", "m"], "(steps)"),
    (["train", "--show", "never"], "--show is for --follow"),
])
def test_usage(tmp_path, args, text):
    """Nothing is asked: the address leads nowhere, which would be another exit status."""
    done = denoise("http://127.0.0.1:1", *args, cwd=tmp_path).failed(2, text)
    assert done.out == b"" and os.listdir(tmp_path) == []


def test_help_has_every_command():
    text = denoise("", "--help").ok().out.decode()
    names = re.findall(r"^  ([a-z]+(?: [a-z]+)?)\b", text.split("Commands:")[1].split("Everywhere:")[0], re.M)
    assert len(names) > 25 and {"train", "jobs", "jobs follow", "datasets push", "models pull"} <= set(names)
    for name in names:
        told = denoise("", *name.split(), "-h").ok().out.decode()
        assert told.startswith("Usage: denoise %s" % name) and "(null)" not in told
        assert all("\n  " + longer in told for longer in names if longer.startswith(name + " "))


# ---- servers that lie ----

JOB_CARD = {"id": "abc", "name": "t", "state": "queued", "step": 0, "steps": 4, "plan": {"total": 5, "micro_batch": 1}}


def event(name, data, id=None):
    return (b"id: %s\n" % id.encode() if id else b"") + b"event: %s\ndata: %s\n\n" % (name.encode(), json.dumps(data).encode())


def steps(*numbers):
    return b"".join(event("step", {"step": k, "steps": 4, "loss": 1 / k, "lr": 1, "eta_s": 4 - k}, "1.%d" % k) for k in numbers)


def over(state="succeeded", **more):
    return event("state", dict(JOB_CARD, state=state, step=4, **more), "1.4")


def cut(text):
    """Chunked, without the last chunk."""
    head, body = text.split(b"\r\n\r\n", 1)
    return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body)


def test_a_stream_that_breaks_is_taken_up_again(lie):
    """Cut, ended too early, refused for now, gone wrong without an answer: each time behind the last event."""
    resumed = event("resumed", {"step": 1}, "2.1")
    shown = event("preview", {"url": "/jobs/abc/samples/2-5-0", "step": 2, "seed": 5, "label": "a"}, "1.3.e.p12")
    liar = lie(plain(201, JOB_CARD), cut(stream(steps(1), event("eval", {"step": 1, "loss": None, "buckets": [None, 0.5]}, "1.1.e"))),
               stream(steps(2)), plain(503, refusal("draining")), b"", stream(resumed, steps(2, 3), shown), stream(steps(4), over()))
    done = denoise(liar.url, "train", "--name", "t", "--follow").ok()
    assert done.out == b"abc\n" and "evaluation after step 1: loss -; by timestep - 0.5" in done.err
    assert "the job goes on from step 1" in done.err and "previews after step 2" in done.err and "trained: 4 steps" in done.err
    assert [head.split(" ")[1] for head, _ in liar.asked] == ["/jobs"] + 6 * ["/jobs/abc/events"]
    last = [re.findall("Last-Event-ID: (.*)", head) for head, _ in liar.asked[1:]]
    assert [ids[0].strip() if ids else None for ids in last] == [None, "1.1.e", "1.2", "1.2", "1.2", "1.3.e.p12"]


def test_who_is_not_heard_of_is_not_waited_for(lie):
    for answer, code in ((b"", 4), (plain(404, refusal("not_found")), 3), (plain(200, {}), 5), (stream(), 5), (b"SSH-2.0\r\n", 5)):
        liar = lie(answer)
        denoise(liar.url, "jobs", "follow", "abc").failed(code)
        assert len(liar.asked) == 1
    liar = lie(stream(steps(1)), plain(404, refusal("not_found", "no job abc")))
    denoise(liar.url, "jobs", "follow", "abc").failed(3, "no job abc")
    patient = begin(lie(stream(steps(1)), b"").url, "jobs", "follow", "abc")
    assert b"step 1 of 4" in patient.stderr.readline()
    end(patient, signal.SIGINT).failed(130, "it goes on without you")


@pytest.mark.parametrize("state, more, code, text", [
    ("succeeded", {"loss": None, "eval_loss": 0.5}, 0, "loss -, evaluation 0.5"),
    ("failed", {"reason": "crash_loop"}, 5, "the job is failed: crash_loop"),
    ("failed", {"error": {"code": "non_finite", "message": "ten steps"}}, 5, "ten steps (non_finite)"),
    ("failed", {"error": {"code": "impossible", "message": "no"}}, 5, "no (impossible)"),
    ("cancelled", {}, 3, "the job is cancelled"),
])
def test_the_exit_status_tells_how_it_ended(lie, state, more, code, text):
    done = denoise(lie(stream(steps(1), over(state, **more))).url, "jobs", "follow", "abc")
    assert done.code == code and text in done.err, (done.code, done.err)


HOSTILE = {
    "step beyond steps": event("step", {"step": 5, "steps": 4}),
    "no steps": event("step", {"step": 1}),
    "broken json": b"event: step\ndata: {\"step\n\n",
    "a list": event("step", []),
    "a state of no name": event("state", {"state": ""}),
    "a state without end": event("state", {"state": "x" * 1000}),
    "a state that is a number": event("state", {"state": 5}),
    "a preview elsewhere": event("preview", {"url": "/models/x"}),
    "a preview of another": event("preview", {"url": "/jobs/abcd/samples/1-1-1"}),
    "a preview above": event("preview", {"url": "/jobs/abc/samples/../../../admin/drain"}),
    "a preview with a query": event("preview", {"url": "/jobs/abc/samples/1?x=1"}),
    "a preview on a host": event("preview", {"url": "http://127.0.0.1:1/jobs/abc/samples/1"}),
    "a preview without end": event("preview", {"url": "/jobs/abc/samples/" + "1" * 500}),
    "depth": b"event: state\ndata: " + b"[" * 100000 + b"\n\n",
    "an event without end": b"event: step\ndata: " + b"x" * (5 << 20),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_events(lie, name):
    liar = lie(stream(steps(1), HOSTILE[name]), stream(over()))
    done = denoise(liar.url, "jobs", "follow", "abc", "--show", "kitty").failed(5)
    assert len(done.err) < 1000 and len(liar.asked) == 1


def test_odd_events_are_borne(lie):
    odd = [event("eval", {"step": "x", "loss": [], "buckets": {"a": 1}}), event("eval", {"buckets": ["x", None] + 500 * [1e300]}),
           event("step", {"step": 2, "steps": 4, "loss": -1e300, "eta_s": -5}), event("step", {"step": 3, "steps": 4, "loss": 1e308}),
           event("resumed", {"step": -7}), event("state", {"state": "dreaming"}), event("state", {"state": "paused", "reason": 5}),
           event("checkpoint", 5), event("of a later version", []), b"id: ../x\ndata: y\n\n",
           event("preview", {"url": "/jobs/abc/samples/1-2-3", "seed": 1e300, "label": ["x"], "step": None})]
    for show in ("never", "blocks"):
        liar = lie(stream(*odd, steps(4), over()), plain(404, refusal("not_found")))
        denoise(liar.url, "jobs", "follow", "abc", "--show", show).ok()
        code, out = on_terminal(lie(stream(*odd, steps(4), over()), plain(404, refusal("not_found"))).url, "jobs", "follow", "abc",
                                "--show", show, TERM="xterm")
        assert code == 0 and b"Sanitizer" not in out


def test_previews_are_fetched_beside_the_stream(lie):
    """The one that came first, at every step; each in place of the one before. It is asked for while the stream goes on."""
    def preview(step, seed, label):
        return event("preview", {"url": "/jobs/abc/samples/%d-%d-0" % (step, seed), "step": step, "seed": seed, "label": label})

    picture = plain(200, PNG, kind="image/png")
    liar = lie([stream(steps(1), preview(1, 5, "a"), preview(1, 5, "b"), preview(1, 6, "a")), 0.5, preview(2, 5, "b") + preview(2, 5, "a"),
                0.5, over()], picture, picture)
    code, out = on_terminal(liar.url, "jobs", "follow", "abc", TERM="xterm-kitty")
    assert code == 0 and kitty_pictures(out) == [PNG, PNG], out
    rows = int(re.search(rb"r=(\d+)", out).group(1))
    assert out.count(b"\x1b[%dA\x1b[J\x1b_G" % rows) == 1
    assert [head.split(" ")[1] for head, _ in liar.asked[1:]] == ["/jobs/abc/samples/1-5-0", "/jobs/abc/samples/2-5-0"]


def listing(*samples, next=None):
    return plain(200, {"samples": [dict({"step": int(k.split("-")[0]), "seed": 5, "label": "a", "sha256": "f" * 64,
                                         "url": "/jobs/abc/samples/" + k}, **more) for k, more in samples], "next": next})


def answering(lie, answers):
    """A server that answers each path with the next of its list, the last one for ever."""
    def answer(client):
        todo = answers[liar.here.head.split(" ")[1]]
        client.sendall(todo.pop(0) if len(todo) > 1 else todo[0])

    liar = lie(answer)
    return liar


def test_previews_are_saved_over_broken_connections(lie, tmp_path):
    """Of the second nobody tells; the third comes when the list cannot be had. A label is no path."""
    one, two, three = ("1-5-0", {}), ("2-5-0", {"label": "../Ä b"}), ("3-5--1", {"label": None})
    liar = answering(lie, {
        "/jobs/abc/events": [cut(stream(steps(1), event("preview", {"url": "/jobs/abc/samples/1-5-0", "step": 1, "seed": 5, "label": "a"}))),
                             stream(steps(2, 3), event("preview", {"url": "/jobs/abc/samples/3-5--1", "step": 3, "seed": 5}), over())],
        "/jobs/abc/samples": [listing(one), listing(one), plain(503, refusal("draining")), listing(three, two, next="2-5-0")],
        "/jobs/abc/samples?after=2-5-0": [listing(one)],
        **{"/jobs/abc/samples/" + k: [plain(200, b"\x89PNG" + k.encode(), kind="image/png")] for k in ("1-5-0", "2-5-0", "3-5--1")}})
    done = denoise(liar.url, "jobs", "follow", "abc", "-o", str(tmp_path / "deep")).ok()
    assert saved(tmp_path / "deep") == {"0000001-5-0-a.png": b"\x89PNG1-5-0", "0000002-5-0-______b.png": b"\x89PNG2-5-0",
                                        "0000003-5-none.png": b"\x89PNG3-5--1"}
    assert done.err.count("saved ") >= 2
    assert [head.split(" ")[1] for head, _ in liar.asked].count("/jobs/abc/samples/1-5-0") == 1  # each once


@pytest.mark.parametrize("page", [
    listing(("1-5-0", {"url": "/jobs/abd/samples/1-5-0"})), listing(("1-5-0", {"url": "/jobs/abc/samples/../../x"})), listing(("1-5", {})),
    listing(("1-5-0", {}), next="../x"), listing(("1-5-0", {}), next="1"), plain(200, {"samples": [5], "next": None})])
def test_hostile_lists_of_previews(lie, tmp_path, page):
    liar = answering(lie, {"/jobs/abc/samples": [page], "/jobs/abc/samples/1-5-0": [plain(200, PNG, kind="image/png")]})
    denoise(liar.url, "jobs", "samples", "abc", "-o", str(tmp_path / "x")).failed(5, "cannot be understood")
    assert os.listdir(tmp_path) == ["x"] and set(os.listdir(tmp_path / "x")) <= {"0000001-5-0-a.png"}


def test_a_list_that_goes_in_circles(lie, tmp_path):
    pages = {"/jobs/abc/samples": [listing(("1-5-0", {}), next="1-5-0")], "/jobs/abc/samples?after=1-5-0": [listing(("1-5-0", {}), next="1-5-0")]}
    denoise(answering(lie, pages).url, "jobs", "samples", "abc").failed(5, "cannot be understood")


def test_previews_that_cannot_be_saved(lie, tmp_path):
    """The job is followed to its end, and the exit status tells."""
    os.makedirs(tmp_path / "x" / "0000001-5-0-a.png")
    liar = answering(lie, {"/jobs/abc/events": [stream(steps(1), over())], "/jobs/abc/samples": [listing(("1-5-0", {}))],
                           "/jobs/abc/samples/1-5-0": [plain(200, PNG, kind="image/png")]})
    done = denoise(liar.url, "jobs", "follow", "abc", "-o", str(tmp_path / "x")).failed(1, "trained: ", "Is a directory")
    assert done.err.count("directory") == 1
    (tmp_path / "file").write_text("")
    denoise(liar.url, "jobs", "samples", "abc", "-o", str(tmp_path / "file")).failed(2, "Not a directory")
    denoise(liar.url, "jobs", "samples", "abc", "-o", str(tmp_path / "no" / "way")).failed(2, "No such file")
    denoise(liar.url, "jobs", "samples", "abc", "-o", "").failed(2, "-o")
    denoise(liar.url, "train", "--name", "t", "-o", str(tmp_path / "y")).failed(2, "-o is for --follow")
    denoise(liar.url, "jobs", "samples", "abc", "--raw", "-o", str(tmp_path / "y")).failed(2, "--raw")
    assert not (tmp_path / "y").exists()


def test_a_job_is_submitted_once(lie):
    """An answer that is lost is asked for again, with the same key; a daemon that is not there is not."""
    liar = lie(b"", plain(201, JOB_CARD)[:90], plain(201, JOB_CARD))
    done = denoise(liar.url, "train", "--name", "t").ok()
    assert done.out == b"abc\n" and "memory: 5 B" in done.err
    keys = {re.search("Idempotency-Key: (\\w{32})\r\n", head + "\r\n").group(1) for head, _ in liar.asked}
    assert len(liar.asked) == 3 and len(keys) == 1
    other = lie(plain(201, JOB_CARD))
    denoise(other.url, "train", "--name", "t").ok()
    assert keys.isdisjoint(re.findall("Idempotency-Key: (\\w{32})", other.asked[0][0]))
    denoise("http://127.0.0.1:1", "train", "--name", "t").failed(4, "Connection refused")
    denoise(lie(plain(201, {"id": "../x"})).url, "train", "--name", "t").failed(5, "no id")


@pytest.fixture
def big(tmp_path):
    """A file of 200 MB that takes no room."""
    path = tmp_path / "big.npy"
    with open(path, "wb") as f:
        f.truncate(200 << 20)
    return path


def swallow(client, most):
    """So many bytes of a body, or what comes; their number."""
    n = 0
    try:
        while n < most and (data := client.recv(1 << 16)):
            n += len(data)
    except OSError:
        pass
    return n


def test_a_refusal_while_it_is_sent(lie, big):
    """The rest stays here, and what the daemon says is heard."""
    received = []

    def answer(client):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        n = swallow(client, 1 << 20)
        client.sendall(plain(413, refusal("too_large", "the body is larger than 1048576 bytes")))
        client.settimeout(2)
        received.append(n + swallow(client, 1 << 40))

    for command in ("datasets", "models"):
        denoise(lie(answer).url, command, "push", "x", str(big)).failed(3, "larger than 1048576 bytes (too_large)")
    until(lambda: len(received) == 2)
    assert max(received) < 100 << 20


def test_a_refusal_before_it_is_sent(lie, big):
    """What does not get its 100 Continue is not sent."""
    liar = lie(lambda client: client.sendall(plain(401, refusal("unauthorized", "no token"), "Connection: close")))
    denoise(liar.url, "datasets", "push", "x", str(big)).failed(3, "no token")
    head, body = liar.asked[0]
    assert head.startswith("PUT /datasets/x HTTP/1.1\r\n") and "\r\nContent-Length: %d" % (200 << 20) in head and body == b""
    assert "\r\nContent-Type: application/octet-stream" in head and "\r\nExpect: 100-continue" in head


def test_an_upload_can_be_left(lie, big):
    def answer(client):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        swallow(client, 40 << 20)
        time.sleep(2)

    process = begin(lie(answer).url, "datasets", "push", "x", str(big))
    heard(process, b"sent")
    end(process, signal.SIGINT).failed(130, "nothing is stored")


def test_a_body_in_chunks_is_the_folder(lie, tmp_path):
    """Sorted, without owner and time: the same bytes each time."""
    os.makedirs(tmp_path / "b" / "c")
    os.makedirs(tmp_path / ".git")
    os.symlink("x", tmp_path / ".git" / "link")
    for name, data in (("b/c/2", b"two"), ("a", b""), ("b/1", b"x" * 100000), ("b/.hidden", b"h")):
        (tmp_path / name).write_bytes(data)
    got = []

    def answer(client):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        f, body = client.makefile("rb"), b""
        while n := int(f.readline(), 16):
            body += f.read(n)
            f.readline()
        f.readline()
        got.append(body)
        client.sendall(plain(201, {"name": "x", "hash": "ab", "images": 3}))

    liar = lie(answer)
    for _ in range(2):
        assert denoise(liar.url, "datasets", "push", "x", str(tmp_path)).ok().out == b"x@ab\n"
        os.utime(tmp_path / "a", (5, 5))
    assert got[0] == got[1] and "\r\nTransfer-Encoding: chunked" in liar.asked[0][0]
    with tarfile.open(fileobj=io.BytesIO(got[0])) as tar:
        assert tar.getnames() == ["a", "b/1", "b/c/2"] and {(m.uid, m.mtime, m.mode) for m in tar} == {(0, 0, 0o644)}
        assert tar.extractfile("b/1").read() == b"x" * 100000 and tar.extractfile("b/c/2").read() == b"two"


def test_bars_of_files_on_a_terminal(lie, tmp_path):
    (tmp_path / "a.npy").write_bytes(bytes(5000))
    url = lie(plain(201, {"name": "x", "hash": "ab"})).url
    code, out = on_terminal(url, "datasets", "push", "x", str(tmp_path / "a.npy"), TERM="xterm")
    assert code == 0 and "\r\x1b[K" + 30 * "\u2588" + " 5.0 kB sent, the daemon reads it" in out.decode(), out
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    code, out = on_terminal(lie([head + bytes(500), 0.2, bytes(500)]).url, "models", "pull", "x", "-o", str(tmp_path / "b"), TERM="xterm")
    assert code == 0 and "\r\x1b[K" + 15 * "\u2588" + 15 * "\u2591" + " 500 B of 1.0 kB" in out.decode(), out
    assert (tmp_path / "b").read_bytes() == bytes(1000)


LONG_BODY = b"HTTP/1.1 200 OK\r\nContent-Type: application/zstd\r\n%s\r\n" + b"x" * 100000
DOWNLOADS = {
    "cut short": (LONG_BODY % b"Content-Length: 200000\r\n", 4),
    "chunks cut short": (cut(LONG_BODY % b""), 4),
    "an end that nobody announced": (LONG_BODY % b"", 5),
    "an end after nothing": (b"HTTP/1.1 200 OK\r\n\r\n", 5),
    "accepted": (plain(202, b"x" * 100), 5),
    "not found": (plain(404, refusal("model_not_found")), 3),
    "nothing": (b"", 4),
}


@pytest.mark.parametrize("name", sorted(DOWNLOADS))
def test_a_download_that_fails_leaves_nothing(lie, tmp_path, name):
    answer, code = DOWNLOADS[name]
    for args in (["models", "pull", "x"], ["jobs", "metrics", "x"]):
        done = denoise(lie(answer).url, *args, "-o", "new", cwd=tmp_path)
        assert done.code == code and os.listdir(tmp_path) == [], (done.code, done.err, os.listdir(tmp_path))
        (tmp_path / "old").write_bytes(b"before")
        denoise(lie(answer).url, *args, "-o", "old", cwd=tmp_path).failed(code)
        assert os.listdir(tmp_path) == ["old"] and (tmp_path / "old").read_bytes() == b"before"
        os.remove(tmp_path / "old")


def test_a_download_can_be_left_or_takes_its_place(lie, tmp_path):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    process = subprocess.Popen([DENOISE, "models", "pull", "x", "-o", "new"], stderr=subprocess.PIPE, cwd=tmp_path,
                               env=environment(lie([head + b"abc", 5.0, b"de"]).url))
    until(lambda: [name for name in os.listdir(tmp_path) if os.path.getsize(tmp_path / name) == 3])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130 and os.listdir(tmp_path) == []
    whole = lie(head + b"abcde")
    (tmp_path / "real").write_bytes(b"before")
    os.symlink("real", tmp_path / "link")
    denoise(whole.url, "models", "pull", "x", "-o", "link", cwd=tmp_path).ok()  # the link stays
    assert os.path.islink(tmp_path / "link") and (tmp_path / "real").read_bytes() == b"abcde"
    denoise(whole.url, "models", "pull", "x", "-o", "/dev/null").ok()
    assert not os.path.isfile("/dev/null")
    denoise(whole.url, "models", "pull", "x", "-o", "/dev/full").failed(1, "/dev/full: No space left")
    assert denoise(whole.url, "models", "pull", "x").ok().out == b"abcde"
    code, out = on_terminal(whole.url, "models", "pull", "x", TERM="xterm")
    assert code == 2 and b"-o FILE is needed" in out


EVERY = (["jobs"], ["jobs", "show", "x"], ["jobs", "checkpoints", "x"], ["jobs", "pause", "x"], ["jobs", "set", "x", "--priority", "low"], ["jobs", "publish", "x", "y"],
         ["datasets"], ["datasets", "show", "x"], ["datasets", "delete", "x"], ["datasets", "push", "x", __file__],
         ["models", "push", "x", __file__], ["models", "alias", "x@1"], ["models", "save", "x", "y"], ["models", "delete", "x@1"],
         ["train", "--name", "x"])


def test_nothing_reaches_the_terminal_raw(lie):
    evil = "\x1b[2J\x1b]0;owned\x07\u009b5m"
    card = {"id": evil, "name": evil, "state": evil, "dataset": evil, "hash": evil, evil: evil, "published": evil, "priority": evil}
    answers = (plain(400, refusal(evil, evil, evil)), plain(200, dict(card, jobs=[card], datasets=[card], next=evil)),
               plain(200, {"name": "x", "hash": "ab", "classes": [evil], "n_broken": 9, "broken": [{"file": evil, "why": evil}]}))
    for answer in answers:
        for args in EVERY:
            done = denoise(lie(answer).url, *args)
            text = done.out.decode() + done.err
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text), text
    for last in (over("failed", reason=evil), over("failed", error={"code": evil, "message": evil}), event("state", {"state": evil})):
        done = denoise(lie(stream(event("state", {"state": "paused", "reason": evil}), last)).url, "jobs", "follow", "abc")
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.err)


def test_hostile_answers(lie):
    bodies = (b"[]", b"[" * 100000, b'{"jobs":5,"datasets":{},"versions":"x","plan":[],"name":"x","checkpoints":[5,{"step":-1,"bytes":1e308}],"hash":"ab","broken":7,"classes":{},"id":5}',
              b'{"jobs":[5,null,[],{"step":-1,"steps":1e300,"loss":"x","eta_s":{}}],"datasets":[[],{"bytes":1e308,"height_min":1e300}],'
              b'"name":"x","hash":"../y","id":"../z","versions":[5,{"version":1e300},{"version":-5,"live":1}],"plan":{"total":"x"}}')
    for args in EVERY:
        for body in bodies:
            done = denoise(lie(plain(200, body)).url, *args)
            assert done.code in (0, 5) and len(done.err) < 1000, (args, body[:50], done.code, done.err)
