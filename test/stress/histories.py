"""Random histories of one target, compared with the model after each step.

A history is run on three targets at the same time: a is merged by the native engine where that serves it, b by the sql
engine, and c by one that is chosen for each step. All three must do what the model says.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass, replace

import hypothesis
import psycopg
from hypothesis import strategies as st

from cluster import progress
from model import COUNTS, Call, Column, Model
from values import KINDS, NUMBER, REFERENCE, TYPES, VERSION_KINDS, learn_all

TARGETS = "acb"
JOINS = ("hashjoin", "mergejoin", "nestloop")
# Tables cost more to make than to fill.
HISTORIES_OF_SHAPE = 40
KEY_KINDS = [kind for kind in KINDS if kind.as_key]

# What is special about a target. All have a column ref; what refuses one of its values, 3, is among these.
FEATURES = {
    "plain": "",
    "dropped column": "ALTER TABLE {0} DROP COLUMN gone",
    "partitioned": "",
    "check": "ALTER TABLE {0} ADD CHECK (ref < 3)",
    "foreign key": "ALTER TABLE {0} ADD FOREIGN KEY (ref) REFERENCES parent",
    "unique": "ALTER TABLE {0} ADD UNIQUE (ref)",
    "generated": "ALTER TABLE {0} ADD g int GENERATED ALWAYS AS (ref + 1) STORED",
    "before trigger": "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {0} FOR EACH ROW EXECUTE FUNCTION refuse()",
    "after trigger": "CREATE TRIGGER note AFTER INSERT OR UPDATE ON {0} FOR EACH ROW EXECUTE FUNCTION note()",
}

SETUP = TYPES + """
CREATE TABLE parent (id int PRIMARY KEY);
INSERT INTO parent VALUES (0), (1), (2);
CREATE TABLE log (target text, operation text);
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RETURN CASE WHEN NEW.ref = 3 THEN NULL ELSE NEW END; END $$;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO log VALUES (TG_TABLE_NAME, TG_OP); RETURN NULL; END $$;
"""


@dataclass(frozen=True)
class Shape:
    """Targets and staging tables of a history, by numbers in the lists of kinds."""

    key: int
    key2: int  # a second column of the key; none if it is 0
    value: int
    other: int
    version: int
    feature: str
    nulls: str  # "none", "keys" that are equal to each other, or "apart": no keys at all
    reversed: bool  # order of the staged columns

    @property
    def columns(self):
        other = KINDS[self.other]
        columns = [
            Column("k", KEY_KINDS[self.key], "key"),
            Column("v", KINDS[self.value], "value"),
            # In the middle, since images are compared in the order of the columns.
            Column("seen", NUMBER, "audit"),
            Column("w", other, "value", default=other.stored[0][1]),
            Column("ref", REFERENCE, "reference"),
            Column("ver", VERSION_KINDS[self.version], "version"),
            Column("ver2", NUMBER, "version"),
        ]
        if self.key2:
            columns.insert(4, Column("k2", KEY_KINDS[self.key2 - 1], "key"))
        return tuple(columns)

    @property
    def key_names(self):
        return [column.name for column in self.columns if column.role == "key"]

    @property
    def native(self):
        """ "The native engine is for plain heap tables [...]" """
        return self.feature not in ("partitioned", "before trigger") and all(
            column.kind.native for column in self.columns if column.role == "key"
        )

    def script(self):
        statements = ["DROP TABLE IF EXISTS a, b, c, s, s_part, s_more CASCADE"]
        key = ", ".join(self.key_names)
        for target in TARGETS:
            columns = [
                f"{column.name} {column.kind.target}{column.kind.collation}"
                + (f" DEFAULT {column.kind.literals[0]}" if column.default is not None else "")
                for column in self.columns
            ]
            if self.feature == "dropped column":
                columns.insert(2, "gone text")
            unique = {"none": "PRIMARY KEY", "keys": "UNIQUE NULLS NOT DISTINCT", "apart": "UNIQUE"}[self.nulls]
            columns.append(f"CONSTRAINT {target}_key {unique} ({key})")
            table = f"CREATE TABLE {target} ({', '.join(columns)})"
            if self.feature == "partitioned":
                statements.append(f"{table} PARTITION BY HASH ({key})")
                statements += [
                    f"CREATE TABLE {target}{i} PARTITION OF {target} FOR VALUES WITH (MODULUS 3, REMAINDER {i})"
                    for i in range(3)
                ]
            else:
                statements.append(table)
            if FEATURES[self.feature]:
                statements.append(FEATURES[self.feature].format(target))
        for staging, names in self.staging().items():
            kinds = {column.name: column.kind for column in [*self.columns, EXTRA]}
            statements.append(f"CREATE TABLE {staging} ({', '.join(f'{name} {kinds[name].staged}' for name in names)})")
        statements.append("CREATE VIEW s_view AS TABLE s")
        return statements

    def staging(self):
        """The staging tables and their columns: like the target, without w, and with one column more."""
        names = [column.name for column in self.columns]
        if self.reversed:
            names.reverse()
        return {"s": names, "s_part": [name for name in names if name != "w"], "s_more": ["x", *names]}


# The column that only staging has at first.
EXTRA = Column("x", NUMBER, "extra")


def random_shape(rng):
    feature = rng.choice(list(FEATURES))
    return Shape(
        key=KEY_KINDS.index(
            rng.choice(KEY_KINDS if rng.random() < 0.5 else [kind for kind in KEY_KINDS if kind.native])
        ),
        key2=rng.choice([0, 0, 0, 0, 1 + rng.randrange(len(KEY_KINDS))]),
        value=rng.randrange(len(KINDS)),
        other=rng.randrange(len(KINDS)),
        version=rng.randrange(len(VERSION_KINDS)),
        feature=feature,
        nulls=rng.choice(["none"] * 6 + ["apart"] * 2 + ["keys"] * 2 * (feature != "partitioned")),
        reversed=rng.random() < 0.4,
    )


# What steps are made of. The first of a list is the simplest.
OPTIONS = {
    "mode": ["upsert", "insert", "update"],
    "version": [(), ("ver",), ("ver", "ver2")],
    "audit": [(), ("seen",)],
    "update": [None, ("v",), ()],
    "exclude": [(), ("v",), ("ref",)],
    "on_duplicate": [None, "any", "error", "latest"],
    "on_stale": ["skip", "apply", "error"],
    "on_schema_change": ["error", "ignore", "add_columns"],
    "on_replay": ["skip", "reapply", "error"],
    "on_mismatch": ["error", "apply", "skip"],
    "batch": ["b1", "b2", None],
    "pipeline": ["", "p"],
    "staging": ["s", "s_view", "s_part", "s_more"],
    "exclusive": [False, True],
    "dry_run": [False, True],
}
# Each is as likely as it is often here.
CHANGES = [
    (name, value)
    for name, times in {
        "staging": 3,
        "on_replay": 3,
        "on_mismatch": 2,
        "on_schema_change": 2,
        "batch": 1,
        "version": 1,
        "mode": 1,
        "audit": 1,
        "update": 1,
        "exclude": 1,
        "on_duplicate": 1,
        "on_stale": 1,
        "pipeline": 1,
        "exclusive": 1,
        "dry_run": 1,
    }.items()
    for value in OPTIONS[name]
    for _ in range(times)
]

BATCHES = ["b1", "b2", "b3", "b4", "b5", None, None]
rows = st.lists(st.tuples(st.integers(0, 2**24 - 1), st.integers(0, 2**40 - 1)), max_size=6)
number = st.integers(0, 2**20 - 1)
changes = st.lists(st.sampled_from(CHANGES), max_size=3)
engine = st.sampled_from(["sql", "native"])
STEPS = {
    "nothing": [],
    "merge": [rows, st.sampled_from([True, True, True, False]), st.sampled_from(BATCHES), changes, engine],
    "again": [number, st.sampled_from(["same", "shuffled", "twice", "fewer"]), changes, engine],
    "begin": [st.sampled_from(["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])],
    "end": [st.sampled_from(["COMMIT", "ROLLBACK"])],
    "delete": [number],
    "update": [number, number],
    "change_key": [number, number],
    "truncate": [],
    "keyless": [number],
    "analyze": [],
    "plan": [st.sampled_from([None, *JOINS])],
    "forget": [st.sampled_from(["b1", "b2", None]), st.sampled_from([None, "", "p"])],
    "claim": [st.sampled_from(["b1", "b2", "b4"]), st.sampled_from([None, "f", "g"])],
}
MOST_STEPS = 9
which = st.sampled_from(
    ["nothing", *["merge"] * 9, *["again"] * 7, *["begin", "end", "analyze", "plan"] * 2, *list(STEPS)[5:]]
)


@st.composite
def steps(draw):
    """Steps that do nothing are the simplest, so that a history shrinks to the others."""
    return [(step, *map(draw, STEPS[step])) for step in (draw(which) for _ in range(MOST_STEPS))]


BASE = st.fixed_dictionaries(
    {
        name: st.sampled_from(OPTIONS[name])
        for name in (
            "mode",
            "version",
            "audit",
            "on_duplicate",
            "update",
            "exclude",
            "on_stale",
            "on_mismatch",
            "on_schema_change",
        )
    }
)


# What a run of some thousand histories comes across.
EXPECTED = (
    "applied replayed reapplied dry_run native sql transactions"
    " 21000 22001 22003 23502 23503 23505 23514 42703 II001 II002 II003 II004 II005"
).split()


class Counterexample(Exception):
    """Model and server differ."""


def quoted(text):
    return "NULL" if text is None else "'" + text.replace("'", "''") + "'"


class Player:
    """Runs histories in a database of its own."""

    def __init__(self, cluster, database, histories):
        self.database, self.histories = database, histories
        cluster.create_database(database)
        self.connection = cluster.connect(database)
        self.connection.execute("SET client_min_messages = error")
        self.connection.execute(SETUP)
        learn_all(self.connection)
        self.shape = None
        self.seen = Counter()
        self.counterexample = None
        # What stands for a fingerprint or a derived id in the model, and what it is; both ways.
        self.hashes = {}

    def execute(self, sql):
        """The first row of the result, or the SQLSTATE."""
        self.script.append(sql)
        try:
            cursor = self.connection.execute(sql)
            return cursor.fetchone() if cursor.description else None
        except psycopg.Error as error:
            if error.sqlstate is None:
                raise
            return error.sqlstate

    def must(self, sql):
        answer = self.execute(sql)
        if isinstance(answer, str):
            self.fail(f"{answer} for {sql}")

    def play(self, shape, base, history):
        progress(self.database, self.seen["histories"], self.histories)
        self.prepare(shape)
        self.base = base
        self.calls = []
        try:
            for step, *arguments in history:
                if step != "nothing":
                    self.script.append(f"-- {step}")
                    getattr(self, step)(*arguments)
            if self.model.saved:
                self.end("COMMIT")
        finally:
            self.connection.rollback()
        self.seen["histories"] += 1

    def prepare(self, shape):
        if shape != self.shape or EXTRA in self.model.state.columns:
            self.shape = None
            self.connection.execute(";\n".join(shape.script()))
            # autovacuum is off, as it could take blocks away from a target.
            self.connection.execute("VACUUM idem_ledger, idem_audit, pg_class, pg_attribute, pg_depend, pg_type")
            self.hashes = {}
        else:
            self.connection.execute("TRUNCATE a, b, c")
        self.connection.execute("DELETE FROM log; DELETE FROM idem_ledger; DELETE FROM idem_audit")
        self.connection.execute("; ".join(f"RESET enable_{method}" for method in JOINS) + "; DISCARD PLANS")
        self.shape = shape
        self.model = Model(shape.columns, EXTRA, shape.feature, shape.nulls == "keys")
        self.script = []
        self.engine = None

    # Steps

    def begin(self, isolation):
        if not self.model.saved:
            self.execute(f"BEGIN ISOLATION LEVEL {isolation}")
            self.model.save()
            self.seen["transactions"] += 1

    def end(self, how):
        if self.model.saved:
            self.must(how)
            if how == "COMMIT":
                self.model.release()
            else:
                self.model.roll_back()
                # A SET was rolled back with it.
                self.engine = None
            self.compare()

    def statement(self, sql):
        """A statement that must not fail, for all targets."""
        for target in TARGETS:
            self.must(sql.replace("{target}", target))
        self.compare()

    def delete(self, which):
        for key, row in self.pick(which):
            self.model.delete(key)
            self.statement(f"DELETE FROM {{target}} WHERE {self.is_row(row)}")

    def truncate(self):
        self.model.truncate()
        self.statement("TRUNCATE {target}")

    def keyless(self, value):
        """A row that is nobody's."""
        if self.shape.nulls == "apart":
            kind = self.shape.columns[1].kind
            value = kind.good[value % len(kind.good)]
            self.model.insert_keyless({"v": kind.stored[value][1]})
            self.statement(f"INSERT INTO {{target}} (v) VALUES ({kind.literals[value]})")

    def analyze(self):
        """Whether rows are looked up or all are read depends on how many there seem to be."""
        self.statement("ANALYZE {target}")

    def plan(self, join):
        """Another plan of the sql engine has rows in another order."""
        for method in JOINS:
            self.must(f"SET enable_{method} = {'on' if join in (None, method) else 'off'}")
        self.must("DISCARD PLANS")

    def update(self, which, value):
        for key, row in self.pick(which):
            kind = self.shape.columns[1].kind
            value = kind.good[value % len(kind.good)]
            self.model.update(key, "v", kind.stored[value][1])
            self.statement(f"UPDATE {{target}} SET v = {kind.literals[value]} WHERE {self.is_row(row)}")

    def change_key(self, which, value):
        for key, row in self.pick(which):
            kind = self.model.keys[0].kind
            value = kind.good[value % len(kind.good)]
            values = {column.name: row[column.name] for column in self.model.keys} | {"k": kind.stored[value][1]}
            if self.model.key_of(values) not in self.model.state.rows:
                self.model.change_key(key, values)
                self.statement(f"UPDATE {{target}} SET k = {kind.literals[value]} WHERE {self.is_row(row)}")

    def pick(self, which):
        """One of the stored rows, if there is any."""
        stored = sorted(self.model.state.rows.items())
        return [stored[which % len(stored)]] if stored else []

    def is_row(self, row):
        return " AND ".join(
            f"{column.name}::text IS NOT DISTINCT FROM {quoted(row[column.name])}" for column in self.model.keys
        )

    def forget(self, batch, pipeline):
        if batch is None and pipeline is None:
            return
        expected = self.model.forget(batch, pipeline)
        for target in TARGETS:
            answer = self.execute(
                f"SELECT idem_forget('{target}', {quoted(batch)}, {quoted(pipeline)}, reason => 'test')"
            )
            self.check(target, expected, answer if isinstance(answer, str) else {"status": answer[0]})
        self.compare()

    def claim(self, batch, fingerprint):
        expected = self.model.claim(batch, "", fingerprint)
        for target in TARGETS:
            answer = self.guarded(f"SELECT idem_claim('{batch}', '{target}', fingerprint => {quoted(fingerprint)})")
            self.check(target, expected, answer if isinstance(answer, str) else {"status": answer[0]})
        self.compare()

    def merge(self, rows, unique, batch, changes, engine):
        options = self.base | {"batch": batch} | dict(changes)
        call = Call(rows=tuple(self.row(*row) for row in rows), columns=(), **self.fit(options))
        if unique:
            # Otherwise most batches would have different rows of one key.
            first = {}
            for row in call.rows:
                first.setdefault(self.staged_key(row), row)
            call = replace(call, rows=tuple(first.values()))
        self.call(call, options, engine)

    def again(self, which, how, changes, engine):
        if not self.calls:
            return
        call, options = self.calls[which % len(self.calls)]
        options = options | dict(changes)
        rows = {
            "same": call.rows,
            "shuffled": call.rows[::-1],
            "twice": call.rows[1:] * 2 + call.rows[:1],
            "fewer": call.rows[1:],
        }[how]
        self.call(replace(call, rows=rows, **self.fit(options)), options, engine)

    def fit(self, options):
        """The options of the model, where some exclude others."""
        options = {name: options.get(name, values[0]) for name, values in OPTIONS.items()}
        if options["update"] is not None:
            options["exclude"] = ()
        if options["on_duplicate"] == "latest" and not options["version"]:
            options["on_duplicate"] = None
        # The order in which mode update writes, which a second unique index shows, depends on the plan.
        if self.shape.feature == "unique" and options["mode"] == "update" and options["update"] is None:
            options["exclude"] = ("ref",)
        self.staging, self.exclusive = options.pop("staging"), options.pop("exclusive")
        return options

    def row(self, key_part, value_part):
        """A staged row from two numbers."""
        row = {}
        key_part, fault = divmod(key_part, 50)
        for column in [*self.shape.columns, EXTRA]:
            kind = column.kind
            if column.role == "key":
                nullable = self.shape.nulls == "keys"
                key_part, digit = divmod(key_part, len(kind.good) + nullable)
            elif column.role == "reference":
                value_part, digit = divmod(value_part, 16)
                row[column.name] = [0, 1, 2][digit % 3] if digit < 14 else [3, None][digit - 14]
                continue
            else:
                value_part, digit = divmod(value_part, len(kind.good) + 1)
            row[column.name] = digit if digit < len(kind.good) else None
        if fault == 49:
            faulty = [column for column in self.shape.columns if column.kind.bad]
            if self.shape.nulls != "keys":
                faulty += self.model.keys
            if faulty:
                column = faulty[value_part % len(faulty)]
                row[column.name] = column.kind.bad[0] if column.kind.bad and value_part % 2 else None
        return row

    def staged_key(self, row):
        key = []
        for column in self.model.keys:
            value = row[column.name]
            fits, text = (True, None) if value is None else column.kind.stored[value]
            key.append(column.kind.rank[text] if fits else text)
        return tuple(key)

    # One call of idem_merge

    def call(self, call, options, engine):
        table = "s" if self.staging == "s_view" else self.staging
        call = replace(call, columns=tuple(self.shape.staging()[table]))
        self.calls.append((call, options))
        self.stage(table, call)
        expected = self.model.merge(call)
        answers = []
        for target in TARGETS:
            native = self.shape.native and (target == "a" or target == "c" and engine == "native")
            self.use_engine("native" if native else "sql" if target == "b" or engine == "sql" else "auto")
            answer = self.guarded(
                "SELECT status, summary, batch_id, pipeline, target::text, revision, rows_staged, rows_duplicate,"
                " rows_inserted, rows_updated, rows_deleted, rows_unchanged, rows_stale, rows_skipped, fingerprint,"
                f" engine, applied_at IS NOT NULL, expired FROM idem_merge({self.arguments(target, call)})"
            )
            self.check_merge(target, call, expected, answer)
            answers.append(answer if isinstance(answer, str) else answer[0])
        # "The results are the same, down to the errors", but "it can be another fault with `exclusive`". The blocks
        # that a failed call leaves behind are those that its engine had come to.
        lost = self.model.state.blocks is None and "II004" in answers
        if len(set(answers)) > 1 and not self.exclusive and not lost:
            self.fail(f"the answers are {answers}")
        self.compare()

    def use_engine(self, engine):
        if engine != self.engine:
            self.must(f"SET idempotent_ingest.engine = {engine}")
            self.engine = engine

    def stage(self, table, call):
        kinds = {column.name: column.kind for column in [*self.shape.columns, EXTRA]}
        self.must(f"DELETE FROM {table}")
        if call.rows:
            lines = ",\n    ".join(
                "("
                + ", ".join("NULL" if row[name] is None else kinds[name].literals[row[name]] for name in call.columns)
                + ")"
                for row in call.rows
            )
            self.must(f"INSERT INTO {table} VALUES\n    {lines}")

    def arguments(self, target, call):
        arguments = [f"'{self.staging}', '{target}'"]
        if self.shape.nulls != "none" or len(call.rows) % 2:
            arguments.append(f"key_cols => '{{{', '.join(self.shape.key_names)}}}'")
        names = {
            "version": "version_cols",
            "audit": "audit_cols",
            "update": "update_cols",
            "exclude": "exclude_cols",
            "batch": "batch_id",
        }
        defaults = Call((), ())
        for name in OPTIONS:
            value = getattr(call, name, None)
            if name == "exclusive":
                if self.exclusive:
                    arguments.append("exclusive => true")
            elif hasattr(call, name) and value != getattr(defaults, name):
                if isinstance(value, tuple):
                    value = f"'{{{', '.join(value)}}}'"
                elif isinstance(value, bool):
                    value = str(value).lower()
                else:
                    value = quoted(value)
                arguments.append(f"{names.get(name, name)} => {value}")
        return ", ".join(arguments)

    # Errors in a transaction are rolled back to a savepoint.

    def guarded(self, sql):
        if not self.model.saved:
            return self.execute(sql)
        self.execute("SAVEPOINT step")
        answer = self.execute(sql)
        self.execute("ROLLBACK TO step" if isinstance(answer, str) else "RELEASE step")
        return answer

    # Comparisons

    def fail(self, what):
        # The last one is the smallest.
        self.counterexample = "\n".join(
            [what, "-- to be run by psql in a database with the extension:", SETUP.strip()]
            + [
                statement if statement.startswith("--") else statement + ";"
                for statement in [*self.shape.script(), *self.script]
            ]
        )
        raise Counterexample(what)

    def same_hash(self, meant, found):
        """Whether a fingerprint or derived id is always the same for the same content, and never for another one."""
        if meant is None or isinstance(meant, str) or found is None:
            return meant == found
        return self.hashes.setdefault(meant, found) == found and self.hashes.setdefault(found, meant) == meant

    def check(self, target, expected, answer):
        """An answer that is an SQLSTATE or has the status only."""
        for outcome in expected:
            if answer in outcome.sqlstates if isinstance(answer, str) else answer["status"] == outcome.status:
                return
        self.fail(f"{target}: {answer} instead of {expected}")

    def check_merge(self, target, call, expected, answer):
        if isinstance(answer, str):
            self.seen[answer] += 1
            possible = {sqlstate for outcome in expected for sqlstate in outcome.sqlstates}
            if possible and self.exclusive:
                possible |= self.model.refusals  # "It can be another fault with `exclusive`"
            if answer not in possible:
                self.fail(f"{target}: {answer} instead of {expected}")
            return
        status, summary, batch, pipeline, name, revision, *counts, fingerprint, engine, recorded, expired = answer
        self.seen[status] += 1
        if status in ("applied", "reapplied"):
            self.seen[engine] += 1
        for outcome in expected:
            if outcome.sqlstates:
                continue
            words = [f"{n} {word}" for n, word in zip(outcome.counts, COUNTS) if n or word == "staged"]
            if (
                (status, tuple(counts), revision, pipeline, name, summary, expired)
                == (
                    outcome.status,
                    outcome.counts,
                    outcome.revision,
                    call.pipeline,
                    target,
                    f"{status}: {', '.join(words)}",
                    False,
                )
                and recorded == (outcome.revision is not None)
                and self.same_hash(outcome.batch, batch)
                and self.same_hash(outcome.fingerprint, fingerprint)
            ):
                return
        self.fail(f"{target}: {answer} instead of {expected}")

    def compare(self):
        """Target, ledger, audit and log with the model."""
        state = self.model.state
        names = [column.name for column in state.columns] + (["g"] if self.shape.feature == "generated" else [])
        values = ", ".join(f"{name}::text" for name in names)
        counts = ", ".join(f"rows_{count}" for count in COUNTS)
        found = self.connection.execute(
            "SELECT "
            + ", ".join(f"(SELECT array_agg(ARRAY[{values}]) FROM {target})" for target in TARGETS)
            + ", (SELECT jsonb_agg(jsonb_build_array(target::text, pipeline, batch_id, operation, revision,"
            f" fingerprint, {counts})) FROM idem_ledger)"
            ", (SELECT jsonb_agg(jsonb_build_array(action, entry->>'pipeline', entry->>'batch_id')) FROM idem_audit)"
            ", (SELECT jsonb_agg(jsonb_build_array(target, operation)) FROM log)"
        ).fetchone()
        rows = Counter(tuple(row[name] for name in names) for row in [*state.rows.values(), *state.keyless])
        for target, stored in zip(TARGETS, found):
            if Counter(tuple(row) for row in stored or []) != rows:
                self.fail(f"{target} has {names} {stored} instead of {sorted(rows, key=repr)}")
        ledger, audit, log = (json.loads(x) if isinstance(x, str) else x or [] for x in found[len(TARGETS) :])

        expected = {(target, *known): entry for target in TARGETS for known, entry in state.ledger.items()}
        if len(expected) != len(ledger):
            self.fail(f"the ledger has {ledger} instead of {expected}")
        for target, pipeline, batch, operation, revision, fingerprint, *counts in ledger:
            entry = expected.get((target, pipeline, self.hashes.get(batch, batch)))
            if (
                entry is None
                or (operation, revision) != (entry.operation, entry.revision)
                or tuple(counts) != (entry.counts or (None,) * len(COUNTS))
                or not self.same_hash(entry.fingerprint, fingerprint)
            ):
                self.fail(f"the ledger has {ledger} instead of {expected}")
        audited = Counter((action, pipeline, self.hashes.get(batch, batch)) for action, pipeline, batch in audit)
        if audited != Counter({known: n * len(TARGETS) for known, n in state.audit.items()}):
            self.fail(f"idem_audit has {audited} instead of {state.audit}")
        logged = Counter((target, operation) for target, operation in log)
        if logged != Counter({(target, operation): n for target in TARGETS for operation, n in state.log.items()}):
            self.fail(f"triggers saw {logged} instead of {state.log}")


def play_all(cluster, database, seed, histories):
    """Returns what was seen, and the counterexample if there is one."""
    player = Player(cluster, database, histories)
    rng = random.Random(seed)
    try:
        while player.seen["histories"] < histories:
            play_shape(player, random_shape(rng), rng.getrandbits(32), min(HISTORIES_OF_SHAPE, histories))
    except (Counterexample, hypothesis.errors.Flaky) as found:
        return player.seen, player.counterexample or repr(found)
    finally:
        player.connection.close()
    return player.seen, None


def play_shape(player, shape, seed, histories):
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=histories,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(BASE, steps())
    def play(base, history):
        player.play(shape, base, history)

    play()
