"""dbt's own test fixtures, for a project that uses this package."""

import os
from pathlib import Path

import psycopg2
import pytest

pytest_plugins = ["dbt.tests.fixtures.project"]

os.environ["DBT_SEND_ANONYMOUS_USAGE_STATS"] = "false"

PACKAGE = Path(__file__).resolve().parents[1]
WRAPPER = (PACKAGE / "example/macros/idem_merge.sql").read_text()


def connect(dbname=None):
    """A connection of the test's own, where each statement is a transaction."""
    connection = psycopg2.connect(dbname=dbname or os.environ.get("PGDATABASE", "postgres"))
    connection.autocommit = True
    return connection


@pytest.fixture(scope="session", autouse=True)
def extension():
    connect().cursor().execute("create extension if not exists idempotent_ingest")


@pytest.fixture(scope="session", autouse=True)
def grantees():
    # The tests of grants ask the environment for them.
    cursor = connect().cursor()
    for number in range(1, 4):
        cursor.execute(f"drop role if exists dbt_grantee_{number}")
        cursor.execute(f"create role dbt_grantee_{number}")
        os.environ[f"DBT_TEST_USER_{number}"] = f"dbt_grantee_{number}"


@pytest.fixture(scope="class")
def dbt_profile_target():
    return {
        "type": "postgres",
        "threads": 2,
        "host": os.environ["PGHOST"],
        "port": int(os.environ["PGPORT"]),
        "user": os.environ["PGUSER"],
        "pass": os.environ.get("PGPASSWORD", ""),
        "dbname": os.environ.get("PGDATABASE", "postgres"),
    }


class Project:
    """What every project needs that uses the package: see dbt/README.md."""

    # Configs of all models, beside the strategy.
    configs = {}

    @pytest.fixture(scope="class")
    def packages(self):
        return {"packages": [{"local": str(PACKAGE)}]}

    @pytest.fixture(scope="class")
    def macros(self):
        return {"idem_merge.sql": WRAPPER}

    @pytest.fixture(scope="class")
    def project_config_update(self):
        return {
            "dispatch": [{"macro_namespace": "dbt", "search_order": ["test", "idempotent_ingest", "dbt"]}],
            "models": {"test": {"+incremental_strategy": "idem_merge", **self.configs}},
        }

    @pytest.fixture(scope="class", autouse=True)
    def install(self, project):
        # What "dbt deps" does; but that would take the adapter away from the fixtures.
        packages = Path(project.project_root, "dbt_packages")
        packages.mkdir()
        (packages / "idempotent_ingest").symlink_to(PACKAGE)
