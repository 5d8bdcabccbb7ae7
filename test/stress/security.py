"""What idem_merge does for a role, against what the statement that one would write by hand does for the same role.

A case is a target, staging and what belongs to them: privileges on tables and columns, policies, views, and code of
somebody else in triggers, defaults, checks, domains, casts, indexes and in the caller's search_path. For some roles
and modes, the statement and the merge (on each engine) are run and rolled back. They must end alike: the same rows in
the target, the same number written, or the same SQLSTATE; code of others runs in a merge only as it does in the
statement, as the same user; a message tells no value that the caller cannot read; a fingerprint is of the rows that
the caller can read. Then something changes, a right or a policy, and the same session does it all again.

Columns of the target: k, the key; o, whom a row belongs to; v, a value that no other row has; n, which staging
can lack.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass

import psycopg

from cluster import progress

# user has grants of its own, member those of a group; stranger is in the group and does not inherit; other owns hostile
# code, and is a caller like the others.
ROLES = ("owner", "user", "member", "stranger", "bypass", "other")

EXPECTED = (
    *("00000", "42501", "23505", "23514", "23503", "22001", "P0001"),
    *("upsert", "insert", "update", "some columns", "native", "sql", "written", "spied", "row-level security"),
    *("SET ROLE", "SET SESSION AUTHORIZATION", "SECURITY DEFINER", "changed"),
    *("table", "view", "security_barrier", "security_invoker", "materialized view", "partitioned"),
)

OPERATORS = ("=", "<>", "<", ">", "<=", ">=", "*=", "*<>", "*<", "||", "~")
OPERAND_TYPES = ("int4", "int8", "text", "bool", "oid", "record", "name")
INTERNALS = ("idem_row_staged", "idem_row_distinct", "idem_row_classify", "idem_row_propose", "idem_row_guard")
FUNCTIONS = ("count", "lower", "length", "now", "clock_timestamp", "format", "current_setting", "set_config")

# Once for a database. Whatever is in evil is found before what it shadows, where a name is not qualified.
SETUP = (
    """
CREATE SCHEMA evil;
CREATE SCHEMA run;
GRANT USAGE ON SCHEMA evil, run TO PUBLIC;
CREATE FUNCTION evil.trap(what text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN RAISE NOTICE 'trap % as %', what, current_user; RETURN false; END $$;
CREATE DOMAIN evil.int4 AS pg_catalog.text CHECK (evil.trap('type int4'));
CREATE DOMAIN evil.text AS pg_catalog.int4 CHECK (evil.trap('type text'));
CREATE TABLE evil.t (k pg_catalog.int4 PRIMARY KEY, o pg_catalog.text, v pg_catalog.text, n pg_catalog.int4);
CREATE TABLE evil.s (LIKE evil.t);
CREATE TABLE evil.idem_ledger (LIKE public.idem_ledger INCLUDING ALL);
CREATE TABLE evil.pg_class (LIKE pg_catalog.pg_class);
GRANT ALL ON ALL TABLES IN SCHEMA evil TO PUBLIC;
"""
    + "".join(
        f"CREATE FUNCTION evil.operator_{i}_{type_name}(pg_catalog.{type_name}, pg_catalog.{type_name})"
        f" RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT evil.trap('operator {operator}') $$;"
        f"CREATE OPERATOR evil.{operator} (FUNCTION = evil.operator_{i}_{type_name},"
        f" LEFTARG = pg_catalog.{type_name}, RIGHTARG = pg_catalog.{type_name});\n"
        for i, operator in enumerate(OPERATORS)
        for type_name in OPERAND_TYPES
        if type_name != "record"
    )
    + "".join(
        f"CREATE FUNCTION evil.{function}({', '.join(['pg_catalog.int8', *[argument] * number])}) RETURNS boolean"
        f" LANGUAGE sql IMMUTABLE AS $$ SELECT evil.trap('function {function}') $$;\n"
        for function in (*INTERNALS, *FUNCTIONS)
        for argument, numbers in (("pg_catalog.text", range(4)), ("pg_catalog.int4", (1, 2)))
        for number in numbers
    )
)

# Once for a case, by the role other: code that says that it runs, and as whom.
SPIES = """
SET SESSION AUTHORIZATION {other};
CREATE FUNCTION c.spy(what text, answer boolean) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN RAISE NOTICE 'spy % as %', what, current_user; RETURN answer; END $$;
CREATE FUNCTION c.spy(what text, answer text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN RAISE NOTICE 'spy % as %', what, current_user; RETURN answer; END $$;
CREATE FUNCTION c.spy(what text, answer int) RETURNS int LANGUAGE plpgsql VOLATILE AS
    $$ BEGIN RAISE NOTICE 'spy % as %', what, current_user; RETURN answer; END $$;
CREATE FUNCTION c.note() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'spy % as %', TG_NAME, current_user; RETURN NEW; END $$;
CREATE FUNCTION c.note_definer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
    $$ BEGIN RAISE NOTICE 'spy % as %', TG_NAME, current_user; RETURN NEW; END $$;
CREATE FUNCTION c.sign() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.n := length(current_user::text); RETURN NEW; END $$;
CREATE FUNCTION c.skip() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.o OPERATOR(pg_catalog.=) 'free' THEN RETURN NULL; END IF; RETURN NEW; END $$;
CREATE FUNCTION c.give() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN NEW.o := 'given'; RETURN NEW; END $$;
CREATE FUNCTION c.refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.o OPERATOR(pg_catalog.=) 'given' THEN RAISE 'refused'; END IF; RETURN NEW; END $$;
CREATE DOMAIN c.number AS pg_catalog.int4 CHECK (c.spy('domain', VALUE > 0));
CREATE DOMAIN c.word AS varchar(6) CHECK (c.spy('domain', VALUE <> 'x13x'));
CREATE TYPE c.colour AS ENUM ('1', '2', '3', '4', '5', '6', '7', '8');
CREATE FUNCTION c.to_colour(pg_catalog.int4) RETURNS c.colour LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN RAISE NOTICE 'spy cast as %', current_user; RETURN $1::pg_catalog.text::c.colour; END $$;
CREATE CAST (pg_catalog.int4 AS c.colour) WITH FUNCTION c.to_colour(pg_catalog.int4) AS ASSIGNMENT;
RESET SESSION AUTHORIZATION;
"""

# Of the target, and as staged.
NUMBER, TEXT = "pg_catalog.int4", "pg_catalog.text"
KEYS = (
    (NUMBER, NUMBER),
    (NUMBER, NUMBER),
    ("pg_catalog.int8", NUMBER),
    (TEXT, TEXT),
    ("c.number", NUMBER),
    ("c.colour", NUMBER),
)
VALUES = ((TEXT, TEXT), (TEXT, TEXT), ("pg_catalog.varchar(6)", TEXT), ("c.word", TEXT))
CONDITIONS = (
    "true",
    "true",
    "false",
    "o = current_user",
    "o IN (current_user, 'free')",
    "o <> 'given'",
    "v <> 'x7x'",
    "c.spy('policy', o <> 'given')",
    "EXISTS (SELECT FROM c.allowed AS a WHERE a.who = current_user AND a.o = {table}.o)",
)

TRIGGERS = (
    ("before_each", "BEFORE INSERT OR UPDATE ON c.t FOR EACH ROW", "note", 0.1),
    ("after_each", "AFTER INSERT OR UPDATE ON c.t FOR EACH ROW", "note", 0.15),
    ("after_definer", "AFTER INSERT OR UPDATE ON c.t FOR EACH ROW", "note_definer", 0.1),
    ("before_all", "BEFORE INSERT OR UPDATE ON c.t FOR EACH STATEMENT", "note", 0.1),
    ("before_sign", "BEFORE INSERT OR UPDATE ON c.t FOR EACH ROW", "sign", 0.08),
    ("before_skip", "BEFORE INSERT OR UPDATE ON c.t FOR EACH ROW", "skip", 0.08),
    ("before_give", "BEFORE UPDATE ON c.t FOR EACH ROW", "give", 0.06),
    ("after_refuse", "AFTER INSERT OR UPDATE ON c.t FOR EACH ROW", "refuse", 0.15),
)
# mode and update_cols
CALLS = (
    *[("upsert", None)] * 2,
    ("insert", None),
    ("update", None),
    ("upsert", ("v",)),
    ("update", ("o",)),
)


@dataclass
class Case:
    """Statements that make it; those that change something later; what is tried; what it has, for the summary."""

    setup: list
    change: list
    tries: list
    seen: list


@dataclass
class Try:
    """One call, with the columns of staging and their types in the target."""

    role: str
    how: str
    path: str
    row_security: bool
    mode: str
    update: tuple  # of columns, or None
    columns: dict


@dataclass
class Outcome:
    sqlstate: str
    message: str
    more: list  # detail, hint and context
    count: int  # of rows that were written
    rows: list
    notices: set


def plan(seed, roles):
    """A case; it depends on the seed and the names of the roles only. roles: by the names in ROLES."""
    rng = random.Random(seed)
    tenants = [roles["owner"], roles["user"], roles["member"], "free", "given"]
    key, staged_key = rng.choice(KEYS)
    value, staged_value = rng.choice(VALUES)
    # The columns of staging, in some order, with their types in the target.
    columns = {"k": key, "o": TEXT, "v": value}
    if rng.random() < 0.4:
        columns["n"] = NUMBER
    columns = dict(rng.sample(list(columns.items()), len(columns)))
    stored = rows_of(rng, tenants, staged_key, [7, 8])
    staged = [
        # Some of them as they are stored.
        rng.choice([row for row in stored if row[0] == new[0]] or [new]) if rng.random() < 0.3 else new
        for new in rows_of(rng, tenants, staged_key, [7, 8, 9, 13, 1234567])
    ]
    partitioned = rng.random() < 0.15
    kind = rng.choice(["table", "table", "view", "security_barrier", "security_invoker", "materialized view"])
    base = "c.s" if kind == "table" else "c.base"

    setup = ["CREATE SCHEMA c; GRANT USAGE, CREATE ON SCHEMA c TO PUBLIC;", SPIES.format(**roles)]
    if rng.random() < 0.05:
        setup.append(f"REVOKE USAGE ON SCHEMA c FROM PUBLIC; GRANT USAGE ON SCHEMA c TO {roles['owner']};")
    if rng.random() < 0.08:
        setup.append("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA c FROM PUBLIC;")
    setup += others(rng, tenants, roles)
    setup += target(rng, key, value, partitioned, stored)
    setup += staging(rng, kind, base, columns, {"k": staged_key, "o": TEXT, "v": staged_value, "n": NUMBER}, staged)
    if kind != "table":
        setup.append(f"ALTER TABLE c.s OWNER TO {roles[rng.choice(ROLES)]};")

    everybody = ["PUBLIC", roles["user"], roles["group"], roles["other"], roles["bypass"]]
    for table, privileges in (("c.t", ("SELECT", "INSERT", "UPDATE")), ("c.s", ("SELECT",)), (base, ("SELECT",))):
        names = ("k", "o", "v", "n") if table == "c.t" else tuple(columns)
        for to in everybody if rng.random() < 0.5 else ["PUBLIC"]:
            setup += [f"GRANT {grant} ON {table} TO {to};" for grant in grants(rng, privileges, names)]
    seen = [kind] + ["partitioned"] * partitioned
    for table, share in (("c.t", 0.6), (base, 0.4)):
        setup.append(f"ALTER TABLE {table} OWNER TO {roles[rng.choice(['owner', 'owner', 'owner', 'other', 'user'])]};")
        if rng.random() < share:
            seen.append("row-level security")
            setup += secured(rng, table, roles)

    change = rng.choice(
        [
            secured(rng, "c.t", roles),
            secured(rng, base, roles),
            [f"REVOKE {rng.choice(['SELECT', 'INSERT', 'UPDATE'])} ON c.t FROM {rng.choice(everybody)};"],
            [f"REVOKE SELECT ON c.s FROM {', '.join(everybody)};"],
            [f"GRANT SELECT, INSERT, UPDATE ON c.t TO {rng.choice(everybody)};", "GRANT SELECT ON c.s TO PUBLIC;"],
            [f"ALTER TABLE c.t OWNER TO {roles[rng.choice(ROLES)]};"],
            ["ALTER TABLE c.t NO FORCE ROW LEVEL SECURITY; ALTER TABLE c.t DISABLE ROW LEVEL SECURITY;"],
            ["TRUNCATE c.allowed;"],
        ]
    )
    tries = [
        Try(
            rng.choice(ROLES),
            rng.choice(["SET ROLE", "SET ROLE", "SET SESSION AUTHORIZATION", "SECURITY DEFINER"]),
            rng.choice(["evil, pg_catalog", "evil, pg_catalog, public", "c", "", "pg_temp, evil, pg_catalog, c"]),
            rng.random() < 0.9,
            *rng.choice(CALLS),
            columns,
        )
        for _ in range(4)
    ]
    return Case(setup, change, tries, seen)


def others(rng, tenants, roles):
    """Tables that a foreign key and a policy look at."""
    known = [f"({quoted(tenant)})" for tenant in tenants if tenant != "free" or rng.random() < 0.5]
    allowed = [f"({quoted(roles[role])}, {quoted(o)})" for role in ROLES for o in rng.sample(tenants, 2)]
    return [
        f"CREATE TABLE c.tenants (o text PRIMARY KEY); INSERT INTO c.tenants VALUES {', '.join(known)};",
        f"CREATE TABLE c.allowed (who text, o text); INSERT INTO c.allowed VALUES {', '.join(allowed)};",
        *["ALTER TABLE c.tenants ENABLE ROW LEVEL SECURITY;"] * (rng.random() < 0.5),
        *[f"ALTER TABLE c.tenants OWNER TO {roles['owner']};"] * (rng.random() < 0.3),
        *["GRANT SELECT ON c.allowed TO PUBLIC;"] * (rng.random() < 0.8),
    ]


def target(rng, key, value, partitioned, stored):
    """The target, with code of others in it."""
    default = rng.choice(["", "", " DEFAULT 7", " DEFAULT c.spy('default', 7)"])
    parts = [f"k {key} PRIMARY KEY", "o text", f"v {value}", f"n pg_catalog.int4{default}"]
    if rng.random() < 0.25:
        parts.append("CHECK (c.spy('check', v <> 'x9x'))")
    if rng.random() < 0.1:
        parts.append("g text GENERATED ALWAYS AS (c.spy('generated', v || '!')) STORED")
    if rng.random() < 0.3:
        deferred = rng.choice(["", "", " DEFERRABLE INITIALLY DEFERRED"])
        parts.append(f"FOREIGN KEY (o) REFERENCES c.tenants{deferred}")
    setup = [f"CREATE TABLE c.t ({', '.join(parts)}){' PARTITION BY HASH (k)' if partitioned else ''};"]
    for i in range(2 if partitioned else 0):
        setup.append(f"CREATE TABLE c.t{i} PARTITION OF c.t FOR VALUES WITH (MODULUS 2, REMAINDER {i});")
    if rng.random() < 0.4 and not partitioned:
        setup.append("CREATE UNIQUE INDEX ON c.t (v);")
    if rng.random() < 0.2:
        setup.append("CREATE INDEX ON c.t (c.spy('index', v)) WHERE c.spy('predicate', v <> 'x8x');")
    # What is stored need not refer to anything.
    setup.append(f"SET LOCAL session_replication_role = replica; {insert('c.t', stored)}")
    for name, when, function, share in TRIGGERS:
        if rng.random() < share:
            setup.append(f"CREATE TRIGGER {name} {when} EXECUTE FUNCTION c.{function}();")
    return setup


def staging(rng, kind, base, columns, types, rows):
    """Staging: the table base, or something on top of it."""
    setup = [
        f"CREATE TABLE {base} ({', '.join(f'{name} {types[name]}' for name in columns)});"
        + insert(base, rows, tuple(columns))
    ]
    if kind != "table":
        relation = {"view": "VIEW c.s", "materialized view": "MATERIALIZED VIEW c.s"}
        relation = relation.get(kind, f"VIEW c.s WITH ({kind})")
        where = rng.choice(["", " WHERE o <> 'free'", " WHERE c.spy('view', o <> 'free')"])
        setup.append(f"CREATE {relation} AS SELECT * FROM c.base{where};")
    return setup


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def rows_of(rng, tenants, key_type, special):
    """Some rows (k, o, v, n), as SQL; a few values are special."""
    keys = rng.sample(range(1, 9), rng.randint(1, 6))
    values = [*special, *rng.sample(range(20, 99), 12 - len(special))]
    return [
        (
            quoted(str(key)) if key_type == TEXT else str(key),
            quoted(rng.choice(tenants)),
            quoted(f"x{value}x"),
            str(rng.randint(0, 9)),
        )
        for key, value in zip(keys, rng.sample(values, len(keys)))
    ]


def insert(table, rows, names=("k", "o", "v", "n")):
    values = [", ".join(dict(zip("kovn", row))[name] for name in names) for row in rows]
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES {', '.join(f'({row})' for row in values)};"


def grants(rng, privileges, names):
    """Rights on a table or on some of its columns; enough for a merge more often than not."""
    granted = []
    for privilege in privileges:
        some = [name for name in names if rng.random() < 0.85]
        if rng.random() < 0.6:
            granted.append(privilege)
        elif some and rng.random() < 0.8:
            granted.append(f"{privilege} ({', '.join(some)})")
    return granted


def secured(rng, table, roles):
    """Row-level security, with policies of all sorts."""
    statements = [f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;"]
    if rng.random() < 0.3:
        statements.append(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY;")

    def condition():
        return rng.choice(CONDITIONS).format(table=table.removeprefix("c."))

    for i in range(rng.randint(1, 4)):
        command = rng.choice(["ALL", "ALL", "SELECT", "INSERT", "UPDATE", "DELETE"])
        policy = f"CREATE POLICY p{rng.randrange(10**9)} ON {table}"
        if i > 0 and rng.random() < 0.3:
            policy += " AS RESTRICTIVE"
        policy += f" FOR {command} TO {rng.choice(['PUBLIC', 'PUBLIC', *(roles[role] for role in ROLES)])}"
        if command != "INSERT":
            policy += f" USING ({condition()})"
        if command == "INSERT" or command in ("ALL", "UPDATE") and rng.random() < 0.5:
            policy += f" WITH CHECK ({condition()})"
        statements.append(policy + ";")
    return statements


def by_hand(attempt, readable):
    """The statement; readable are the columns of the target that the caller may read."""
    names = list(attempt.columns)
    set_columns = attempt.update or tuple(name for name in names if name != "k")
    # The key as its index has it, not by operators that a domain might have.
    key = "{}.k::pg_catalog.int4" if attempt.columns["k"] == "c.number" else "{}.k"
    equal = f"{key.format('t')} OPERATOR(pg_catalog.=) {key.format('s')}"

    def record(alias):
        return f"ROW({', '.join(f'{alias}.{name}' for name in set_columns)})::pg_catalog.record"

    changed = f"{record('s')} OPERATOR(pg_catalog.*<>) {record('t')}"
    staged = (
        f"WITH s AS MATERIALIZED (SELECT {', '.join(f'{assigned(attempt, name)} AS {name}' for name in names)}"
        " FROM c.s AS s ORDER BY 1)"
    )
    counted = "SELECT pg_catalog.count(*) FROM p WHERE (SELECT pg_catalog.count(*) FROM s) IS NOT NULL"
    if attempt.mode == "update":
        return (
            f"{staged}, l AS MATERIALIZED (SELECT s.* FROM s JOIN c.t AS t ON {equal} WHERE {changed}"
            f" ORDER BY s.k FOR NO KEY UPDATE OF t), p AS (UPDATE c.t AS t"
            f" SET {', '.join(f'{name} = s.{name}' for name in set_columns)} FROM l AS s WHERE {equal}"
            f" RETURNING t.k) {counted}"
        )
    proposed = [
        f"s.{name}"
        if name == "k" or name in set_columns or name not in readable
        else f"CASE WHEN t.k IS NULL THEN s.{name} ELSE t.{name} END"
        for name in names
    ]
    conflict = (
        "NOTHING"
        if attempt.mode == "insert"
        else f"UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in set_columns)}"
        f" WHERE {record('excluded')} OPERATOR(pg_catalog.*<>) {record('t')}"
    )
    return (
        f"{staged}, p AS (INSERT INTO c.t AS t ({', '.join(names)}) SELECT {', '.join(proposed)} FROM s"
        f" LEFT JOIN c.t AS t ON {equal} WHERE t.k IS NULL"
        f"{'' if attempt.mode == 'insert' else ' OR ' + changed} ORDER BY s.k ON CONFLICT (k) DO {conflict}"
        f" RETURNING t.k) {counted}"
    )


def assigned(attempt, name):
    """A staged value as INSERT would convert it: not cut, as an explicit cast does."""
    type_name = attempt.columns[name]
    length = f"pg_catalog.varchar(s.{name}, 10, false)"
    return {"c.word": f"{length}::c.word", "pg_catalog.varchar(6)": length}.get(type_name, f"s.{name}::{type_name}")


def by_merge(attempt, more=""):
    if attempt.update:
        more += f", update_cols => '{{{','.join(attempt.update)}}}'"
    return (
        "SELECT rows_inserted OPERATOR(pg_catalog.+) rows_updated FROM public.idem_merge('c.s'::pg_catalog.regclass,"
        f" 'c.t'::pg_catalog.regclass, '{{k}}', mode => '{attempt.mode}'{more})"
    )


class Grid:
    """A session that plays one case after the other."""

    def __init__(self, cluster, database):
        self.cluster = cluster
        self.database = database
        self.roles = {role: f"{database}_{role}" for role in (*ROLES, "group")}
        self.seen = Counter()
        self.notices = []
        cluster.create_database(database)
        self.connect()
        attributes = {"bypass": "BYPASSRLS", "stranger": "NOINHERIT"}
        create = "".join(f"CREATE ROLE {name} {attributes.get(role, '')};" for role, name in self.roles.items())
        create += "GRANT {group} TO {member}, {stranger};".format(**self.roles)
        create += SETUP
        for role in ROLES:
            # What a role lends to others.
            create += (
                f"CREATE FUNCTION run.as_{role}(statement text) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS"
                " $$ DECLARE answer bigint; BEGIN EXECUTE statement INTO answer; RETURN answer; END $$;"
                f"ALTER FUNCTION run.as_{role} OWNER TO {self.roles[role]};"
            )
        self.connection.execute(create)

    def connect(self):
        self.connection = self.cluster.connect(self.database)
        self.connection.add_notice_handler(lambda notice: self.notices.append(notice.message_primary))
        self.connection.execute("SET statement_timeout = '60s'; SET check_function_bodies = off")

    def run(self, attempt, statement, engine="auto"):
        """The outcome of a statement that a role runs, which is undone."""
        connection, role = self.connection, self.roles[attempt.role]
        if attempt.how == "SECURITY DEFINER":
            statement = f"SELECT run.as_{attempt.role}({quoted(statement)})"
            become = f"SET LOCAL ROLE {self.roles['stranger']}"
        else:
            become = f"SET LOCAL {attempt.how.removeprefix('SET ')} {role}"
        # UPDATE writes in the order of its plan, which decides between two faults. This is the order of the key.
        loops = " ".join(f"SET LOCAL enable_{way} = off;" for way in ("hashjoin", "mergejoin", "seqscan"))
        path = ", ".join(f'"{part}"' for part in attempt.path.split(", ")) if attempt.path else "''"
        connection.execute(
            f"BEGIN; SET LOCAL idempotent_ingest.engine = {engine}; SET LOCAL search_path = {path};"
            f" SET LOCAL row_security = {'on' if attempt.row_security else 'off'};"
            f" {loops if attempt.mode == 'update' else ''} {become}"
        )
        self.notices.clear()
        try:
            (count,) = connection.execute(statement).fetchone()
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            notices = set(self.notices)
            connection.execute("RESET ROLE; RESET SESSION AUTHORIZATION; SET LOCAL search_path = pg_catalog")
            rows = connection.execute("SELECT t::text FROM c.t AS t ORDER BY 1").fetchall()
            return Outcome("00000", "", [], count, rows, notices)
        except psycopg.Error as error:
            if error.sqlstate is None:
                raise
            diag = error.diag
            more = [diag.message_detail, diag.message_hint, diag.context]
            return Outcome(
                error.sqlstate, diag.message_primary, list(filter(None, more)), None, None, set(self.notices)
            )
        finally:
            if not connection.closed:
                connection.execute("ROLLBACK")

    def readable(self, attempt):
        """Columns of the target that the role may read, and the values that it can see."""
        columns = [
            name
            for (name,) in self.connection.execute(
                "SELECT attname FROM pg_attribute WHERE attrelid = 'c.t'::regclass AND attnum > 0"
                " AND has_column_privilege(%s, attrelid, attnum, 'SELECT')",
                [self.roles[attempt.role]],
            ).fetchall()
        ]
        values = set()
        for relation in ("t", "s"):
            outcome = self.run_rows(attempt, f"SELECT v FROM c.{relation}")
            values |= {value for (value,) in outcome or ()}
        return columns, values

    def run_rows(self, attempt, statement):
        """The rows that a query has for a role; None if it is refused."""
        self.connection.execute(
            f"BEGIN; SET LOCAL row_security = {'on' if attempt.row_security else 'off'};"
            f"SET LOCAL search_path = pg_catalog; SET LOCAL ROLE {self.roles[attempt.role]}"
        )
        try:
            return self.connection.execute(statement).fetchall()
        except psycopg.Error as error:
            if error.sqlstate is None:
                raise
            return None
        finally:
            self.connection.execute("ROLLBACK")

    def compare(self, attempt):
        """What is wrong with a call."""
        columns, visible = self.readable(attempt)
        readable = self.run_rows(attempt, f"SELECT {', '.join(attempt.columns)} FROM c.s")
        stored = self.connection.execute("SELECT t::text FROM c.t AS t ORDER BY 1").fetchall()
        statement = by_hand(attempt, columns)
        plain = self.run(attempt, statement)
        self.seen[plain.sqlstate] += 1
        for what in (attempt.how, "some columns" if attempt.update else attempt.mode):
            self.seen[what] += 1
        self.seen["written"] += bool(plain.count)
        self.seen["spied"] += bool(plain.notices)
        for engine in ("auto", "native", "sql"):
            merge = self.run(attempt, by_merge(attempt), engine)
            if engine == "native" and merge.sqlstate == "0A000" and "native" in merge.message:
                continue
            self.seen[engine] += 1
            if self.refused_later(attempt, plain, merge, stored, readable):
                continue
            problem = None
            if merge.sqlstate != plain.sqlstate:
                problem = "another SQLSTATE"
            elif merge.count != plain.count:
                problem = "another number of rows"
            elif merge.rows != plain.rows:
                problem = f"other rows, {plain.rows} and {merge.rows}"
            elif self.unexpected(attempt, plain, merge):
                problem = f"code of others: {self.unexpected(attempt, plain, merge)}"
            elif told(merge) - told(plain) - visible:
                problem = f"it tells {told(merge) - told(plain) - visible}"
            if problem:
                return (
                    f"{attempt}, engine {engine}: {problem}\n"
                    f"by hand: {shown(plain)}\n{statement}\nmerge: {shown(merge)}\n{by_merge(attempt)}"
                )
        return self.compare_looks(attempt, plain, visible, readable)

    def unexpected(self, attempt, plain, merge):
        """Code that ran in a merge and not in the statement, or as somebody else."""
        more = spied(merge) - spied(plain)
        # The native engine computes generated columns that an UPDATE leaves as they are.
        allowed = {"generated"}
        if plain.sqlstate != "00000":
            # What runs before an error that both have to end with is not said anywhere.
            allowed |= {notice.split()[1] for notice in more}
        return more - {f"spy {what} as {self.roles[attempt.role]}" for what in allowed}

    @staticmethod
    def refused_later(attempt, plain, merge, stored, readable):
        """A statement is refused at its start for a function that it may not call for any row, for row_security, and
        for a table that a policy reads. A merge that has no row for them may go through; it must have written nothing
        then, or have inserted nothing if it is a default that may not be called.
        """
        late = "for function" in plain.message
        if readable == []:
            late |= "would be affected by" in plain.message or "for table allowed" in plain.message
        only_updated = (
            attempt.mode == "upsert" and "n" not in attempt.columns and len(merge.rows or ()) == len(stored or ())
        )
        return late and (merge.rows == stored or only_updated or merge.sqlstate[:2] not in ("00", "XX"))

    def compare_looks(self, attempt, plain, visible, rows):
        """What is wrong with what only looks: a dry run, and a fingerprint."""
        dry_run = self.run(attempt, by_merge(attempt, ", dry_run => true"))
        if told(dry_run) - visible - told(plain):
            return f"{attempt}: the dry run tells {told(dry_run) - visible - told(plain)}"
        if re.fullmatch("permission denied for (.* (t|s|base)|schema c)", plain.message):
            if dry_run.sqlstate != "42501":
                return f"{attempt}: the dry run is {dry_run.sqlstate}, by hand it is {plain.message}"
        fingerprint = self.run_rows(attempt, "SELECT public.idem_fingerprint('c.s')")
        if (rows is None) != (fingerprint is None):
            return f"{attempt}: fingerprint {fingerprint}, rows {rows}"
        if rows is not None:
            marks = ", ".join(["%s"] * len(attempt.columns))
            with self.connection.transaction(force_rollback=True):
                with self.connection.cursor() as cursor:
                    cursor.executemany(f"INSERT INTO c.seen ({', '.join(attempt.columns)}) VALUES ({marks})", rows)
                expected = self.connection.execute("SELECT public.idem_fingerprint('c.seen')").fetchall()
            if fingerprint != expected:
                return f"{attempt}: the fingerprint is not that of the rows that the caller can read"
        return None

    def play(self, case):
        """The first problem of a case, or None."""
        try:
            for statement in case.setup:
                self.connection.execute(statement)
            # For rows as a caller has seen them.
            self.connection.execute("CREATE TABLE c.seen AS SELECT * FROM c.s WITH NO DATA")
            for change in ((), case.change):
                for statement in change:
                    self.connection.execute(statement)
                self.seen["changed"] += bool(change)
                for attempt in case.tries:
                    problem = self.compare(attempt)
                    if problem:
                        return problem
        finally:
            if not self.connection.closed:
                self.connection.execute("DROP SCHEMA IF EXISTS c CASCADE")
        return None

    def smaller(self, case):
        """The case without whatever is not needed for its problem."""
        for part in (case.change, case.tries, case.setup):
            for item in list(part):
                at = part.index(item)
                del part[at]
                try:
                    if self.play(case):
                        continue
                except psycopg.Error:
                    self.connection.execute("DROP SCHEMA IF EXISTS c CASCADE")
                part.insert(at, item)
        return case


def shown(outcome):
    return f"{outcome.sqlstate} {' | '.join([outcome.message, *outcome.more])} {outcome.count}"


def spied(outcome):
    return {notice for notice in outcome.notices if notice.startswith(("spy ", "trap "))}


def told(outcome):
    """Values in messages."""
    texts = (outcome.message, *outcome.more, *outcome.notices)
    return {value for text in texts for value in re.findall(r"x\d+x", text)}


def play_all(cluster, database, seed, cases):
    """Returns what was seen, and the cases that went wrong."""
    grid = Grid(cluster, database)
    problems = []
    for number in range(cases):
        progress(database, number, cases)
        if number % 50 == 49:
            # What cases leave in the catalogs makes the next ones slow, and autovacuum is off.
            grid.connection.execute("VACUUM")
            grid.connection.close()
            grid.connect()
        case = plan(seed * 1_000_000 + number, grid.roles)
        grid.seen.update(set(case.seen))
        if grid.play(case):
            case = grid.smaller(case)
            problem = str(grid.play(case))
            problems.append("\n".join([f"-- SEED {seed}, case {number}", *case.setup, *case.change, problem]))
            if len(problems) == 3:
                break
    grid.connection.close()
    return grid.seen, "\n".join(problems)
