"""Faults in the middle of a merge: it is cancelled, terminated or timed out, or short of memory or disk.

The moment of the fault, or how much there is of what gets short, is swept over the whole merge. Then:

- after an error target and ledger are as they were, and so is what triggers wrote; where no error was seen, all of it
  is there; where the connection was lost, one of the two;
- the session holds no lock and reports no progress, no temporary file is left, nor a file of a relation that there is
  not;
- the merge is run again, by the same session if it lives, and does what it should have done.

What it should have done is computed by plain SQL.
"""

import contextlib
import glob
import os
import random
import re
import resource
import time
from collections import Counter
from dataclasses import dataclass

import psycopg
from psycopg.pq import DiagnosticField, ExecStatus

from cluster import Cluster, SmallDisk, progress

STORED, STAGED = 1500, 3000
# Multiples of it, without what is before the point, cover everything between 0 and 1 evenly.
GOLDEN = 0.6180339887

# How often each is tried, and how it may end; empty is a connection that was lost.
KINDS = {
    "statement_timeout": 6,
    "cancel": 6,
    "terminate": 3,
    "client gone": 1,
    "idle in transaction": 1,
    "lock_timeout": 4,
    "temp_file_limit": 3,
    "memory": 4,
    "full temp": 3,
    "full target": 3,
    "full WAL": 1,
}
SQLSTATES = {
    "statement_timeout": ("57014",),
    "cancel": ("57014",),
    "terminate": ("57P01",),
    "client gone": ("",),
    "idle in transaction": ("25P03", ""),
    "lock_timeout": ("55P03",),
    "temp_file_limit": ("53400",),
    "memory": ("53200",),
    "full temp": ("53100",),
    "full target": ("53100",),
    "full WAL": ("53100", ""),
}
# Here the error can come after the commit, and before the client is told of it.
MAYBE_COMMITTED = ("terminate", "client gone", "full WAL")
EXPECTED = [f"{kind}: {sqlstates[0] or 'lost'}" for kind, sqlstates in SQLSTATES.items()] + ["server crashed"]

SETTINGS = {
    # Processes die here, the machine does not.
    "fsync": "off",
    "autovacuum": "off",
    # A library that cannot be loaded, for want of memory, is another error (58P01).
    "shared_preload_libraries": "idempotent_ingest, plpgsql",
}
# WAL files are removed when they are not needed, and that seldom: one that some process has open takes its room still.
FULL_WAL = {**SETTINGS, "max_wal_size": "1GB", "wal_recycle": "off"}
WAL_SEGMENT = 1024 * 1024


@dataclass
class Need:
    """What a merge takes: time, and bytes of memory, temporary files, disk and WAL."""

    seconds: float
    memory: int
    temporary: int
    disk: int
    wal: int


@dataclass(frozen=True)
class Shape:
    """A target with its batch."""

    name: str
    arguments: str = ", batch_id => 'b'"
    engines: tuple = ("native", "sql")
    # What stands in CREATE TABLE after the columns; what else there is.
    partitioned: bool = False
    more: str = ""
    stored: int = STORED
    version: bool = False
    revision: int = 0
    tablespace: str = ""

    @property
    def call(self):
        return f"SELECT status, engine FROM idem_merge('staging_{self.name}', '{self.name}'{self.arguments})"


NOTE = """
CREATE TABLE noted (k int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO noted VALUES (NEW.k); RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON triggers FOR EACH ROW EXECUTE FUNCTION note();
CREATE TABLE referenced AS SELECT DISTINCT ver FROM staging_triggers;
ALTER TABLE referenced ADD PRIMARY KEY (ver);
ALTER TABLE triggers ADD FOREIGN KEY (ver) REFERENCES referenced NOT VALID;
"""
SHAPES = [
    Shape("plain"),
    Shape("fresh", ", batch_id => 'b', exclusive => true", ("native",), stored=0),
    Shape("parted", engines=("sql",), partitioned=True),
    Shape("derived", ""),
    Shape("versions", ", batch_id => 'b', version_cols => '{ver}'", version=True),
    Shape("triggers", more=NOTE),
    Shape("again", ", batch_id => 'b', on_replay => 'reapply'", revision=1),
]
ON_SMALL_DISK = [
    Shape("small", tablespace="small"),
    Shape("small_fresh", ", batch_id => 'b', exclusive => true", ("native",), stored=0, tablespace="small"),
]


def setup(shape):
    name = shape.name
    order = "ver DESC, staged DESC" if shape.version else "staged DESC"
    return f"""
        SET default_tablespace = '{shape.tablespace}';
        CREATE TABLE {name} (k int PRIMARY KEY, v text, ver int) {'PARTITION BY HASH (k)' if shape.partitioned else ''};
        {f'''CREATE TABLE {name}_0 PARTITION OF {name} FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES WITH (MODULUS 2, REMAINDER 1);'''
         if shape.partitioned else ''}
        CREATE INDEX {name}_v ON {name} (v);
        RESET default_tablespace;
        CREATE TABLE before_{name} AS
            SELECT 2 * k AS k, repeat(md5(k::text), 3) AS v, 1 + k * 7 % 10 AS ver
            FROM generate_series(1, {shape.stored}) AS k;
        -- A third of the rows is as it was; in no order.
        CREATE TABLE staging_{name} AS
            SELECT k, CASE WHEN k % 6 = 0 THEN repeat(md5((k / 2)::text), 3) ELSE repeat(md5('new' || k), 3) END AS v,
                   CASE WHEN k % 6 = 0 THEN 1 + k / 2 * 7 % 10 ELSE 1 + k * 3 % 10 END AS ver
            FROM generate_series(1, {STAGED}) AS k ORDER BY md5(k::text);
        {'''INSERT INTO staging_versions SELECT k, 'newer', ver + 1 FROM staging_versions WHERE k % 10 = 3;'''
         if shape.version else ''}
        CREATE TABLE expected_{name} AS
            SELECT DISTINCT ON (k) k, v, ver
            FROM (SELECT *, 1 AS staged FROM staging_{name} UNION ALL SELECT *, 0 FROM before_{name}) AS rows
            ORDER BY k, {order};
        {shape.more}
        {restore(shape)}
        ANALYZE {name}, staging_{name};
    """


def restore(shape):
    """The target and the ledger as they were before the merge, without what merges that were undone have left."""
    name = shape.name
    ledger = "INSERT INTO idem_ledger SELECT * FROM ledger_before WHERE target"
    return f"""
        TRUNCATE {name};
        ALTER TABLE {name} DISABLE TRIGGER USER;
        INSERT INTO {name} SELECT * FROM before_{name};
        ALTER TABLE {name} ENABLE TRIGGER USER;
        DELETE FROM idem_ledger WHERE target = '{name}'::regclass;
        DELETE FROM idem_audit WHERE (entry ->> 'target')::regclass = '{name}'::regclass;
        {f"{ledger} = '{name}'::regclass" if shape.revision else ''};
        {'TRUNCATE noted' if shape.more else ''};
    """


@dataclass(frozen=True)
class Case:
    kind: str
    shape: Shape
    engine: str
    work_mem: str
    # Is the session a new one?
    fresh: bool

    @property
    def key(self):
        return self.shape, self.engine, self.work_mem, self.fresh

    def __str__(self):
        session = "a new session" if self.fresh else "a session"
        return f"{self.kind}: {self.shape.call}, {self.engine}, work_mem {self.work_mem}, {session}"


class Stage:
    """A server with the tables of all shapes. What gets full is disk: the one with its tablespaces, or its WAL."""

    def __init__(self, cluster, database, rng, shapes, disk):
        self.cluster, self.database, self.rng, self.shapes, self.disk = cluster, database, rng, shapes, disk
        self.seen, self.problems = Counter(), []
        self.crashed = False
        self.session = None
        self.fractions, self.measured, self.uses = Counter(), {}, Counter()
        cluster.create_database(database)
        self.control = self.connect()
        if any(shape.tablespace == "small" for shape in shapes):
            for name in ("small", "small_temp"):
                os.mkdir(os.path.join(disk.dir, name))
                self.control.execute(f"CREATE TABLESPACE {name} LOCATION '{os.path.join(disk.dir, name)}'")
        self.control.execute("CREATE TABLE ledger_before (LIKE idem_ledger)")
        for shape in shapes:
            self.control.execute(setup(shape))
            if shape.revision:
                self.control.execute(shape.call)
                self.control.execute("INSERT INTO ledger_before TABLE idem_ledger")
                self.control.execute(restore(shape))

    def connect(self):
        connection = self.cluster.connect_again(self.database)
        connection.execute("SET client_min_messages = error; SET hash_mem_multiplier = 1; SET jit = off")
        return connection

    def close(self):
        for connection in (self.control, self.session):
            if connection:
                connection.close()

    # One fault

    def play(self, kind):
        shape = self.rng.choice(
            [shape for shape in self.shapes if (shape.tablespace == "small") == (kind == "full target")]
        )
        engine = self.rng.choice(shape.engines)
        small = kind in ("temp_file_limit", "full temp") or self.rng.random() < 0.4
        case = Case(kind, shape, engine, "64kB" if small else "4MB", kind == "memory" or self.rng.random() < 0.2)
        if case.fresh and self.session:
            self.session.close()
            self.session = None
        if kind == "full target":
            self.control.execute(restore(shape))
        self.open(case)
        self.measure(case)
        self.pid = self.session.info.backend_pid
        sqlstate = getattr(self, "fault_" + kind.replace(" ", "_"))(case)
        outcome = "not hit" if sqlstate is None else sqlstate or "lost"
        self.seen[f"{kind}: {outcome}"] += 1
        if sqlstate is not None and sqlstate not in SQLSTATES[kind]:
            self.problems.append(f"it ended with {outcome}")
        try:
            self.verify(case, sqlstate)
        except psycopg.Error as error:
            self.problems.append(repr(error))
        if self.problems:
            self.problems.insert(0, f"{case}, {outcome}:")

    def open(self, case):
        if self.session is None or self.session.closed:
            self.session = self.connect()
        self.session.execute(f"SET idempotent_ingest.engine = {case.engine}; SET work_mem = '{case.work_mem}'")

    def measure(self, case):
        """What a merge of this sort takes if nothing is in its way."""
        if case.key in self.measured:
            return
        free, wal = self.disk.free(), self.wal_bytes()
        temporary, memory = self.temporary_bytes(), memory_of(self.session)
        began = time.monotonic()
        self.session.execute("BEGIN")
        self.session.execute(case.shape.call)
        seconds = time.monotonic() - began
        memory = memory_of(self.session, "VmPeak") - memory
        target, wal = free - self.disk.free(), self.wal_bytes() - wal
        self.session.execute("ROLLBACK")
        # Not before: a transaction does not send its counts.
        self.measured[case.key] = Need(seconds, memory, self.temporary_bytes() - temporary, target, wal)
        self.control.execute(restore(case.shape))
        if case.fresh:
            self.session.close()
            self.open(case)

    def temporary_bytes(self):
        self.session.execute("SELECT pg_stat_force_next_flush()")
        return self.session.execute(
            "SELECT pg_stat_get_db_temp_bytes(oid) FROM pg_database WHERE datname = current_database()"
        ).fetchone()[0]

    def wal_bytes(self):
        return self.ask("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")

    def part(self, case, what):
        """A part of what is needed, and sometimes a little more than all of it: another one for each case."""
        self.fractions[case.kind, case.key] += GOLDEN
        return self.fractions[case.kind, case.key] % 1 * 1.1 * getattr(self.measured[case.key], what)

    def send(self, statement):
        self.session.pgconn.send_query(statement.encode())

    def receive(self):
        """The SQLSTATE of an error, if there is one; empty if the connection was lost without any."""
        sqlstate = None
        while (result := self.session.pgconn.get_result()) is not None:
            if result.status == ExecStatus.FATAL_ERROR and not sqlstate:
                sqlstate = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
        return sqlstate

    def run(self, case):
        self.send(case.shape.call)
        return self.receive()

    def run_until(self, case, statement):
        """Runs the merge, and another statement at a moment of it."""
        moment = time.monotonic() + self.part(case, "seconds")
        self.send(case.shape.call)
        time.sleep(max(moment - time.monotonic(), 0))
        self.control.execute(statement)
        return self.receive()

    # Each sort of fault

    def fault_statement_timeout(self, case):
        self.session.execute(f"SET statement_timeout = {1 + int(1000 * self.part(case, 'seconds'))}")
        sqlstate = self.run(case)
        while True:
            # It is under this timeout itself.
            with contextlib.suppress(psycopg.errors.QueryCanceled):
                self.session.execute("RESET statement_timeout")
                return sqlstate

    def fault_cancel(self, case):
        return self.run_until(case, f"SELECT pg_cancel_backend({self.pid})")

    def fault_terminate(self, case):
        sqlstate = self.run_until(case, f"SELECT pg_terminate_backend({self.pid})")
        self.wait_until_gone()
        self.session.close()
        return sqlstate

    def fault_client_gone(self, case):
        self.send(case.shape.call)
        time.sleep(self.part(case, "seconds"))
        self.session.pgconn.finish()
        return ""

    def fault_idle_in_transaction(self, case):
        self.send(f"BEGIN; SET LOCAL idle_in_transaction_session_timeout = 1; {case.shape.call}")
        sqlstate = self.receive()
        self.wait_until_gone()
        if sqlstate is None:
            self.send("COMMIT")
            sqlstate = self.receive()
        return sqlstate

    def fault_lock_timeout(self, case):
        name, key = case.shape.name, self.rng.randrange(1, STORED)
        with self.connect() as holder:
            holder.execute("BEGIN")
            holder.execute(
                self.rng.choice(
                    [
                        f"UPDATE {name} SET ver = ver WHERE k = {2 * key}",
                        f"DELETE FROM {name} WHERE k = {2 * key}",
                        f"INSERT INTO {name} VALUES ({2 * key - 1}) ON CONFLICT DO NOTHING",
                        f"LOCK TABLE {name} IN SHARE MODE",
                        f"LOCK TABLE staging_{name} IN ACCESS EXCLUSIVE MODE",
                        f"SELECT FROM idem_ledger WHERE target = '{name}'::regclass FOR UPDATE",
                        case.shape.call.replace("'b'", "'other'"),
                        case.shape.call,
                    ]
                )
            )
            self.session.execute("SET lock_timeout = '5ms'")
            sqlstate = self.run(case)
            self.session.execute("RESET lock_timeout")
            holder.execute("ROLLBACK")
        return sqlstate

    def fault_temp_file_limit(self, case):
        self.session.execute(f"SET temp_file_limit = {int(self.part(case, 'temporary') / 1024)}")
        sqlstate = self.run(case)
        self.session.execute("RESET temp_file_limit")
        return sqlstate

    def fault_memory(self, case):
        limit = int(memory_of(self.session) + self.part(case, "memory"))
        limits = resource.prlimit(self.pid, resource.RLIMIT_AS)
        resource.prlimit(self.pid, resource.RLIMIT_AS, (limit, limits[1]))
        sqlstate = self.run(case)
        if not self.session.closed:
            resource.prlimit(self.pid, resource.RLIMIT_AS, limits)
        return sqlstate

    def fault_full_temp(self, case):
        self.session.execute("SET temp_tablespaces = small_temp")
        sqlstate = self.run_with_full_disk(case, self.part(case, "temporary"))
        self.session.execute("RESET temp_tablespaces")
        return sqlstate

    def fault_full_target(self, case):
        return self.run_with_full_disk(case, self.part(case, "disk"))

    def fault_full_WAL(self, case):
        # So many bytes are left in the file that is written to, and no file is there to be the next.
        left = int(min(self.part(case, "wal"), 0.9 * WAL_SEGMENT))
        if self.disk.free() < 16 * WAL_SEGMENT:
            self.control.execute("CHECKPOINT")
        next_file = True
        while next_file:
            self.control.execute(
                f"SELECT pg_switch_wal(); SELECT pg_logical_emit_message(true, '', repeat('x', {WAL_SEGMENT - left}))"
            )
            next_file = self.ask(
                "SELECT EXISTS (SELECT FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'"
                " AND name > pg_walfile_name(pg_current_wal_insert_lsn()))"
            )
        sqlstate = self.run_with_full_disk(case)
        try:
            # Waits for whoever is about to end the server with a PANIC.
            self.control.execute("SELECT pg_logical_emit_message(true, '', '')")
        except psycopg.OperationalError:
            self.seen["server crashed"] += 1
            self.crashed = True
            self.session.close()
            self.control.close()
            self.control = self.connect()
        return sqlstate

    def run_with_full_disk(self, case, left=0):
        self.disk.fill(left)
        try:
            return self.run(case)
        finally:
            self.disk.empty()

    # Afterwards

    def verify(self, case, sqlstate):
        shape = case.shape
        if self.session.closed:
            self.wait_until_gone()
        self.expect("locks", self.ask(f"SELECT count(*) FROM pg_locks WHERE pid = {self.pid}"), 0)
        self.expect("progress", self.ask(f"SELECT count(*) FROM idem_progress WHERE pid = {self.pid}"), 0)
        self.expect("stray files", self.stray_files(), [])
        state = self.state(self.control, shape)
        expected = ["after" if sqlstate is None else "before"]
        if sqlstate is not None and case.kind in MAYBE_COMMITTED:
            expected.append("after")
        if state not in expected:
            self.problems.append(f"the state is {state}")
        self.open(case)
        self.session.execute("BEGIN")
        began = time.monotonic()
        status, _ = self.session.execute(shape.call).fetchone()
        if state == "before" and not case.fresh:
            # The machine is not always as fast.
            need = self.measured[case.key]
            need.seconds = (need.seconds + time.monotonic() - began) / 2
        expected = "reapplied" if shape.revision else "replayed" if state == "after" else "applied"
        self.expect("the retry", status, expected)
        if not shape.revision or state == "before":
            self.expect("the state after the retry", self.state(self.session, shape), "after")
        self.session.execute("ROLLBACK")
        # Merges that are undone leave dead rows.
        self.uses[shape] += 1
        if state == "after" or self.uses[shape] % 10 == 0:
            self.control.execute(restore(shape))

    def wait_until_gone(self):
        while self.ask(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {self.pid}"):
            time.sleep(0.001)

    def ask(self, query):
        return self.control.execute(query).fetchone()[0]

    def expect(self, what, found, expected):
        if found != expected:
            self.problems.append(f"{what}: {found} instead of {expected}")

    def state(self, connection, shape):
        """before or after the merge, or half."""
        name = shape.name
        image = tuple(
            connection.execute(
                f"SELECT NOT EXISTS ((TABLE {name} EXCEPT ALL TABLE {other})"
                f" UNION ALL (TABLE {other} EXCEPT ALL TABLE {name}))"
            ).fetchone()[0]
            for other in (f"before_{name}", f"expected_{name}")
        )
        ledger = connection.execute(
            "SELECT revision, rows_inserted, rows_updated FROM idem_ledger"
            f" WHERE target = '{name}'::regclass AND batch_id <> 'other'"
        ).fetchall()
        audit, noted = connection.execute(
            f"SELECT (SELECT count(*) FROM idem_audit WHERE (entry ->> 'target')::regclass = '{name}'::regclass),"
            f" {'(SELECT count(*) FROM noted)' if shape.more else '0'}"
        ).fetchone()
        revision = ledger[0][0] if ledger else 0
        if len(ledger) > 1 or audit != max(revision - 1, 0):
            return f"half: {ledger} {audit}"
        if image == (True, False) and revision == shape.revision and noted == 0:
            return "before"
        if (
            image == (False, True)
            and revision == shape.revision + 1
            and (not shape.more or noted == sum(ledger[0][1:]))
        ):
            return "after"
        return f"half: {image} {ledger} {audit} {noted}"

    def stray_files(self):
        """Temporary files, and files of relations that there are not. A crash leaves such files behind."""
        tablespaces = [os.path.join(self.cluster.data, "base")]
        tablespaces += glob.glob(os.path.join(self.disk.dir, "small*", "PG_*"))
        if self.crashed:
            return []
        database = str(self.ask("SELECT oid FROM pg_database WHERE datname = current_database()"))
        known = {
            number for (number,) in self.control.execute("SELECT pg_relation_filenode(oid) FROM pg_class").fetchall()
        }
        strays = []
        for tablespace in tablespaces:
            strays += glob.glob(os.path.join(tablespace, "pgsql_tmp", "*"))
            for path in glob.glob(os.path.join(tablespace, database, "*")):
                number = re.match(r"t?(\d+)", os.path.basename(path))
                # What a relation leaves until the next checkpoint is empty.
                with contextlib.suppress(FileNotFoundError):
                    if number and int(number[1]) not in known and os.path.getsize(path) > 0:
                        strays.append(path)
        return strays


def memory_of(session, what="VmSize"):
    """In bytes."""
    with open(f"/proc/{session.info.backend_pid}/status", encoding="utf-8") as file:
        return 1024 * int(re.search(rf"^{what}:\s+(\d+)", file.read(), re.MULTILINE)[1])


def play_all(_, database, seed, faults):
    """Returns what was seen, and what the first fault has left that it should not."""
    rng = random.Random(seed)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.ExitStack() as stack:
        # With the temporary files, and the target.
        small = stack.enter_context(SmallDisk("64m"))
        server = stack.enter_context(Cluster(**SETTINGS))
        stage = Stage(server, database, rng, SHAPES + ON_SMALL_DISK, small)
        stack.callback(stage.close)
        # With the WAL.
        wal = stack.enter_context(SmallDisk("64m"))
        options = [f"--waldir={os.path.join(wal.dir, 'pg_wal')}", "--wal-segsize=1"]
        server_of_wal = stack.enter_context(Cluster(options, **FULL_WAL))
        full = Stage(server_of_wal, database, rng, SHAPES, wal)
        stack.callback(full.close)
        shares = KINDS
        if small.refusal:
            shares = {kind: share for kind, share in KINDS.items() if not kind.startswith("full")}
            stage.seen[f"skipped: full disks, as this system does not let users mount one ({small.refusal})"] += 1
        kinds = []
        for i in range(faults):
            progress(database, i, faults)
            if not kinds:
                kinds = [kind for kind, share in shares.items() for _ in range(share)]
                rng.shuffle(kinds)
            kind = kinds.pop()
            where = full if kind == "full WAL" else stage
            where.play(kind)
            where.problems += where.cluster.failures(r"No space left on device|by signal 6:" if where is full else "$^")
            if where.problems:
                break
        return stage.seen + full.seen, "\n".join(where.problems)
