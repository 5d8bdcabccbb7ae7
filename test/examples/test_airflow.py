"""airflow_dag.py, by the dag.test() of a real Airflow."""

import os
import re
import signal
import subprocess
from datetime import date, timedelta
from pathlib import Path

import pytest
from conftest import EXAMPLES
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

    def run(self, killed_after=None):
        # A manual run is about the interval that ended last.
        run_dag = Path(__file__).parent / "run_dag.py"
        return self.ordeal.run(
            PYTHON, run_dag, self.day + timedelta(days=1), env=self.env, killed_after=killed_after
        )


@pytest.fixture
def dag(ordeal, rng, tmp_path, airflow_home):
    return Dag(ordeal, rng, tmp_path, airflow_home)


# Airflow takes ten seconds for a run.
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
    while ordeal.proxy.dropped < losses:
        dag.export()
        assert dag.run() == 0
        dag.files.check(ordeal)
    assert re.search("after tries: [2-9]", ordeal.output())
