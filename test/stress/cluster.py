"""A throw-away PostgreSQL server with the extension, and what the parts of the stress tests share.

PG_CONFIG names the installation. Must not be run as root, as PostgreSQL refuses that.
"""

import os
import shutil
import subprocess
import tempfile

import psycopg

EXTENSION = "idempotent_ingest"


def progress(database, done, size):
    """Says now and then how far a process has come."""
    if done and done % 1000 == 0:
        print(f"# {database}: {done} of {size}", flush=True)


class Cluster:
    """A server in a directory of its own, which listens on a Unix socket there. Use it in a with statement."""

    def __init__(self, **settings):
        self.bindir = subprocess.run(
            [os.environ.get("PG_CONFIG", "pg_config"), "--bindir"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()
        self.dir = tempfile.mkdtemp(prefix="stress.")
        self.data = os.path.join(self.dir, "data")
        self.log = os.path.join(self.dir, "log")
        self.settings = {
            "listen_addresses": "",
            "unix_socket_directories": self.dir,
            "max_prepared_transactions": 20,
            "timezone": "UTC",
            **settings,
        }

    def __enter__(self):
        try:
            self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
            with open(os.path.join(self.data, "postgresql.conf"), "a", encoding="utf-8") as conf:
                for name, value in self.settings.items():
                    conf.write(f"{name} = '{value}'\n")
            self.start()
        except BaseException:
            shutil.rmtree(self.dir)
            raise
        return self

    def __exit__(self, *_):
        if os.path.exists(os.path.join(self.data, "postmaster.pid")):
            self.run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(self.dir)

    def run(self, program, *arguments):
        """Runs a program of PostgreSQL; what it says is shown if it fails."""
        done = subprocess.run(
            [os.path.join(self.bindir, program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{self.read_log()[-4000:]}")

    def start(self):
        self.run("pg_ctl", "-D", self.data, "-l", self.log, "-w", "start")

    def read_log(self):
        if not os.path.exists(self.log):
            return ""
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def connect(self, database="postgres", **parameters):
        return psycopg.connect(host=self.dir, user="postgres", dbname=database, autocommit=True, **parameters)

    def create_database(self, name):
        """A database with the extension."""
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        with self.connect(name) as connection:
            connection.execute(f"CREATE EXTENSION {EXTENSION}")
