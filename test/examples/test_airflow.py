"""airflow_dag.py, by the dag.test() of a real Airflow."""

import os
import signal
import subprocess
from datetime import date, timedelta
from pathlib import Path

import pytest
from conftest import EXAMPLES
from orders import Files

PYTHON = os.environ["IDEM_AIRFLOW"]
SHOPS = ["berlin", "lima", "oslo"]


class Dag:
    def __init__(self, ordeal, rng, folder):
        self.ordeal = ordeal
        self.files = Files(rng)
        self.folder = folder
        self.day = date(2026, 11, 1)
        self.env = {
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
            "AIRFLOW_CONN_WAREHOUSE": f"postgresql://127.0.0.1:{ordeal.proxy.port}/{ordeal.database}",
            "EXPORTS": str(folder / "exports"),
            "PYTHONPATH": str(EXAMPLES),
        }
        (folder / "exports").mkdir()
        subprocess.run([PYTHON, "-m", "airflow", "db", "migrate"], env=os.environ | self.env, check=True, capture_output=True)

    def export(self):
        """Write the files of another day."""
        self.day += timedelta(days=1)
        interval = f"{self.day}T00:00 to {self.day + timedelta(days=1)}T00:00"
        for index, shop in enumerate(SHOPS):
            self.files.write(
                self.folder / "exports" / str(self.day) / f"{shop}.csv", f"load_orders/load/{index} {interval}"
            )

    def run(self, killed_after=None):
        # A manual run is about the interval that ended last.
        run_dag = Path(__file__).parent / "run_dag.py"
        return self.ordeal.run(
            PYTHON, run_dag, self.day + timedelta(days=1), env=self.env, killed_after=killed_after
        )


@pytest.fixture
def kills():
    # Airflow takes ten seconds to start.
    return int(os.environ.get("IDEM_KILLS") or 3)


@pytest.fixture
def dag(ordeal, rng, tmp_path):
    return Dag(ordeal, rng, tmp_path)


def test_killed(dag, ordeal, rng, kills):
    """Killed, and cleared and run again, until it comes to an end."""
    dag.export()
    assert dag.run() == 0
    dag.files.check(ordeal)
    messages = ordeal.proxy.messages * 5 // 4  # some attempts are not to be killed

    while ordeal.kills < kills:
        dag.export()
        while status := dag.run(killed_after=rng.randint(1, messages)):
            assert status == -signal.SIGKILL
            dag.files.check(ordeal, complete=False)
        dag.files.check(ordeal)
    ((tries,),) = ordeal.query("SELECT max((metadata ->> 'try_number')::int) FROM idem_batches")
    assert tries > 1, "a batch was applied by a later try"


def test_answers_lost(dag, ordeal, rng, kills):
    """The task fails, and Airflow tries again."""
    ordeal.proxy.drop = lambda: rng.random() < 0.5
    while ordeal.proxy.dropped < kills:
        dag.export()
        assert dag.run() == 0
        dag.files.check(ordeal)
    assert "replayed:" in ordeal.output()
