"""load_csv.py and load_csv.sh."""

import os
import signal
import sys

import pytest
from conftest import EXAMPLES, PATIENCE, wait_until
from orders import Files

PROGRAMS = {"psycopg": (sys.executable, EXAMPLES / "load_csv.py"), "psql": ("sh", EXAMPLES / "load_csv.sh")}


@pytest.fixture(params=PROGRAMS)
def program(request):
    return PROGRAMS[request.param]


@pytest.fixture
def files(rng):
    return Files(rng)


def test_killed(program, ordeal, files, rng, tmp_path, kills):
    assert ordeal.run(*program, files.write(tmp_path / "first.csv")) == 0
    files.check(ordeal)
    messages = ordeal.proxy.messages * 5 // 4  # some attempts are not to be killed

    while ordeal.kills < kills:
        path = files.write(tmp_path / f"{len(files.orders)}.csv")
        while status := ordeal.run(
            *program,
            path,
            killed_after=rng.randint(1, messages) if ordeal.kills < kills else None,
            alone=rng.random() < 0.5,
        ):
            assert status == -signal.SIGKILL
            files.check(ordeal, complete=False)
        files.check(ordeal)


def test_answers_lost(program, ordeal, files, tmp_path, losses):
    # The shell takes a nap between two attempts, which need not be long here.
    sleep = tmp_path / "bin" / "sleep"
    sleep.parent.mkdir()
    sleep.write_text("#!/bin/sh\n")
    sleep.chmod(0o755)

    ordeal.lose_answers()
    while ordeal.proxy.dropped < losses:
        paths = [files.write(tmp_path / f"{len(files.orders)}.csv") for _ in range(10)]
        assert ordeal.run(*program, *paths, env={"PATH": f"{sleep.parent}:{os.environ['PATH']}"}) == 0
        files.check(ordeal)
    assert ordeal.output().count(": replayed:") > 0


def test_locked_table(program, ordeal, files, tmp_path):
    """An error that may pass: the file is tried again."""
    released = tmp_path / "released"
    sleep = tmp_path / "bin" / "sleep"
    sleep.parent.mkdir()
    sleep.write_text(f"#!/bin/sh\nwhile [ ! -e '{released}' ]; do /bin/sleep 0.02; done\n")
    sleep.chmod(0o755)
    path = files.write(tmp_path / "locked.csv")
    env = {"PATH": f"{sleep.parent}:{os.environ['PATH']}", "PGOPTIONS": "-c lock_timeout=100ms"}
    with ordeal.conn.transaction():
        ordeal.conn.execute("LOCK TABLE orders IN EXCLUSIVE MODE")
        process = ordeal.start(*program, path, env=env)
        wait_until(lambda: "lock timeout" in ordeal.output(), "the program has met the lock")
    released.touch()
    assert process.wait(PATIENCE) == 0
    files.check(ordeal)


def test_two_at_once(program, ordeal, files, tmp_path):
    paths = [files.write(tmp_path / f"{i}.csv") for i in range(10)]
    processes = [ordeal.start(*program, *paths) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    files.check(ordeal)
    assert ordeal.output().count(": applied:") == len(paths)
    assert ordeal.output().count(": replayed:") == len(paths)


def test_refused(program, ordeal, files, tmp_path):
    """A file that is refused is told of, and does not keep the others out."""
    good = files.write(tmp_path / "good.csv")
    assert ordeal.run(*program, good) == 0
    other = tmp_path / "other"
    Files(files.rng).write(other / good.name)
    broken = tmp_path / "broken.csv"
    broken.write_text(good.read_text() + "not,an,order,at all\n")
    last = files.write(tmp_path / "last.csv")

    assert ordeal.run(*program, other / good.name, broken, tmp_path / "missing.csv", last) == 1
    files.check(ordeal)
    assert 'batch "good.csv" was already applied with different content' in ordeal.output()
    assert "invalid input syntax for type bigint" in ordeal.output()
    assert "attempt" not in ordeal.output(), "such errors are not tried again"
