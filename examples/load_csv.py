#!/usr/bin/env python3
"""Load CSV files into the table orders, each of them once.

    pip install 'psycopg[binary]'
    psql -f tables.sql
    python load_csv.py orders-2026-11-20.csv orders-2026-11-21.csv

A file is a batch, and its name is the batch id. So the program can be killed, and run
again over the same files, at any time and by anybody: what is in the table already is
replayed, and only the rest is loaded. Other content under a known name is refused, until
the batch expires, after 90 days by default. The order of the files does not matter, as the
greatest updated_at of each order wins. Where to connect to is taken from PGHOST, PGDATABASE
and the like.
"""

import random
import sys
import time
from pathlib import Path

import psycopg
from psycopg.types.json import Jsonb

ATTEMPTS = 10

# Serialization failure, deadlock, lock not available, and sessions that the server has
# ended. Class 08 is added below. With all others, a second attempt fails like the first.
RETRY = {"40001", "40P01", "55P03", "25P03", "57P01", "57P02", "57P03", "57P05"}


def may_pass(error):
    """Tell whether the same transaction may succeed if it is run again."""
    if error.sqlstate is None:  # no connection, or it was lost: the server said nothing
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate in RETRY or error.sqlstate.startswith("08")


def load(path):
    """Load a file in one transaction, and return what idem_merge() says about it."""
    with psycopg.connect() as conn:  # commits at the end
        conn.execute("CREATE TEMP TABLE incoming (LIKE orders) ON COMMIT DROP")
        with (
            path.open("rb") as file,
            conn.cursor().copy("COPY incoming FROM STDIN (FORMAT csv, HEADER match)") as copy,
        ):
            while chunk := file.read(65536):
                copy.write(chunk)
        return conn.execute(
            """
            SELECT summary
            FROM idem_merge('incoming', 'orders', batch_id => %s, version_cols => '{updated_at}',
                            metadata => %s)
            """,
            [path.name, Jsonb({"path": str(path.absolute())})],
        ).fetchone()[0]


def load_with_retries(path):
    """The same, once more after an error that may pass.

    If the connection is lost in the middle of COMMIT, nobody can tell whether the file was
    loaded. It does not matter: if it was, the next attempt is a replay.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return load(path)
        except psycopg.Error as error:
            if attempt == ATTEMPTS or not may_pass(error):
                raise
            print(f"{path.name}: attempt {attempt}: {error}", file=sys.stderr)
            time.sleep(random.uniform(0, min(0.1 * 2**attempt, 30)))


def main():
    failed = False
    for path in map(Path, sys.argv[1:]):
        try:
            print(f"{path.name}: {load_with_retries(path)}")
        except (OSError, psycopg.Error) as error:  # the other files are none the worse for it
            print(f"{path.name}: {error}", file=sys.stderr)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
