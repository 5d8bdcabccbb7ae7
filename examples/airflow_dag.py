"""Load what each shop has exported, once for each day: a DAG for Apache Airflow 3.

    pip install apache-airflow apache-airflow-providers-postgres
    psql -f tables.sql
    cp airflow_dag.py $AIRFLOW_HOME/dags/
    export AIRFLOW_CONN_WAREHOUSE=postgresql://...

The connection is in the environment of the workers, or in a secrets backend: as an argument
of a command, its password would be in the list of processes.

A mapped task is a batch. Its id is made of what is loaded: DAG, task, map index and data
interval; never of the try number or the run id, which say how often it was attempted. So a
task can be killed, retried, cleared and backfilled: what is in the table already is
replayed. There is no retry loop in it, for Airflow has one.

The map index stands for the shop, so SHOPS may only grow at its end. The data interval is
that of CronDataIntervalTimetable, which a manual run gets as well.
"""

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

from airflow.providers.postgres.hooks.postgres import PostgresHook
from airflow.sdk import dag, get_current_context, task
from airflow.timetables.interval import CronDataIntervalTimetable
from psycopg.types.json import Jsonb

SHOPS = ["berlin", "lima", "oslo"]

# Has a folder for each day, with a file for each shop: 2026-11-20/lima.csv.
EXPORTS = Path(os.environ.get("EXPORTS", "/srv/exports"))


@dag(
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=datetime(2026, 11, 1, tzinfo=timezone.utc),
    default_args={"retries": 5, "retry_delay": timedelta(seconds=30)},
)
def load_orders():
    @task
    def load(shop):
        context = get_current_context()
        ti = context["ti"]
        start, end = context["data_interval_start"], context["data_interval_end"]
        batch_id = f"{ti.dag_id}/{ti.task_id}/{ti.map_index} {start:%Y-%m-%dT%H:%M} to {end:%Y-%m-%dT%H:%M}"

        with (
            PostgresHook(postgres_conn_id="warehouse").get_conn() as conn,  # one transaction; commits at the end, and closes
            (EXPORTS / f"{start:%Y-%m-%d}" / f"{shop}.csv").open("rb") as file,
        ):
            conn.execute("CREATE TEMP TABLE incoming (LIKE orders) ON COMMIT DROP")
            with conn.cursor().copy("COPY incoming FROM STDIN (FORMAT csv, HEADER match)") as copy:
                while chunk := file.read(65536):
                    copy.write(chunk)
            return conn.execute(
                """
                SELECT summary
                FROM idem_merge('incoming', 'orders', batch_id => %s, version_cols => '{updated_at}',
                                metadata => %s)
                """,
                [batch_id, Jsonb({"run_id": context["run_id"], "try_number": ti.try_number})],
            ).fetchone()[0]

    load.expand(shop=SHOPS)


load_orders()
