"""Several clients merge overlapping batches into one target, again and again, and the outcome is explained afterwards.

A schedule is one target with its batches and the transactions of its clients. There are three sorts:

turns     merges that do not commute, and nobody else: the model, given the batches in the order in which their
          transactions were committed, ends with the same rows, and with the same counts for each batch;
versions  merges that commute: they end in the state that every order gives;
mixed     others insert, update, delete and change keys meanwhile: a trigger notes every row that is written, so that
          the states of each key are known in their order. Each row that a merge wrote, the model writes in the state
          before; each row that it did not write, it need not write in a state of the time of the merge.
"""

import random
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

import psycopg

from cluster import progress
from model import COUNTS, Call, Column, Model
from values import Kind

KEY = Kind("int4", "int4", [str(i) for i in range(1, 25)], as_key=True, native=True)
VALUE = Kind("text", "text", ["'a'", "'b'", "'c'"])
VERSION = Kind("int4", "int4", ["1", "2", "3", "4", "5"], as_key=True)
COLUMNS = (Column("k", KEY, "key"), Column("v", VALUE, "value"), Column("ver", VERSION, "version"))
EXTRA = Column("x", VERSION, "extra")

CLIENTS = 4
BATCHES = 6
SORTS = ("turns", "versions", "mixed")
EXPECTED = (*SORTS, "applied", "replayed", "40001", "II001", "prepared", "rolled back", "native", "sql")

SETUP = """
CREATE TABLE t (k int4 PRIMARY KEY, v text, ver int4);
CREATE SEQUENCE moment;
CREATE TABLE log (moment bigint DEFAULT nextval('moment'), xid xid8 DEFAULT pg_current_xact_id(),
                  batch text DEFAULT current_setting('stress.batch'), old t, new t);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO log (old, new) VALUES (OLD, NEW); RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION note();
""" + "".join(f"CREATE TABLE s{i} (k int4, v text, ver int4);\n" for i in range(BATCHES))


@dataclass
class Done:
    """A merge in a transaction that was committed, with the moments before and after that transaction."""

    batch: str
    staging: int
    answer: object
    began: int
    ended: int = None


@dataclass
class Schedule:
    sort: str
    deadlocks: bool  # are possible
    stored: list
    batches: list
    calls: list
    plans: list
    done: list = field(default_factory=list)
    # Moments at which transactions ended, by transaction.
    ends: dict = field(default_factory=dict)
    problems: list = field(default_factory=list)


def plan(seed):
    """A schedule; it depends on the seed only."""
    rng = random.Random(seed)
    sort = rng.choice(SORTS)

    def rows(most):
        keys = rng.sample(KEY.good, rng.randint(1, most))
        return tuple({"k": key, "v": rng.choice(VALUE.good), "ver": rng.choice(VERSION.good)} for key in keys)

    batches = [rows(18) for _ in range(BATCHES)]
    options = {
        "turns": [
            {},
            {},
            {"mode": "insert"},
            {"mode": "update"},
            {"update": ("v",)},
            {"version": ("ver",), "on_stale": "apply"},
            {"version": ("ver",), "mode": "update"},
        ],
        "versions": [{"version": ("ver",)}],
        "mixed": [
            {},
            {"version": ("ver",)},
            {"version": ("ver",)},
            {"version": ("ver",), "update": ("v",)},
            {"mode": "update"},
            {"mode": "insert"},
        ],
    }[sort]
    columns = tuple(column.name for column in COLUMNS)
    calls = [Call(rows=batch, columns=columns, batch=f"b{i}", **rng.choice(options)) for i, batch in enumerate(batches)]
    if sort == "versions":
        # "no key has two rows of equal version and different content"
        values = {}
        calls = [
            replace(
                call, rows=tuple(row | {"v": values.setdefault((row["k"], row["ver"]), row["v"])} for row in call.rows)
            )
            for call in calls
        ]
    # Either of these makes deadlocks possible.
    several, keys_change = rng.random() < 0.3, sort == "mixed" and rng.random() < 0.5
    plans = [
        [transaction(rng, sort, several, keys_change, client) for _ in range(rng.randint(2, 6))]
        for client in range(CLIENTS)
    ]
    stored = rows(12) if sort != "versions" and rng.random() < 0.7 else ()
    return Schedule(sort, several or keys_change, stored, [call.rows for call in calls], calls, plans)


def transaction(rng, sort, several, keys_change, client):
    """isolation, engine, actions, end"""
    if sort == "mixed" and client >= CLIENTS // 2:
        key, other = rng.sample(KEY.literals, 2)
        value, version = rng.choice(VALUE.literals), rng.choice(VERSION.literals)
        statement = rng.choice(
            [f"UPDATE t SET k = {key} WHERE k = {other} AND NOT EXISTS (SELECT FROM t WHERE k = {key})"]
            * 2
            * keys_change
            + [
                f"INSERT INTO t VALUES ({key}, {value}, {version}) ON CONFLICT DO NOTHING",
                f"UPDATE t SET v = {value} WHERE k = {key}",
                f"UPDATE t SET ver = {version} WHERE k = {key}",
                f"DELETE FROM t WHERE k = {key}",
            ]
        )
        return "READ COMMITTED", "auto", [("others", statement)], rng.choice(["COMMIT", "COMMIT", "ROLLBACK"])
    actions = []
    for _ in range(rng.choice([1, 2, 3]) if several else 1):
        number = rng.randrange(BATCHES)
        # Now and then, other content under a known id.
        staging = rng.randrange(BATCHES) if rng.random() < 0.1 else number
        actions.append((rng.choice(["merge", "merge", "merge", "merge and undo"]), number, staging))
    return (
        rng.choice(["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]),
        rng.choice(["auto", "native", "sql"]),
        actions,
        rng.choice(["COMMIT", "COMMIT", "COMMIT", "ROLLBACK", "COMMIT PREPARED", "ROLLBACK PREPARED"]),
    )


class Stage:
    """A database with its clients, in which one schedule is played after the other."""

    def __init__(self, cluster, database):
        cluster.create_database(database)
        # autovacuum is off; without statistics of the target both engines come to the same plans.
        self.control = cluster.connect(database)
        self.control.execute("SET client_min_messages = error")
        for kind in (KEY, VALUE, VERSION):
            kind.learn(self.control)
        self.control.execute(SETUP)
        self.clients = [cluster.connect(database) for _ in range(CLIENTS)]
        for connection in self.clients:
            # A deadlock is found soon; nothing else may take a minute.
            connection.execute(
                "SET client_min_messages = error; SET deadlock_timeout = '100ms'; SET statement_timeout = '60s'"
            )
        self.database = database
        self.seen = Counter()

    def close(self):
        for connection in [self.control, *self.clients]:
            connection.close()

    def play(self, seed):
        schedule = plan(seed)
        self.prepare(schedule)
        threads = [
            threading.Thread(
                target=self.run_client, args=(schedule, connection, f"{self.database}.{seed}.{client}", steps)
            )
            for client, (connection, steps) in enumerate(zip(self.clients, schedule.plans))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if not schedule.problems:
            self.verify(schedule)
        self.seen[schedule.sort] += 1
        if schedule.problems:
            return self.describe(schedule, seed)
        return None

    def prepare(self, schedule):
        self.control.execute("TRUNCATE t; DELETE FROM idem_ledger; SET stress.batch = ''")
        for i, rows in enumerate([schedule.stored, *schedule.batches]):
            table = f"s{i - 1}" if i else "t"
            self.control.execute(f"DELETE FROM {table}")
            if rows:
                self.control.execute(
                    f"INSERT INTO {table} VALUES "
                    + ", ".join(
                        f"({KEY.literals[row['k']]}, {VALUE.literals[row['v']]}, {VERSION.literals[row['ver']]})"
                        for row in rows
                    )
                )
        self.control.execute("TRUNCATE log")

    # Clients

    def run_client(self, schedule, connection, name, transactions):
        try:
            for i, step in enumerate(transactions):
                self.run_transaction(schedule, connection, f"{name}.{i}", *step)
        except Exception as error:  # whatever a thread dies of is a failure of the schedule
            schedule.problems.append(f"{name}: {error!r}")

    def run_transaction(self, schedule, connection, name, isolation, engine, actions, end):
        for _ in range(200):
            (began,) = connection.execute("SELECT nextval('moment')").fetchone()
            connection.execute(f"SET idempotent_ingest.engine = {engine}")
            connection.execute(f"BEGIN ISOLATION LEVEL {isolation}")
            done = []
            try:
                (xid,) = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
                for action in actions:
                    self.run_action(schedule, connection, action, began, done)
                if end.endswith("PREPARED"):
                    connection.execute(f"PREPARE TRANSACTION '{name}'")
                    connection.execute(f"{end} '{name}'")
                    self.seen["prepared"] += 1
                else:
                    connection.execute(end)
            except psycopg.Error as error:
                connection.rollback()
                self.seen[error.sqlstate] += 1
                # "Merges of one target cannot deadlock each other if each is the only merge of its transaction"
                if error.sqlstate == "40001" or error.sqlstate == "40P01" and schedule.deadlocks:
                    continue
                if error.sqlstate == "23505" and actions[0][0] == "others":
                    # Somebody else has inserted the key that a row was to get.
                    return
                if error.sqlstate == "II001":
                    # To be verified, unless the entry was one of the transaction itself.
                    *earlier, merge = done
                    if all(other.batch != merge.batch for other in earlier):
                        merge.answer, merge.ended = "II001", began
                        schedule.done.append(merge)
                    return
                schedule.problems.append(f"{name}: {error.sqlstate} {error} in {isolation}, {engine}, {actions}, {end}")
                return
            (ended,) = connection.execute("SELECT nextval('moment')").fetchone()
            schedule.ends[xid] = ended
            if end.startswith("ROLLBACK"):
                self.seen["rolled back"] += 1
                return
            for merge in done:
                merge.ended = ended
            schedule.done += done
            return
        schedule.problems.append(f"{name}: 200 attempts were not enough")

    def run_action(self, schedule, connection, action, began, done):
        if action[0] == "others":
            connection.execute("SELECT set_config('stress.batch', '', false)")
            connection.execute(action[1])
            return
        what, number, staging = action
        call = schedule.calls[number]
        connection.execute(f"SELECT set_config('stress.batch', '{call.batch}', false)")
        if what == "merge and undo":
            connection.execute("SAVEPOINT undone")
        merge = Done(call.batch, staging, None, began)
        done.append(merge)
        merge.answer = connection.execute(
            f"SELECT status, {', '.join('rows_' + count for count in COUNTS)}, fingerprint, engine"
            f" FROM idem_merge('s{staging}', 't', batch_id => '{call.batch}', metadata => '{staging}'{arguments(call)})"
        ).fetchone()
        if what == "merge and undo":
            connection.execute("ROLLBACK TO undone")
            done.pop()

    # Afterwards

    def verify(self, schedule):
        problems = schedule.problems
        ledger = self.control.execute(
            f"SELECT batch_id, xid::text, metadata::int, {', '.join('rows_' + count for count in COUNTS)},"
            " fingerprint, engine FROM idem_ledger ORDER BY pg_xact_commit_timestamp(xid::xid), applied_at"
        ).fetchall()
        entries = {
            batch: (xid, staging, tuple(counts), fingerprint, engine)
            for batch, xid, staging, *counts, fingerprint, engine in ledger
        }
        rows = {row[0]: row for row in self.control.execute("SELECT k::text, v, ver::text FROM t").fetchall()}
        for entry in entries.values():
            self.seen[entry[-1]] += 1

        # What clients were told is what the ledger has.
        applied = Counter()
        for merge in schedule.done:
            entry = entries.get(merge.batch)
            if entry is None:
                problems.append(f"{merge} is not in the ledger")
            elif merge.answer == "II001":
                if schedule.batches[merge.staging] == schedule.batches[entry[1]]:
                    problems.append(f"{merge} though the ledger has {entry}")
            else:
                status, *counts, fingerprint, engine = merge.answer
                self.seen[status] += 1
                applied[merge.batch] += status == "applied"
                if (tuple(counts), fingerprint, engine) != entry[2:]:
                    problems.append(f"{merge} though the ledger has {entry}")
        for batch in entries:
            if applied[batch] != 1:
                problems.append(f"{batch} was applied {applied[batch]} times")

        calls = {
            call.batch: replace(call, rows=schedule.batches[entries[call.batch][1]])
            for call in schedule.calls
            if call.batch in entries
        }
        if schedule.sort == "mixed":
            self.verify_each_key(schedule, calls, entries, rows)
        else:
            self.verify_order(schedule, [calls[batch] for batch in entries], entries, rows)

    def verify_order(self, schedule, calls, entries, rows):
        model = new_model(schedule.stored)
        inserted = 0
        for call in calls:
            (outcome,) = model.merge(call)
            inserted += entries[call.batch][2][COUNTS.index("inserted")]
            if schedule.sort == "turns" and outcome.counts != entries[call.batch][2]:
                schedule.problems.append(f"{call}: {outcome.counts} in the order of the commits")
        expected = {row["k"]: (row["k"], row["v"], row["ver"]) for row in model.state.rows.values()}
        if rows != expected:
            schedule.problems.append(f"the target has {rows} instead of {expected}")
        if inserted != len(rows) - len(schedule.stored):
            schedule.problems.append(f"{inserted} rows are said to have been inserted, {len(rows)} are there")

    def verify_each_key(self, schedule, calls, entries, rows):
        problems = schedule.problems
        # The states of each key, with the moment of each.
        states = defaultdict(lambda: [(0, None)])
        for row in schedule.stored:
            stored = as_stored(row)
            states[stored["k"]] = [(0, stored)]
        written = defaultdict(dict)
        counts = Counter()
        for moment, xid, batch, old, new in self.control.execute(
            "SELECT moment, xid::text, batch,"
            " CASE WHEN old IS NOT NULL THEN ARRAY[(old).k::text, (old).v, (old).ver::text] END,"
            " CASE WHEN new IS NOT NULL THEN ARRAY[(new).k::text, (new).v, (new).ver::text] END FROM log"
            " ORDER BY moment"
        ).fetchall():
            old, new = (row and dict(zip(("k", "v", "ver"), row)) for row in (old, new))
            for key in {row["k"] for row in (old, new) if row}:
                before = old if old and old["k"] == key else None
                after = new if new and new["k"] == key else None
                if states[key][-1][1] != before:
                    problems.append(f"at {moment}, {batch or 'others'} found {before} where {states[key][-1]} was")
                if batch:
                    written[batch][key] = (before, after)
                    counts[batch, "updated" if before else "inserted"] += 1
                states[key].append((moment, after, schedule.ends.get(xid, moment)))
        now = {key: tuple(history[-1][1].values()) for key, history in states.items() if history[-1][1]}
        if now != rows:
            problems.append(f"the target has {rows} instead of {now}")

        for merge in schedule.done:
            if merge.answer == "II001" or merge.answer[0] != "applied":
                continue
            call = calls[merge.batch]
            for count in ("inserted", "updated"):
                told = entries[merge.batch][2][COUNTS.index(count)]
                if counts[merge.batch, count] != told:
                    problems.append(f"{merge}: {counts[merge.batch, count]} rows were {count}")
            for row in call.rows:
                key = as_stored(row)["k"]
                one = replace(call, rows=(row,))
                if key in written[merge.batch]:
                    before, after = written[merge.batch][key]
                    if after_merge(one, before) != after:
                        problems.append(f"{one} has made {after} of {before}")
                elif not any(after_merge(one, state) == state for state in during(states[key], merge)):
                    problems.append(
                        f"{one} has left {list(during(states[key], merge))} as it was,"
                        f" from {merge.began} to {merge.ended}"
                    )

    def describe(self, schedule, seed):
        text = [
            f"{schedule.sort}, schedule {seed}:",
            *schedule.problems[:5],
            f"stored: {[as_stored(row) for row in schedule.stored]}",
        ]
        text += [f"s{i}: {[tuple(as_stored(row).values()) for row in rows]}" for i, rows in enumerate(schedule.batches)]
        text += [f"{call.batch}:{arguments(call) or ' no options'}" for call in schedule.calls]
        text += [f"client {i}: {step}" for i, steps in enumerate(schedule.plans) for step in steps]
        text += [str(row) for row in self.control.execute("SELECT * FROM log ORDER BY moment").fetchall()]
        return "\n".join(text)


def arguments(call):
    text = ""
    if call.version:
        text += ", version_cols => '{ver}'"
    if call.update:
        text += ", update_cols => '{v}'"
    for name in ("mode", "on_stale"):
        text += f", {name} => '{getattr(call, name)}'"
    return text


def as_stored(row):
    return {column.name: column.kind.stored[row[column.name]][1] for column in COLUMNS}


def new_model(stored):
    model = Model(COLUMNS, EXTRA, "plain", False)
    for row in stored:
        row = as_stored(row)
        model.state.rows[model.key_of(row)] = row
    model.state.blocks = True
    return model


def after_merge(call, before):
    """The state of a key after a call, given the state before."""
    model = new_model(())
    if before:
        model.state.rows[model.key_of(before)] = before
    model.merge(call)
    return next(iter(model.state.rows.values()), None)


def during(history, merge):
    """The states of a key at the time of a merge. Each is there until the transaction that ended it was committed."""
    for i, (moment, state, *_) in enumerate(history):
        until = history[i + 1][2] if i + 1 < len(history) else merge.ended
        if moment <= merge.ended and until >= merge.began:
            yield state


def play_all(cluster, database, seed, schedules):
    """Returns what was seen, and the first schedule that cannot be explained."""
    stage = Stage(cluster, database)
    try:
        for i in range(schedules):
            progress(database, i, schedules)
            problem = stage.play(seed * 1_000_000 + i)
            if problem:
                return stage.seen, problem
    finally:
        stage.close()
    return stage.seen, None
