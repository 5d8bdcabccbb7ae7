"""Prints the line coverage of src/ in a tree that was built with gcov and used, and the errors that were not reached.

Fails if less than 95% of the lines were executed, or any ereport() was not. An elog() is for what cannot happen: those
that were not reached are listed, and that is all.
"""

import glob
import json
import os
import re
import subprocess
import sys
from collections import defaultdict

REQUIRED = 95.0


def executions(tree):
    """How often each line was executed, by file: what gcov says, summed up where a line belongs to several functions."""
    counts = defaultdict(lambda: defaultdict(int))
    out = subprocess.run(
        ["gcov", "--json-format", "--stdout", "--relative-only", *sorted(glob.glob("src/*.gcno", root_dir=tree))],
        cwd=tree,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ).stdout
    for document in out.splitlines():
        for file in json.loads(document)["files"]:
            if file["file"].startswith("src/"):
                for line in file["lines"]:
                    counts[file["file"]][line["line_number"]] += line["count"]
    return counts


def ereports(tree, file):
    """Line, level and message of each ereport() and elog() of a file."""
    with open(os.path.join(tree, file), encoding="utf-8") as source:
        text = source.read()
    for match in re.finditer(r"\b(ereport|elog)\(\s*([A-Z0-9]+)\b", text):
        message = re.search(r'"((?:[^"\\]|\\.)*)"', text[match.end() :])
        yield text.count("\n", 0, match.start()) + 1, match[1], match[2], message[1]


def main():
    tree = sys.argv[1]
    counts = executions(tree)
    total = executed = 0
    missed = []
    for file in sorted(counts):
        lines = counts[file]
        hit = sum(1 for count in lines.values() if count)
        total += len(lines)
        executed += hit
        not_hit = " ".join(str(line) for line in sorted(lines) if not lines[line])
        print(f"{file:<24}{hit:>6} of {len(lines):>4} {100 * hit / len(lines):6.1f}%  {not_hit}")
    for file in sorted(glob.glob("src/*.[ch]", root_dir=tree)):
        for line, function, level, message in ereports(tree, file):
            if not counts[file].get(line):
                missed.append((function, f"{file}:{line}: {function}({level}): {message}"))
    share = 100 * executed / total
    print("\nnot reached, as it cannot happen:")
    for function, what in missed:
        if function == "elog":
            print(f"  {what}")
    unreached = [what for function, what in missed if function == "ereport"]
    print("\nnot reached, but should be:")
    for what in unreached:
        print(f"  {what}")
    print(f"\n{share:.1f}% of {total} lines, and {len(unreached)} errors not reached")
    sys.exit(share < REQUIRED or bool(unreached))


if __name__ == "__main__":
    main()
