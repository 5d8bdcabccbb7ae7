"""Calls of every function of the extension, internal ones included, with random arguments of every type.

Whatever is wrong with the arguments, the answer is an error that somebody has written: never a crash, a failed
assertion (with a server that checks them), an internal error (class XX), or an error without end.
"""

import random
from collections import Counter

import psycopg

from cluster import progress
from values import KINDS, TYPES

SETUP = TYPES + """
CREATE TABLE t (k int PRIMARY KEY, v text, ver int, "odd "" name" numeric);
CREATE TABLE s (LIKE t);
INSERT INTO s VALUES (1, 'a', 1, 1), (2, 'b', NULL, 'NaN'), (3, NULL, 3, NULL);
CREATE TABLE s_twice AS TABLE s UNION ALL SELECT k, 'other', ver, 0 FROM s;
CREATE TABLE parted (k int PRIMARY KEY, v text, ver int) PARTITION BY RANGE (k);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE TABLE no_key (k int, v text);
CREATE TABLE no_columns ();
CREATE VIEW v AS TABLE s;
CREATE MATERIALIZED VIEW mv AS TABLE s;
CREATE SEQUENCE seq;
CREATE UNLOGGED TABLE unlogged (k int PRIMARY KEY, v text);
CREATE INDEX ON t (v);
CREATE EXTENSION file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE no_file (k int, v text) SERVER files OPTIONS (filename '/nowhere');
"""
EXPECTED = ("00000", "22004", "22023", "42809", "42703", "42P10", "II001")

RELATIONS = """t s s t s s_twice parted parted_1 no_key no_columns v mv seq unlogged t_pkey t_v_idx no_file pair
    idem_ledger idem_batches idem_audit idem_job idem_job_id_seq pg_class pg_stat_activity
    information_schema.tables""".split()
WORDS = """upsert insert update error latest any skip apply ignore add_columns reapply b1 b2 b3 merge claim queued
    sql native content: k v ver""".split()
TEXTS = [
    "",
    " ",
    "x" * 300,
    "é" * 128,
    "'",
    '"',
    "\\",
    "$1",
    "%s",
    "%n",
    "\u202e",
    "a\tb\nc",
    "{}",
    "null",
    "t.k",
    "public.t",
]
# What makes sense for a parameter by its name.
LIKELY = {
    "staging": ["s", "s", "v", "s_twice"],
    "target": ["t", "t", "parted"],
    "key_cols": ["{k}"],
    "version_cols": ["{ver}", "{}"],
    "audit_cols": ["{v}", "{}"],
    "update_cols": ["{v}", "{}"],
    "exclude_cols": ["{v}"],
    "columns": ["{k}", "{v,k}"],
    "batch_id": ["b1", "b2", "b3"],
    "mode": ["upsert", "insert", "update"],
    "on_duplicate": ["error", "latest", "any"],
    "on_stale": ["skip", "error", "apply"],
    "on_schema_change": ["ignore", "add_columns"],
    "on_replay": ["skip", "error", "reapply"],
    "on_mismatch": ["error", "skip", "apply"],
}
# Nobody runs the jobs that are waited for.
TIMEOUTS = ["0", "10 ms", "-1 day"]
COLUMNS = ["k", "v", "ver", "k", "v", "ver", 'odd " name', "nothing", "ctid", "tableoid", "", "K", " k"]


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def array(rng, element, type_name):
    shape = rng.randrange(8)
    if shape == 0:
        return f"'{{}}'::{type_name}"
    if shape == 1:
        return f"ARRAY[[{element()}], [{element()}]]::{type_name}"
    if shape == 2:
        return (
            f"array_fill(({element()})::{type_name.removesuffix('[]')}, ARRAY[{rng.choice([1, 3, 2000])}], ARRAY[-5])"
        )
    return f"ARRAY[{', '.join(element() for _ in range(rng.randint(1, 3)))}]::{type_name}"


def text(rng):
    return "NULL" if rng.random() < 0.1 else quoted(rng.choice(rng.choice([WORDS, WORDS, COLUMNS, TEXTS])))


def argument(rng, type_name):
    """SQL of a random value of a type; NULL now and then."""
    if rng.random() < 0.08:
        return f"NULL::{type_name}" if not type_name.startswith(("any", '"any"', "record")) else "NULL"
    number = ["0", "1", "-1", "2", "3", "2147483647", "-2147483648"]
    values = {
        "text": lambda: text(rng),
        "name": lambda: text(rng),
        "text[]": lambda: array(rng, lambda: text(rng), "text[]"),
        "smallint": lambda: rng.choice(number[:5]),
        "integer": lambda: rng.choice(number),
        "bigint": lambda: rng.choice([*number, "9223372036854775807", "-9223372036854775808"]),
        "oid": lambda: rng.choice(
            [*number[:2], "1259", "4294967295", f"{quoted(rng.choice(RELATIONS))}::regclass::oid"]
        ),
        "double precision": lambda: rng.choice([*number, "'NaN'", "'-Infinity'", "1e-300"]),
        "boolean": lambda: rng.choice(["true", "false"]),
        "regclass": lambda: rng.choice([f"{quoted(rng.choice(RELATIONS))}"] * 20 + ["0", "999999", "4294967295"]),
        "jsonb": lambda: quoted(rng.choice(["{}", "[]", "null", '{"a": [1, {"b": null}]}', '"text"', "1e400"])),
        "interval": lambda: quoted(rng.choice(["0", "1 day", "-1 day", "178000000 years", "1 microsecond", "100 ms"])),
        "timestamp with time zone": lambda: rng.choice(
            ["now()", "'infinity'", "'-infinity'", "'4714-11-24 BC'", "'294276-12-31'"]
        ),
        "bytea": lambda: rng.choice([r"'\x'", r"'\x00ff'", "decode(repeat('00', 100), 'hex')"]),
    }
    if type_name in values:
        return f"({values[type_name]()})::{type_name}"
    if type_name in ("record", "anyelement", '"any"', "anynonarray", "anycompatible"):
        literals = [rng.choice(rng.choice(KINDS).literals) for _ in range(rng.randint(0, 3))]
        row = rng.choice(
            [f"ROW({', '.join(literals)})", "(SELECT s FROM s LIMIT 1)", "NULL::t", "ROW(NULL, ROW(1, NULL))"]
        )
        return row if type_name == "record" or rng.random() < 0.3 else rng.choice(rng.choice(KINDS).literals)
    if type_name.endswith("[]"):
        return array(rng, lambda: argument(rng, type_name[:-2]), type_name)
    return f"NULL::{type_name}"


def call(rng, function):
    """A call of a function, with some of its arguments."""
    name, kind, names, types, required, variadic = function
    given = []
    for i, (parameter, type_name) in enumerate(zip(names, types)):
        if i >= required and parameter != "timeout" and rng.random() > 4 / len(types):
            continue
        if parameter == "timeout":
            value = quoted(rng.choice(TIMEOUTS))
        elif parameter in LIKELY and rng.random() < 0.7:
            value = f"{quoted(rng.choice(LIKELY[parameter]))}::{type_name}"
        else:
            value = argument(rng, type_name)
        given.append((None if i < required else parameter, value))
    if variadic:
        given += [(None, argument(rng, types[-1])) for _ in range(rng.randint(0, 2))]
    arguments = ", ".join(f"{parameter} => {value}" if parameter else value for parameter, value in given)
    if kind == "p":
        return f"CALL {name}({arguments})"
    if kind == "a":
        return f"SELECT {name}({arguments}) FROM generate_series(1, {rng.choice([0, 1, 3])})"
    return f"SELECT {name}({arguments})"


def functions_of(connection):
    """Name, kind, names and types of arguments, how many have no default, and whether the last one is variadic."""
    return connection.execute("""
        SELECT p.oid::regproc::text, p.prokind::text,
               ARRAY(SELECT coalesce(p.proargnames[i], '') FROM generate_series(1, p.pronargs) AS i),
               ARRAY(SELECT format_type(p.proargtypes[i], NULL) FROM generate_series(0, p.pronargs - 1) AS i),
               p.pronargs - p.pronargdefaults, p.provariadic <> 0
        FROM pg_proc AS p JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
        WHERE d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotent_ingest')
            AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
            AND NOT 'internal'::regtype = ANY (p.proargtypes)
        ORDER BY 1, p.oid
        """).fetchall()


def play_all(cluster, database, seed, calls):
    """Returns what was seen, and the calls that were answered wrongly."""
    cluster.create_database(database)
    connection = cluster.connect(database)
    connection.execute(SETUP)
    functions = functions_of(connection)
    rng = random.Random(seed)
    seen, problems = Counter(functions=len(functions)), []
    for number in range(calls):
        progress(database, number, calls)
        if number % 500 == 0:
            # A new session, and the relations as they were.
            connection.close()
            connection = cluster.connect(database)
            connection.execute(
                "SET client_min_messages = error; SET statement_timeout = '60s';"
                "TRUNCATE t, parted; DELETE FROM idem_ledger; DELETE FROM idem_job"
            )
        if rng.random() < 0.02:
            engine = rng.choice(["auto", "native", "sql"])
            connection.execute(f"SET idempotent_ingest.engine = {engine}")
        statement = call(rng, functions[number % len(functions)] if rng.random() < 0.5 else rng.choice(functions))
        try:
            connection.execute(statement)
            seen["00000"] += 1
        except psycopg.Error as error:
            sqlstate = error.sqlstate or "no answer"
            seen[sqlstate] += 1
            if sqlstate in ("no answer", "57014") or sqlstate.startswith(("XX", "57P")):
                problems.append(f"{statement};\n-- {sqlstate}: {error}")
                if connection.closed:
                    break
    connection.close()
    return seen, "\n".join(problems)
