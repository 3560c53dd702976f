#!/usr/bin/env python3
"""Build and run every test: the release build, one under ASan and UBSan, one under TSan.

Ends with one line, "N passed, N failed, N skipped", that counts the cases of cmocka and pytest, and one for a program
that has none. A build that runs no test is a failure; with --no-skip a skipped case is one too.
"""
import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MB = 1_000_000
REPO_MAX, GOLDEN_MAX = 50 * MB, 32 * MB

Build = collections.namedtuple("Build", "folder meson without timeout_factor env")
# Sanitizers at -O1 compile in 40% of the time, and what they lose by running slower is far less; gcc's warnings are right
# only where it optimizes, so the release build alone makes errors of them.
SANITIZER_BUILD = ["-Db_lundef=false", "-Doptimization=1", "-Dwerror=false"]
# Any finding ends the program with a status that no test takes for success; leaks are findings. The sanitizers have
# allocators of their own, which MALLOC_PERTURB_ (meson sets it) does not reach.
FINDING = "exitcode=99:abort_on_error=0:"
SANITIZED = {"MALLOC_PERTURB_": "0", "UBSAN_OPTIONS": FINDING + "halt_on_error=1:print_stacktrace=1"}
BUILDS = [
    Build("build", [], ["slow", "bench"], 2, {}),
    Build("build-asan", ["-Db_sanitize=address,undefined", *SANITIZER_BUILD],
          ["slow", "bench", "browser", "no-asan"], 5, dict(SANITIZED,
              ASAN_OPTIONS=FINDING + "halt_on_error=1:detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1")),
    Build("build-tsan", ["-Db_sanitize=thread", *SANITIZER_BUILD],
          ["slow", "bench", "browser", "one-thread"], 10, dict(SANITIZED,
              TSAN_OPTIONS=FINDING + "halt_on_error=1:second_deadlock_stack=1")),
]

CMOCKA = re.compile(r"^\[  (PASSED|FAILED|SKIPPED) +\] (\d+) test", re.M)
PYTEST = re.compile(r"^=*\s*((?:\d+ [a-z]+, )*\d+ [a-z]+) in \d", re.M)
PYTEST_KINDS = {"passed": "passed", "xpassed": "failed", "failed": "failed", "error": "failed", "errors": "failed",
                "skipped": "skipped", "xfailed": "skipped"}


def run(*args, env=None):
    print("+", *args, flush=True)
    return subprocess.run(args, cwd=ROOT, env=dict(os.environ, **(env or {}))).returncode


def prepare(build):
    if not (ROOT / build.folder / "build.ninja").exists() and run("meson", "setup", build.folder, *build.meson):
        sys.exit("meson setup failed")
    if run("ninja", "-C", build.folder, "--quiet"):
        sys.exit("the build failed")


def cases_of(text):
    """How many cases a program says it ran, by its closing lines; none for a program that counts none."""
    total = collections.Counter()
    for kind, n in CMOCKA.findall(text):
        total[kind.lower()] += int(n)
    for line in PYTEST.findall(text):
        for part in line.split(", "):
            n, word = part.split()
            if word in PYTEST_KINDS:
                total[PYTEST_KINDS[word]] += int(n)
    return +total


def tally(build, test):
    """Count one entry of meson's log, and name what did not pass."""
    text = test.get("stdout", "") + "\n" + test.get("stderr", "")
    total = cases_of(text)
    if test["result"] == "SKIP":
        total["skipped"] += not total["skipped"]
    elif test["result"] == "OK":
        total["passed"] += not total
    else:
        total["failed"] += not total["failed"]
        print("FAILED: %s: %s (%s)" % (build.folder, test["name"], test["result"]))
    if total["skipped"]:
        print("SKIPPED: %s: %s" % (build.folder, test["name"]))
        for line in re.findall(r"^(?:SKIPPED.*|\[  SKIPPED \] [^\d].*)", text, re.M):
            print("   ", line)
    return total


def meson_test(build, without):
    log = ROOT / build.folder / "meson-logs" / "testlog.json"
    log.unlink(missing_ok=True)
    code = run("meson", "test", "-C", build.folder, "--no-rebuild", "--print-errorlogs", "--num-processes", "2",
               "--timeout-multiplier", str(build.timeout_factor), *(a for s in without for a in ("--no-suite", s)),
               env=build.env)
    tests = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    total = sum((tally(build, test) for test in tests), collections.Counter())
    if not tests or code and not total["failed"]:
        print("FAILED: %s: %s" % (build.folder, "meson test ended with %d" % code if tests else "no test ran"))
        total["failed"] += 1
    return total


def check_size():
    """What git would hand to a clone: its bytes, the goldens' bytes, and that no file is kept twice."""
    listing = subprocess.run(["git", "ls-files", "-s", "-z"], cwd=ROOT, capture_output=True)
    if listing.returncode:
        print("SKIPPED: size of the repository: not a git checkout")
        return collections.Counter(skipped=1)
    names, sizes = collections.defaultdict(list), collections.Counter()
    for entry in listing.stdout.decode().split("\0")[:-1]:
        (mode, blob, _), name = entry.split("\t")[0].split(), entry.split("\t")[1]
        size = os.lstat(ROOT / name).st_size if os.path.lexists(ROOT / name) else 0
        sizes["all"] += size
        sizes["golden"] += size if name.startswith("tests/golden/data/") else 0
        if size > 1024 and mode != "120000":
            names[blob].append(name)
    problems = ["%s: %d bytes, %d are allowed" % (what, sizes[what], limit)
                for what, limit in (("all", REPO_MAX), ("golden", GOLDEN_MAX)) if sizes[what] > limit]
    problems += ["kept twice: " + ", ".join(same) for same in names.values() if len(same) > 1]
    for problem in problems:
        print("FAILED: size of the repository:", problem)
    return collections.Counter(failed=len(problems)) if problems else collections.Counter(passed=1)


def check_tables():
    """The tables of the pages, each after a comment <!-- denoised-tables NAME -->, are what the program prints."""
    total = collections.Counter()
    for page in sorted(ROOT.glob("docs/*.md")) + [ROOT / "README.md"]:
        text = page.read_text() if page.exists() else ""
        for name, table in re.findall(r"^<!-- denoised-tables (\w+) -->\n((?:\|.*\n)*)", text, re.M):
            printed = subprocess.run([ROOT / "build" / "proto" / "denoised-tables", name], capture_output=True, text=True)
            good = printed.returncode == 0 and printed.stdout == table
            total["passed" if good else "failed"] += 1
            if not good:
                print("FAILED: %s: replace its table by what `build/proto/denoised-tables %s` prints" % (page.name, name))
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow", action="store_true", help="run the slow suite too")
    parser.add_argument("--no-skip", action="store_true", help="a skipped test is a failure")
    parser.add_argument("builds", nargs="*", choices=[[]] + [b.folder for b in BUILDS], help="only these builds")
    options = parser.parse_args()
    total = check_size()
    for build in BUILDS:
        if options.builds and build.folder not in options.builds:
            continue
        started = time.monotonic()
        prepare(build)
        built = time.monotonic()
        total += meson_test(build, [s for s in build.without if not (options.slow and s == "slow")])
        total += check_tables() if build.folder == "build" else {}
        print("%s: built in %.0f s, tested in %.0f s" % (build.folder, built - started, time.monotonic() - built))
    print("%d passed, %d failed, %d skipped" % tuple(total[k] for k in ("passed", "failed", "skipped")))
    return 1 if total["failed"] or options.no_skip and total["skipped"] else 0


if __name__ == "__main__":
    sys.exit(main())
