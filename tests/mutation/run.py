#!/usr/bin/env python3
"""Runs the mutations of docs/mutations.md, and expects the test of each to fail.

    tests/mutation/run.py                   all
    tests/mutation/run.py NAME...           some
    tests/mutation/run.py --ci              those that CI runs
    tests/mutation/run.py --simulate NAME   histories until one fails (--seeds N --from S)

One build has all mutations: RUSTC_WORKSPACE_WRAPPER adds `--cfg larder_mutation` to the packages of this workspace alone, so that their
dependencies are built once for this run and for others. LARDER_MUTATION selects one of them at run time.
"""

import argparse
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIST = os.path.join(ROOT, "docs", "mutations.md")
WRAPPER = os.path.join(ROOT, "tests", "mutation", "rustc")
TIMEOUT = 180
SEEDS = 10_000
ENOUGH = 500


class Row:
    def __init__(self, name, binary, test):
        self.name, self.binary = name, binary
        # A test that waits for ever because of the mutation has found it, if the list says so.
        self.hangs = test.endswith(" (hangs)")
        self.test = test.removesuffix(" (hangs)")


def rows(text):
    """The table: name, file, rule, hazards, binary, test. Names in code quotes."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 6:
            found.append(Row(cells[0].strip("`"), cells[4].strip("`"), cells[5].replace("`", "")))
    return found


def in_ci(text):
    section = text.split("## In CI", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\* `([^`]+)`", section, re.M)


def environment(mutation=None):
    changed = dict(os.environ)
    changed.pop("LARDER_MUTATION", None)
    if mutation:
        changed["LARDER_MUTATION"] = mutation
    return changed


def build(arguments):
    """Builds with the wrapper; the paths of the programs by their targets."""
    command = [*os.environ.get("CARGO", "cargo").split(), *arguments, "--message-format=json-render-diagnostics"]
    wrapped = environment() | {"RUSTC_WORKSPACE_WRAPPER": WRAPPER}
    output = subprocess.run(command, cwd=ROOT, env=wrapped, stdout=subprocess.PIPE, text=True)
    if output.returncode != 0:
        sys.exit(output.returncode)
    programs = {}
    for line in output.stdout.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            target = message["target"]
            name = "lib" if "lib" in target["kind"] else target["name"]
            programs[name] = message["executable"]
    return programs


def test(program, name, mutation=None):
    """`passed`, `failed`, `hung` or `absent`, and the seconds that it took."""
    begun = time.monotonic()
    command = [program, "--exact", name, "--test-threads=1"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(mutation), capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return "hung", time.monotonic() - begun
    seconds = time.monotonic() - begun
    if done.returncode != 0:
        return "failed", seconds
    return ("passed" if "test result: ok. 1 passed" in done.stdout else "absent"), seconds


def simulate(program, mutation, first, seeds):
    """The first seed whose history fails, or None."""
    begun = time.monotonic()
    for start in range(first, first + seeds, ENOUGH):
        number = min(ENOUGH, first + seeds - start)
        command = [program, "--seeds", str(number), "--from", str(start)]
        done = subprocess.run(command, cwd=ROOT, env=environment(mutation), capture_output=True, text=True, errors="replace")
        failed = re.search(r"^seed (\d+):", done.stdout, re.M)
        if failed or done.returncode != 0:
            return int(failed.group(1)) if failed else start, time.monotonic() - begun
    return None, time.monotonic() - begun


def run_tests(chosen, workers):
    binaries = sorted({row.binary for row in chosen})
    targets = [part for name in binaries for part in (["--lib"] if name == "lib" else ["--test", name])]
    begun = time.monotonic()
    programs = build(["test", "--no-run", "--all-features", *targets])
    print(f"built in {time.monotonic() - begun:.0f} s", flush=True)
    begun = time.monotonic()
    bad = []
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        # Without a mutation each test passes.
        plain = {(row.binary, row.test): None for row in chosen}
        results = pool.map(lambda test_of: test(programs[test_of[0]], test_of[1]), plain)
        for (binary, name), (outcome, _) in zip(plain, results):
            if outcome != "passed":
                bad.append(f"{binary} {name}: {outcome} without a mutation")
        results = pool.map(lambda row: test(programs[row.binary], row.test, row.name), chosen)
        for row, (outcome, seconds) in zip(chosen, results):
            is_found = outcome == "failed" or (outcome == "hung" and row.hangs)
            print(f"{'found' if is_found else 'survived':8}  {seconds:6.1f} s  {row.name}  ({row.binary} {row.test})", flush=True)
            if not is_found:
                bad.append(f"{row.name}: {outcome}")
    print(f"{len(chosen)} mutations, {len(chosen) + len(plain)} runs of tests in {time.monotonic() - begun:.0f} s")
    return bad


def run_simulation(names, first, seeds):
    program = build(["build", "--release", "--example", "simulate", "--features", "testing"])["simulate"]
    bad = []
    for name in names:
        seed, seconds = simulate(program, name, first, seeds)
        print(f"{'survived' if seed is None else f'seed {seed}':14}  {seconds:6.1f} s  {name}", flush=True)
        if seed is None:
            bad.append(f"{name}: no history of {seeds} fails")
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--ci", action="store_true")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    chosen = parser.parse_args()
    with open(LIST) as file:
        text = file.read()
    known = {row.name: row for row in rows(text)}
    # Histories are also for those that no test finds.
    listed = re.findall(r"^\| `([^`]+)`", text, re.M) if chosen.simulate else list(known)
    names = in_ci(text) if chosen.ci else chosen.names or listed
    if unknown := [name for name in names if name not in listed]:
        sys.exit(f"docs/mutations.md has no {', '.join(unknown)}")
    if chosen.simulate:
        bad = run_simulation(names, chosen.first, chosen.seeds)
    else:
        bad = run_tests([known[name] for name in names], chosen.workers)
    if bad:
        sys.exit("\n".join(bad))


if __name__ == "__main__":
    main()
