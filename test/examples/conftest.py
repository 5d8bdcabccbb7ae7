"""What the tests of the examples share: a database, a proxy, and a way to kill.

The server is the one that PGHOST and the like name; see test/run.sh. IDEM_KILLS says how
often each example is killed, IDEM_SEED repeats a run.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from proxy import Proxy

pytest.register_assert_rewrite("orders")

EXAMPLES = Path(__file__).parents[2] / "examples"
SEED = int(os.environ.get("IDEM_SEED") or random.randrange(10**6))
PATIENCE = 180  # seconds, for what is to happen at some time

figures = []


def pytest_report_header():
    return f"IDEM_SEED={SEED}"


def pytest_terminal_summary(terminalreporter):
    for line in figures:
        terminalreporter.write_line(line)


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        time.sleep(0.02)


class Ordeal:
    """Runs an example with its connections through the proxy, and kills it."""

    def __init__(self, database, proxy, rng, log):
        self.database = database
        self.proxy = proxy
        self.rng = rng
        self.log = log
        self.kills = 0
        self.processes = []
        self.conn = psycopg.connect(dbname=database, autocommit=True)

    def start(self, *command, env=None, stopped_after=None, stop=None):
        """Start a program; after so many messages, stop(process) is called."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ
                | {
                    "PGHOST": "127.0.0.1",
                    "PGPORT": str(self.proxy.port),
                    "PGDATABASE": self.database,
                    "PGSSLMODE": "disable",
                    "PGGSSENCMODE": "disable",
                    "PYTHONDONTWRITEBYTECODE": "1",
                }
                | (env or {}),
            )
            self.processes.append(process)
        if stop:
            self.proxy.after(stopped_after, lambda: stop(process))
        return process

    def run(self, *command, env=None, killed_after=None, alone=False):
        """Run a program to its end, and return the exit status.

        It is killed after so many messages, with the processes that it has started or alone.
        """

        def kill(process):
            (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)

        process = self.start(*command, env=env, stopped_after=killed_after, stop=kill if killed_after else None)
        status = process.wait(PATIENCE)
        self.proxy.after(0, None)
        if killed_after and status == -signal.SIGKILL:
            self.kills += 1
        return status

    def lose_answers(self):
        """Lose about half of the answers to COMMIT, and never more than three on end: attempts are limited."""
        on_end = 0

        def drop():
            nonlocal on_end
            on_end = on_end + 1 if on_end < 3 and self.rng.random() < 0.5 else 0
            return on_end > 0

        self.proxy.drop = drop

    def output(self):
        return self.log.read_text()

    def query(self, sql, *args):
        return self.conn.execute(sql, args).fetchall()

    def end(self):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.conn.close()


@pytest.fixture
def rng(request):
    # Each test has numbers of its own, whichever tests are run beside it.
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def ordeal(request, rng, tmp_path):
    database = "examples"
    with psycopg.connect(dbname="postgres", autocommit=True) as conn:
        conn.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        conn.execute(f"CREATE DATABASE {database} TEMPLATE template0")
        host, port = conn.info.host, conn.info.port
    with psycopg.connect(dbname=database, autocommit=True) as conn:
        conn.execute((EXAMPLES / "tables.sql").read_text())
    ordeal = Ordeal(database, Proxy(host, port), rng, tmp_path / "log")
    yield ordeal
    ordeal.end()
    figures.append(f"{request.node.nodeid}: {ordeal.kills} kills, {ordeal.proxy.dropped} answers to COMMIT lost")
    sys.stdout.write(ordeal.output())


@pytest.fixture
def kills():
    """How often to kill an example."""
    return int(os.environ.get("IDEM_KILLS") or 10)


@pytest.fixture
def losses():
    """How many answers to COMMIT to lose."""
    return int(os.environ.get("IDEM_KILLS") or 20)
