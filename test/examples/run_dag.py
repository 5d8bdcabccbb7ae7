"""Runs examples/airflow_dag.py for one day, by dag.test(), which clears what an earlier run has left.

Exits with 1 if the DAG run has failed.
"""

import sys
from datetime import datetime, timedelta, timezone

import airflow_dag

dag = airflow_dag.load_orders()
for task in dag.tasks:
    task.retry_delay = timedelta(0)
run = dag.test(logical_date=datetime.fromisoformat(sys.argv[1]).replace(tzinfo=timezone.utc))
print("state:", run.state, "after tries:", max(ti.try_number for ti in run.get_task_instances()))
sys.exit(run.state != "success")
