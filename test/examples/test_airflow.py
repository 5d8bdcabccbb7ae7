"""airflow_dag.py, by the dag.test() of a real Airflow, and by its scheduler."""

import os
import re
import signal
import socket
import sqlite3
import subprocess
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path

import pytest
from conftest import EXAMPLES, wait_until
from orders import Files

PYTHON = os.environ["IDEM_AIRFLOW"]
SHOPS = ["berlin", "lima", "oslo"]


@pytest.fixture(scope="module")
def airflow_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("airflow")
    env = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
        "PYTHONPATH": str(EXAMPLES),
        # For the scheduler, where there is one: it is to run what it is told, and no day by itself.
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__PARALLELISM": "3",
        "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
    }
    subprocess.run([PYTHON, "-m", "airflow", "db", "migrate"], env=os.environ | env, check=True, capture_output=True)
    return env


class Dag:
    def __init__(self, ordeal, rng, folder, env):
        self.ordeal = ordeal
        self.files = Files(rng)
        self.exports = folder / "exports"
        self.exports.mkdir()
        self.day = date(2026, 11, 1)
        self.env = env | {
            "AIRFLOW_CONN_WAREHOUSE": f"postgresql://127.0.0.1:{ordeal.proxy.port}/{ordeal.database}",
            "EXPORTS": str(self.exports),
        }

    def export(self):
        """Write the files of another day."""
        self.day += timedelta(days=1)
        interval = f"{self.day}T00:00 to {self.day + timedelta(days=1)}T00:00"
        for index, shop in enumerate(SHOPS):
            self.files.write(self.exports / str(self.day) / f"{shop}.csv", f"load_orders/load/{index} {interval}")

    def run(self, days=1, killed_after=None):
        """Run the DAG for the last days that were exported."""
        run_dag = Path(__file__).parent / "run_dag.py"
        # A manual run is about the interval that ended last.
        dates = [self.day + timedelta(days=1 - back) for back in reversed(range(days))]
        return self.ordeal.run(PYTHON, run_dag, *dates, env=self.env, killed_after=killed_after)

    def start_scheduler(self):
        """Start what a real Airflow runs tasks with."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        env = self.env | {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/"}
        self.ordeal.start(PYTHON, "-m", "airflow", "api-server", "--host=127.0.0.1", f"--port={port}", env=env)
        wait_until(lambda: listens(port), "the server of Airflow listens")
        self.ordeal.start(PYTHON, "-m", "airflow", "scheduler", "--skip-serve-logs", env=env)

    def clear(self):
        """Clear the tasks of the day, as a person would, and wait until the scheduler has run them again.

        Returns what they then say, and in which run.
        """
        day = str(self.day + timedelta(days=1))
        clear = "tasks", "clear", "--yes", f"--start-date={day}", f"--end-date={day}", "load_orders"
        assert self.ordeal.run(PYTHON, "-m", "airflow", *clear, env=self.env) == 0

        def query(sql):
            with closing(sqlite3.connect(f"{self.env['AIRFLOW_HOME']}/airflow.db", timeout=60)) as conn:
                return [value for (value,) in conn.execute(sql, [day])]

        wait_until(
            lambda: query("SELECT state FROM dag_run WHERE date(logical_date) = ?") == ["success"], "the run has succeeded"
        )
        (run_id,) = query("SELECT run_id FROM dag_run WHERE date(logical_date) = ?")
        summaries = query(
            """
            SELECT json_extract(value, '$') FROM xcom JOIN dag_run USING (run_id)
            WHERE date(logical_date) = ? AND key = 'return_value' ORDER BY map_index
            """
        )
        return summaries, run_id


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def dag(ordeal, rng, tmp_path, airflow_home):
    return Dag(ordeal, rng, tmp_path, airflow_home)


# Airflow takes ten seconds to start.
@pytest.fixture
def kills():
    return int(os.environ.get("IDEM_KILLS") or 3)


@pytest.fixture
def losses():
    return int(os.environ.get("IDEM_KILLS") or 3)


def test_killed(dag, ordeal, rng, kills):
    """Killed, and run again until it comes to an end.

    dag.test() clears away the run that was killed: what is next has another run id, and the same interval.
    """
    dag.export()
    assert dag.run() == 0
    dag.files.check(ordeal)
    messages = ordeal.proxy.messages * 5 // 4  # some attempts are not to be killed

    while ordeal.kills < kills:
        dag.export()
        while status := dag.run(killed_after=rng.randint(1, messages) if ordeal.kills < kills else None):
            assert status == -signal.SIGKILL
            dag.files.check(ordeal, complete=False)
        dag.files.check(ordeal)


def test_answers_lost(dag, ordeal, losses):
    """The task fails, and Airflow tries again."""
    ordeal.lose_answers()
    days = 3  # at a time, as Airflow takes its time to start
    while ordeal.proxy.dropped < losses:
        for _ in range(days):
            dag.export()
        assert dag.run(days) == 0
        dag.files.check(ordeal)
    assert re.search("after tries: [2-9]", ordeal.output())


def test_cleared(dag, ordeal):
    """A day fails that has no file of Lima's yet. When it is there, the day is cleared, and then once more.

    Other than with dag.test() it stays one run, of more and more tries.
    """
    dag.export()
    file = dag.exports / str(dag.day) / "lima.csv"
    away = file.rename(file.with_suffix(".away"))
    assert dag.run() == 1
    dag.files.check(ordeal, complete=False)
    assert len(ordeal.query("SELECT FROM idem_batches")) == 2

    away.rename(file)
    dag.start_scheduler()
    runs = set()
    for lima in "applied", "replayed":
        summaries, run_id = dag.clear()
        runs.add(run_id)
        dag.files.check(ordeal)
        assert [summary.split(":")[0] for summary in summaries] == ["replayed", lima, "replayed"]
    assert len(runs) == 1
