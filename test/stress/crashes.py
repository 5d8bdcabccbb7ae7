"""kill -9 of processes of the server, at random moments under load; afterwards the ledger and the data are compared.

Four clients merge overlapping batches, retry them, apply some again, claim, prepare transactions and have jobs run.
Then a backend, the process of a job, a worker, the launcher, the checkpointer, the WAL writer or the postmaster is
killed, or all of them while the server recovers from the death of one; and when the server is back:

- each transaction that the ledger names has written as many rows as the ledger says, and no other has written any;
- the rows are those that the batches of the ledger make of an empty table, in the order of their commits;
- two batches of one transaction are both there or both not there; a job has succeeded if, and only if, its batch is
  there; so it is with a claim and the work that it stands for;
- what a client was told is there, unless synchronous_commit is off: then the last transactions may be lost, as a whole
  (but not one that was prepared);
- what a client was not told is sent again: what the ledger has is replayed, what it has not is applied.

A trigger notes who has written what, so that nothing of this relies on what the extension says. Every few crashes all
that was begun is brought to its end, and pg_amcheck looks at the tables and indexes.
"""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass

import psycopg

from cluster import Cluster, progress

CLIENTS = 4
SOURCES = 40
KEYS = 1000
ROWS = 200
# So many crashes with one value of synchronous_commit, on the same tables; then pg_amcheck.
ERA = 5

VICTIMS = {
    "backend": None,
    "job": "idempotent_ingest job",
    "worker": "idempotent_ingest worker",
    "launcher": "idempotent_ingest launcher",
    "checkpointer": "checkpointer",
    "walwriter": "walwriter",
    "postmaster": None,
    "all in recovery": None,
}
ACTIONS = {"merge": 6, "retry": 3, "reapply": 1, "both": 2, "prepare": 1, "claim": 1, "job": 2, "checkpoint": 0.3}
EXPECTED = (
    *(f"{victim} killed" for victim in VICTIMS),
    *(f"{action} acknowledged" for action in ("merge", "retry", "both", "job")),
    *("applied", "replayed", "native", "sql", "in doubt, was not", "pg_amcheck"),
)

SETTINGS = {
    # Processes die here, the machine does not.
    "fsync": "off",
    "shared_preload_libraries": "idempotent_ingest",
    "track_commit_timestamp": "on",
    # Lets the WAL writer come late, so that something is lost with synchronous_commit = off.
    "wal_writer_delay": "10s",
    "idempotent_ingest.job_retry_delay": "10ms",
    "autovacuum_naptime": "1s",
}

SETUP = f"""
CREATE EXTENSION amcheck;
CREATE TABLE sent (source int, k int, v text, ver int);
SELECT setseed(0.5);
-- "source * 0" makes it another choice for each source.
INSERT INTO sent SELECT source, k, repeat(md5(k || ' ' || ver), 1 + ver % 3), ver
    FROM generate_series(0, {SOURCES - 1}) AS source,
         LATERAL (SELECT k, (1 + random() * 1000 + source * 0)::int AS ver FROM generate_series(1, {KEYS}) AS k
                  ORDER BY random() + source * 0 LIMIT {ROWS}) AS rows;
CREATE TABLE turns (k int PRIMARY KEY, v text, ver int);
CREATE INDEX ON turns (ver, v);
CREATE TABLE versions (LIKE turns INCLUDING ALL);
CREATE TABLE work (batch text);
CREATE TABLE written (xid xid8 DEFAULT pg_current_xact_id(), target regclass, inserted boolean);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO written (target, inserted) VALUES (TG_RELID, TG_OP = 'INSERT'); RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON turns FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER note AFTER INSERT OR UPDATE ON versions FOR EACH ROW EXECUTE FUNCTION note();
""" + "".join(f"CREATE TABLE s{i} AS SELECT k, v, ver FROM sent WHERE source = {i};\n" for i in range(SOURCES))
RESET = "TRUNCATE turns, versions, work, written; DELETE FROM idem_ledger; DELETE FROM idem_audit; DELETE FROM idem_job"

# Every application of a batch, by the ledger and by what the ledger had before a batch was applied again.
APPLIED = """
WITH applied AS (
    SELECT target, metadata::int AS source, xid, rows_inserted, rows_updated FROM idem_ledger WHERE operation = 'merge'
    UNION ALL
    SELECT (entry ->> 'target')::regclass, (entry ->> 'metadata')::int, (entry ->> 'xid')::xid8,
           (entry ->> 'rows_inserted')::int, (entry ->> 'rows_updated')::int
    FROM idem_audit)
"""
# Each query returns what should not be.
CHECKS = {
    "a transaction has written other rows than the ledger says": APPLIED
    + """
        SELECT * FROM applied FULL JOIN (SELECT xid, target, count(*) FILTER (WHERE inserted) AS inserts,
                                                count(*) FILTER (WHERE NOT inserted) AS updates
                                         FROM written GROUP BY xid, target) AS w USING (xid, target)
        WHERE coalesce(rows_inserted, -1) <> coalesce(inserts, 0) OR rows_updated <> coalesce(updates, 0)""",
    "the rows are not those of the batches in the order of their commits": APPLIED
    + """
        , expected AS (SELECT DISTINCT ON (s.k) s.k, s.v, s.ver
                       FROM applied AS a JOIN sent AS s USING (source) WHERE a.target = 'turns'::regclass
                       ORDER BY s.k, pg_xact_commit_timestamp(a.xid::xid) DESC)
        (TABLE expected EXCEPT TABLE turns) UNION ALL (TABLE turns EXCEPT TABLE expected)""",
    "the rows are not the newest ones of the batches": APPLIED
    + """
        , expected AS (SELECT DISTINCT ON (s.k) s.k, s.v, s.ver
                       FROM applied AS a JOIN sent AS s USING (source) WHERE a.target = 'versions'::regclass
                       ORDER BY s.k, s.ver DESC)
        (TABLE expected EXCEPT TABLE versions) UNION ALL (TABLE versions EXCEPT TABLE expected)""",
    "one of two batches of a transaction is missing": """
        SELECT batch_id, count(*) FROM idem_ledger WHERE batch_id LIKE 'both %'
        GROUP BY batch_id HAVING count(*) <> 2""",
    "claim and work disagree": """
        SELECT * FROM (SELECT batch_id FROM idem_ledger WHERE operation = 'claim') AS l
            FULL JOIN work AS w ON w.batch = l.batch_id WHERE l.batch_id IS NULL OR w.batch IS NULL
        UNION ALL SELECT NULL, batch FROM work GROUP BY batch HAVING count(*) > 1""",
    "job and batch disagree": """
        SELECT j.*, l.revision FROM idem_job AS j LEFT JOIN idem_ledger AS l USING (batch_id)
        WHERE CASE j.status WHEN 'succeeded' THEN l.revision IS DISTINCT FROM 1 WHEN 'failed' THEN true
                            ELSE l.revision IS NOT NULL END
        UNION ALL
        SELECT j.*, l.revision FROM idem_job AS j RIGHT JOIN idem_ledger AS l USING (batch_id)
        WHERE l.batch_id LIKE 'job %' AND j.job_id IS NULL""",
}


@dataclass
class Task:
    """What a client does until it is told that it is done."""

    action: str
    batch: str
    source: int
    targets: tuple
    engine: str
    job: int = None
    revision: int = 1
    # Was the client told that the transaction is prepared?
    prepared: bool = False
    # Set by a look at the ledger after a crash: what an answer must say.
    known: bool = None


class Stage:
    """A server with its clients."""

    def __init__(self, cluster, database):
        self.cluster, self.database = cluster, database
        self.seen = Counter()
        self.problems = []
        self.lock = threading.Lock()
        self.number = 0
        self.in_doubt = [None] * CLIENTS
        # Tasks, and by batch the latest revision that somebody was told of.
        self.acknowledged, self.revisions = [], Counter()
        cluster.create_database(database)
        with cluster.connect(database) as connection:
            connection.execute(SETUP)

    def begin_era(self, synchronous_commit):
        self.synchronous = synchronous_commit == "on"
        self.acknowledged, self.revisions = [], Counter()
        with self.cluster.connect(self.database) as connection:
            connection.execute(RESET)
            connection.execute(f"ALTER DATABASE {self.database} SET synchronous_commit = {synchronous_commit}")

    # Clients

    def new_task(self, rng):
        action = rng.choices(list(ACTIONS), ACTIONS.values())[0]
        source, target = rng.randrange(SOURCES), rng.choice(["turns", "turns", "versions"])
        engine = rng.choice(["auto", "native", "sql"])
        with self.lock:
            self.number += 1
            known = [task for task in self.acknowledged if task.action in ("merge", "prepare")]
            if action in ("retry", "reapply"):
                if not known:
                    action = "merge"
                else:
                    task = rng.choice(known[-20:])
                    return Task(action, task.batch, task.source, task.targets, engine, known=True)
            targets = {"both": ("turns", "versions"), "claim": (), "checkpoint": ()}.get(action, (target,))
            return Task(action, f"{action} {self.number}", source, targets, engine)

    def run_client(self, connection, number, seed):
        rng = random.Random(seed)
        try:
            while True:
                task = self.in_doubt[number] = self.in_doubt[number] or self.new_task(rng)
                self.run_task(connection, task)
                with self.lock:
                    self.seen[f"{task.action} acknowledged"] += 1
                    if task.action != "checkpoint":
                        self.revisions[task.batch] = max(self.revisions[task.batch], task.revision)
                    if task.action not in ("retry", "reapply", "checkpoint"):
                        self.acknowledged.append(task)
                self.in_doubt[number] = None
                self.steps.release()
        except psycopg.OperationalError as error:
            # The connection is gone, as it was to be, or the server says why it is about to be.
            if not connection.closed or error.sqlstate not in (None, "57P01", "57P02", "57P03"):
                self.problems.append(f"{task}: {error.sqlstate} {error}")
        except Exception as error:
            self.problems.append(f"{task}: {error!r}")
        self.steps.release()

    def run_task(self, connection, task):
        connection.execute(f"SET idempotent_ingest.engine = {task.engine}")
        if task.action == "checkpoint":
            connection.execute("CHECKPOINT")
        elif task.action == "job":
            self.run_job(connection, task)
        elif task.action == "claim":
            connection.execute("BEGIN")
            (claimed,) = connection.execute(f"SELECT idem_claim('{task.batch}')").fetchone()
            if claimed:
                connection.execute(f"INSERT INTO work VALUES ('{task.batch}')")
            connection.execute("COMMIT")
            self.expect(task, "applied" if claimed else "replayed")
        elif task.action in ("merge", "retry", "reapply"):
            self.expect(task, self.merge(connection, task, *task.targets))
        else:
            connection.execute("BEGIN")
            answers = [self.merge(connection, task, target) for target in task.targets]
            if task.action == "prepare":
                connection.execute(f"PREPARE TRANSACTION '{task.batch}'")
                task.prepared = True
                connection.execute(f"COMMIT PREPARED '{task.batch}'")
            else:
                connection.execute("COMMIT")
            for answer in answers:
                self.expect(task, answer)

    def merge(self, connection, task, target):
        replay = "reapply" if task.action == "reapply" else "skip"
        status, task.revision, engine = connection.execute(
            f"SELECT status, revision, engine FROM idem_merge({arguments(task, target)}, on_replay => '{replay}')"
        ).fetchone()
        with self.lock:
            self.seen[status] += 1
            self.seen[engine] += 1
        return status

    def run_job(self, connection, task):
        if task.job is None:
            # It may have been enqueued without our being told.
            row = connection.execute(f"SELECT job_id FROM idem_jobs WHERE batch_id = '{task.batch}'").fetchone()
            task.job = row and row[0]
        if task.job is None:
            # Were it run twice, the ledger would have a second revision.
            (task.job,) = connection.execute(
                f"SELECT idem_enqueue({arguments(task, *task.targets)}, on_replay => 'reapply', max_attempts => 1000)"
            ).fetchone()
        status, message = connection.execute(f"SELECT status, message FROM idem_wait({task.job}, '60s')").fetchone()
        if status != "succeeded":
            self.problems.append(f"{task} has {status}: {message}")

    def expect(self, task, answer):
        expected = {None: ("applied",), False: ("applied",), True: ("replayed",)}[task.known]
        if task.action == "reapply":
            expected = ("reapplied",)
        if answer not in expected:
            self.problems.append(f"{task} was {answer}")

    # Crashes

    def play(self, seed, victim):
        """One crash under load, and what is there after it."""
        rng = random.Random(seed)
        connections = [self.cluster.connect(self.database) for _ in range(CLIENTS)]
        for connection in connections:
            connection.execute("SET client_min_messages = error; SET statement_timeout = '90s'")
        self.steps = threading.Semaphore(0)
        if victim == "job":
            task = Task("job", f"job {seed}", rng.randrange(SOURCES), ("turns",), "auto")
            self.in_doubt[0] = self.in_doubt[0] or task
        threads = self.start(connections, rng)
        for _ in range(rng.randint(0, 40)):
            if not self.steps.acquire(timeout=60):
                self.problems.append("the clients do not get on")
            if self.problems:
                break
        # Any moment will do.
        time.sleep(rng.uniform(0, 0.02))
        self.kill(victim, rng.choice(connections).info.backend_pid, rng)
        for thread in threads:
            thread.join(timeout=60)
            if thread.is_alive():
                raise RuntimeError("a client has not noticed the crash")
        for connection in connections:
            connection.close()
        self.seen[f"{victim} killed"] += 1
        self.verify_crash(rng)

    def start(self, connections, rng):
        threads = [
            threading.Thread(target=self.run_client, args=(connection, i, rng.random()), daemon=True)
            for i, connection in enumerate(connections)
        ]
        for thread in threads:
            thread.start()
        return threads

    def kill(self, victim, backend, rng):
        if victim == "all in recovery":
            os.kill(backend, signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.1))
            # All: who waits for an LWLock of that backend would wait for ever, without a postmaster to end it.
            self.cluster.kill_postmaster(and_all=True)
            return
        if victim == "postmaster":
            self.cluster.kill_postmaster()
            return
        before = self.kills()
        deadline = time.monotonic() + 60
        # A job can end just before it is killed: then another one is.
        while self.kills() == before:
            pid = backend
            if victim != "backend":
                pid = next((pid for pid, title in self.cluster.processes().items() if VICTIMS[victim] in title), None)
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                while os.path.exists(f"/proc/{pid}"):
                    time.sleep(0.001)
            if time.monotonic() > deadline:
                raise RuntimeError(f"there is no {victim} to be killed")

    def kills(self):
        return self.cluster.read_log().count("was terminated by signal 9:")

    def verify_crash(self, rng):
        with self.cluster.connect_again(self.database) as connection:
            batches = {row[0] for row in connection.execute("SELECT batch_id FROM idem_ledger").fetchall()}
            prepared = {row[0] for row in connection.execute("SELECT gid FROM pg_prepared_xacts").fetchall()}
            for task in filter(None, self.in_doubt):
                if task.prepared and task.batch not in batches | prepared:
                    self.problems.append(f"prepared, and lost: {task}")
                task.prepared = False
            # They hold their locks until somebody decides.
            for gid in prepared:
                connection.execute(f"{rng.choice(['COMMIT', 'ROLLBACK'])} PREPARED '{gid}'")
                self.seen["left prepared"] += 1
            self.check(connection)
            there = dict(connection.execute("SELECT batch_id, revision FROM idem_ledger").fetchall())
        lost = [batch for batch, revision in self.revisions.items() if revision > there.get(batch, 0)]
        if lost and self.synchronous:
            self.problems.append(f"acknowledged, and lost: {lost}")
        self.seen["acknowledged, lost with synchronous_commit = off"] += len(lost)
        self.revisions = Counter(there)
        self.acknowledged = [task for task in self.acknowledged if task.batch in there]
        for i, task in enumerate(self.in_doubt):
            if task is None:
                continue
            self.seen[f"{task.action} in doubt"] += 1
            if not self.synchronous:
                task.job = None
            if task.action in ("retry", "reapply") and task.batch not in there:
                self.in_doubt[i] = None
            elif task.action not in ("retry", "reapply", "checkpoint"):
                task.known = task.batch in there
                self.seen["in doubt, was committed" if task.known else "in doubt, was not"] += 1

    def check(self, connection):
        """All of it under one snapshot, since jobs are run meanwhile."""
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for what, query in CHECKS.items():
            rows = connection.execute(query).fetchall()
            if rows:
                self.problems.append(f"{what}: {len(rows)} rows, {rows[:5]}")
        connection.execute("COMMIT")

    def end_era(self):
        """Brings to its end what is in doubt, and lets pg_amcheck look at all."""
        with self.cluster.connect(self.database) as connection:
            connection.execute("SET client_min_messages = error; SET statement_timeout = '90s'")
            for task in filter(None, self.in_doubt):
                self.run_task(connection, task)
            self.in_doubt = [None] * CLIENTS
            for (job,) in connection.execute("SELECT job_id FROM idem_jobs").fetchall():
                connection.execute(f"SELECT idem_wait({job}, '60s')")
            self.check(connection)
            for (status,) in connection.execute("SELECT DISTINCT status FROM idem_jobs").fetchall():
                if status != "succeeded":
                    self.problems.append(f"at the end a job is {status}")
        self.cluster.run(
            "pg_amcheck", "-h", self.cluster.dir, "-U", "postgres", "-d", self.database, "--heapallindexed"
        )
        self.seen["pg_amcheck"] += 1


def arguments(task, target):
    version = ", version_cols => '{ver}'" if target == "versions" else ""
    return f"'s{task.source}', '{target}', batch_id => '{task.batch}', metadata => '{task.source}'{version}"


def play_all(_, database, seed, crashes):
    """Returns what was seen, and what went wrong until the first crash after which something had gone wrong."""
    with Cluster(**SETTINGS) as cluster:
        stage = Stage(cluster, database)
        for i in range(crashes):
            progress(database, i, crashes)
            # Counted through all processes, so that few crashes are of all sorts.
            number = seed % 1000 * crashes + i
            victim = list(VICTIMS)[number % len(VICTIMS)]
            if i % ERA == 0:
                stage.begin_era("off" if number // ERA % 2 else "on")
            stage.play(seed * 1_000_000 + i, victim)
            if not stage.problems and (i % ERA == ERA - 1 or i == crashes - 1):
                stage.end_era()
            stage.problems += cluster.failures(expected="was terminated by signal 9:")
            if stage.problems:
                stage.problems.insert(0, f"crash {i}, {victim}, synchronous: {stage.synchronous}")
                break
        return stage.seen, "\n".join(stage.problems)
