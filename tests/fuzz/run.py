#!/usr/bin/env python3
"""Look for new inputs: build every libFuzzer target with clang under ASan and UBSan, and run each over its corpora for
FUZZ_SECONDS (60). What a run finds goes to build-fuzz/found/TARGET; the corpora are only read."""
import argparse
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build-fuzz"
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
SANITIZERS = {
    "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=1",
    "UBSAN_OPTIONS": "abort_on_error=1:halt_on_error=1:print_stacktrace=1",
}


def targets():
    listing = subprocess.run(["ninja", "-C", BUILD, "-t", "targets", "all"], capture_output=True, text=True, check=True)
    return sorted(set(re.findall(r"^tests/fuzz/libfuzzer_(\w+):", listing.stdout, re.M)))


def prepare():
    if not (BUILD / "build.ninja").exists():
        subprocess.run(["meson", "setup", BUILD, "-Db_sanitize=address,undefined", "-Db_lundef=false",
                        "-Doptimization=1", "-Dc_args=-fsanitize=fuzzer-no-link"],
                       cwd=ROOT, check=True, env=dict(os.environ, CC="clang"))
    names = targets()
    subprocess.run(["ninja", "-C", BUILD, "--quiet", *("tests/fuzz/libfuzzer_" + name for name in names)], check=True)
    return names


def fuzz(name, seconds):
    """Run one target; returns the crashing inputs that it left."""
    found, crashes = BUILD / "found" / name, BUILD / "crashes" / name
    found.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    # libFuzzer looks at the files of a folder and of the folders in it.
    done = subprocess.run([BUILD / "tests" / "fuzz" / ("libfuzzer_" + name), found, CORPUS / name,
                           "-max_total_time=%d" % seconds, "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1",
                           "-verbosity=0", "-artifact_prefix=%s/" % crashes],
                          env=dict(os.environ, **SANITIZERS), stderr=subprocess.PIPE, text=True, errors="replace")
    runs = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    print("%s: %s inputs in %d s: %s" % (name, runs.group(1) if runs else "?", seconds,
                                         "no finding" if done.returncode == 0 else "FAILED"), flush=True)
    if done.returncode:
        print(done.stderr)
    return done.returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="only these")
    options = parser.parse_args()
    names = prepare()
    unknown = sorted(set(options.targets) - set(names))
    if unknown or not names:
        sys.exit("no such target: %s; there are: %s" % (" ".join(unknown), " ".join(names)))
    seconds = int(os.environ.get("FUZZ_SECONDS", "60"))
    good = [fuzz(name, seconds) for name in options.targets or names]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
