"""Runs examples/airflow_dag.py for some days, by dag.test(), which clears what an earlier run has left.

Exits with 1 if a DAG run has failed.
"""

import sys
from datetime import datetime, timedelta, timezone

import airflow_dag

dag = airflow_dag.load_orders()
for task in dag.tasks:
    task.retry_delay = timedelta(0)
for day in sys.argv[1:]:
    run = dag.test(logical_date=datetime.fromisoformat(day).replace(tzinfo=timezone.utc))
    print("state:", run.state, "after tries:", max(ti.try_number for ti in run.get_task_instances()))
    if run.state != "success":
        sys.exit(1)
