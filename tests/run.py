#!/usr/bin/env python3
"""Build and run every test: a release build, one under ASan and UBSan, and the server's tests under TSan.

Ends with one line: N passed, N failed, N skipped. With DENOISED_NO_SKIP set a skipped test is a failure.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# folder, meson options, suites to leave out, suites to run (none: all)
BUILDS = [
    ("build", [], ["slow", "bench"], []),
    ("build-asan", ["-Db_sanitize=address,undefined", "-Db_lundef=false"], ["slow", "bench", "no-asan"], []),
    ("build-tsan", ["-Db_sanitize=thread", "-Db_lundef=false"], ["slow", "bench"], ["threads"]),
]

COUNTS = {
    "passed": [re.compile(r"\[  PASSED  \] (\d+) test"), re.compile(r"(\d+) passed")],
    "failed": [re.compile(r"\[  FAILED  \] (\d+) test"), re.compile(r"(\d+) (?:failed|error)")],
    "skipped": [re.compile(r"\[  SKIPPED \] (\d+) test"), re.compile(r"(\d+) skipped")],
}


def run(*args):
    print("+", *args, flush=True)
    return subprocess.run(args, cwd=ROOT).returncode


def prepare(folder, options):
    if not (ROOT / folder / "build.ninja").exists() and run("meson", "setup", folder, *options):
        sys.exit("meson setup failed")
    if run("ninja", "-C", folder):
        sys.exit("the build failed")


def count(text):
    """How many cases a test program says it ran: cmocka's and pytest's closing lines, else one for the program."""
    found = {k: sum(int(n) for p in ps for n in p.findall(text)) for k, ps in COUNTS.items()}
    return found if sum(found.values()) else None


def meson_test(folder, without, only):
    args = ["meson", "test", "-C", folder, "--no-rebuild", "--print-errorlogs", "--num-processes", "2"]
    args += [a for s in without for a in ("--no-suite", s)] + [a for s in only for a in ("--suite", s)]
    code = run(*args)
    total = {"passed": 0, "failed": 0, "skipped": 0}
    for line in open(ROOT / folder / "meson-logs" / "testlog.json"):
        test = json.loads(line)
        ok, skipped = test["result"] == "OK", test["result"] == "SKIP"
        cases = count(test.get("stdout", "")) or {}
        if skipped:
            print("SKIPPED:", test["name"])
            total["skipped"] += 1
        elif ok:
            total["passed"] += max(1, cases.get("passed", 0))
            total["skipped"] += cases.get("skipped", 0)
        else:
            print("FAILED:", folder, test["name"])
            total["passed"] += cases.get("passed", 0)
            total["failed"] += max(1, cases.get("failed", 0))
    if code and not total["failed"]:
        total["failed"] = 1
    return total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--slow", action="store_true", help="run the slow suite too")
    parser.add_argument("builds", nargs="*", help="only these builds")
    options = parser.parse_args()
    total = {"passed": 0, "failed": 0, "skipped": 0}
    for folder, setup, without, only in BUILDS:
        if options.builds and folder not in options.builds:
            continue
        if options.slow:
            without = [s for s in without if s != "slow"]
        prepare(folder, setup)
        for key, n in meson_test(folder, without, only).items():
            total[key] += n
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**total))
    bad = total["failed"] or (os.environ.get("DENOISED_NO_SKIP") and total["skipped"])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
