"""Runs the parts of the stress tests that are named, or all, against a throw-away server; see README.md.

Prints "ok" or "not ok" for each part, what it has seen, and at the end a table. SEED repeats a run; PROCESSES is how
many work at a time; the size of each part is a variable as well.
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import random
import sys
import time
import traceback
from collections import Counter

import concurrency
import crashes
import faults
import fuzz
import histories
import security
from cluster import Cluster

# name: function, variable with the size, default size, what must have been seen in a run of that size
PARTS = {
    "histories": (histories.play_all, "HISTORIES", 10000, histories.EXPECTED),
    "concurrency": (concurrency.play_all, "SCHEDULES", 300, concurrency.EXPECTED),
    "crashes": (crashes.play_all, "CRASHES", 20, crashes.EXPECTED),
    "faults": (faults.play_all, "FAULTS", 200, faults.EXPECTED),
    "fuzz": (fuzz.play_all, "CALLS", 20000, fuzz.EXPECTED),
    "security": (security.play_all, "CASES", 400, security.EXPECTED),
}

# Here each process starts servers of its own, and ends them in its own ways.
OWN_SERVERS = ("crashes", "faults")


def run(name, seed, processes):
    """Returns the line of the table, and whether all was well."""
    play_all, variable, default, expected = PARTS[name]
    size = int(os.environ.get(variable) or default)
    began = time.monotonic()
    # Durability is not what is tested here, and costs time.
    settings = {"fsync": "off", "autovacuum": "off", "track_commit_timestamp": "on"}
    with Cluster(**settings) if name not in OWN_SERVERS else contextlib.nullcontext() as cluster:
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
            jobs = [
                pool.submit(play_all, cluster, f"{name}{i}", seed * 1000 + i, (size + processes - 1) // processes)
                for i in range(processes)
            ]
            results = [job.result() if not job.exception() else (Counter(), failure(job.exception())) for job in jobs]
        problems = cluster.failures() if cluster else []
    seen = sum((counter for counter, _ in results), Counter())
    problems += [problem for _, problem in results if problem]
    skipped = [what for what in seen if what.startswith("skipped: ")]
    for what in skipped:
        print(f"SKIPPED: {name}, {what.removeprefix('skipped: ')}")
    if size >= default and not skipped and not problems:
        problems += [f"never seen: {what}" for what in expected if not seen[what]]
    for problem in problems:
        print(problem)
    print(f"# {name}: {', '.join(f'{what} {seen[what]}' for what in sorted(seen, key=str))}")
    print(f"{'not ok' if problems else 'ok'} - {name}, {variable}={size} SEED={seed}", flush=True)
    # The first line says what it is; the others may be many.
    for problem in problems:
        print(f"#   {problem.strip().splitlines()[0]}", flush=True)
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    return f"{name:<14}{size:>9}{seed:>12}{len(problems):>10}{minutes:>7}:{seconds:02}", not problems


def failure(error):
    """Of the test itself, or a server that is gone."""
    return f"{error!r}\n{''.join(traceback.format_exception(error))}"


def main():
    names = sys.argv[1:] or list(PARTS)
    seed = int(os.environ.get("SEED") or random.randrange(1_000_000))
    processes = int(os.environ.get("PROCESSES") or os.cpu_count())
    lines = [run(name, seed, processes) for name in names]
    print(f"{'part':<14}{'cases':>9}{'seed':>12}{'failures':>10}{'time':>10}")
    for line, _ in lines:
        print(line)
    sys.exit(not all(fine for _, fine in lines))


if __name__ == "__main__":
    main()
