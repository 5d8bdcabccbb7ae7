"""The values that columns of the random histories can have.

What PostgreSQL itself says of a value, its text, which other values are equal to it, which are greater, how its
image compares, and what becomes of it when it is assigned to another type, is asked of PostgreSQL with plain SQL,
once, before anything of the extension is called.
"""

import psycopg


class Kind:
    """A type of the target, what it is staged as, and some values.

    good: SQL of staged values that fit the target, bad: of those that do not.
    as_key: usable in a unique index. native: usable in a key that the native engine serves.
    image: SQL of a row for a value v that compares by its bytes as the image of v does.
    """

    def __init__(self, target, staged, good, bad=(), as_key=False, native=False, collation="", image="ROW(v)"):
        self.target = target
        self.staged = staged
        self.collation = f" COLLATE {collation}" if collation else ""
        self.literals = [f"({value})::{staged}" for value in [*good, *bad]]
        self.good = range(len(good))
        self.bad = range(len(good), len(good) + len(bad))
        self.as_key = as_key
        self.native = native
        self.image = image
        # By number of the literal: text as staged, and text or SQLSTATE as stored.
        self.staged_text = []
        self.stored = []
        # By text as stored: place in the order of the images; and in the order of
        # the type, where equal values have the same place. NULL has its place.
        self.image_rank = {}
        self.rank = {}

    def __repr__(self):
        return f"{self.staged} to {self.target}{self.collation}"

    def learn(self, connection):
        self.staged_text = connection.execute(
            "SELECT ARRAY[" + ", ".join(f"({literal})::text" for literal in self.literals) + "]"
        ).fetchone()[0]
        # A process may have learned it before.
        self.stored, self.image_rank, self.rank = [], {}, {}
        with connection.transaction(force_rollback=True):
            connection.execute(f"CREATE TABLE learn (i int, v {self.target}{self.collation})")
            for i, literal in enumerate(self.literals):
                try:
                    with connection.transaction():
                        connection.execute(f"INSERT INTO learn VALUES ({i}, {literal})")
                    self.stored.append((i in self.good, None))
                except psycopg.Error as error:
                    self.stored.append((False, error.sqlstate))
            connection.execute("INSERT INTO learn VALUES (-1, NULL)")
            order = "dense_rank() OVER (ORDER BY v)" if self.as_key else "NULL"
            for i, text, rank, image_rank in connection.execute(
                f"SELECT i, v::text, {order},"
                f" dense_rank() OVER (ORDER BY {self.image} USING OPERATOR(pg_catalog.*<)) FROM learn"
            ):
                self.rank[text] = rank
                if self.image_rank.setdefault(text, image_rank) != image_rank:
                    raise ValueError(f"{self}: {text} is the text of two images")
                if i >= 0:
                    self.stored[i] = (True, text)
        for i, (fits, text) in enumerate(self.stored):
            if fits != (i in self.good):
                raise ValueError(f"{self}: {self.literals[i]}: {text}")


# Names of types come before their use, for all that are created by TYPES.
TYPES = """
CREATE EXTENSION citext;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad');
CREATE TYPE pair AS (i int, n numeric);
CREATE DOMAIN small AS int CHECK (VALUE < 100);
CREATE DOMAIN word AS varchar(4);
CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
"""

# Text that does not compress, so that it is stored out of line.
LONG = "(SELECT string_agg(md5(i::text || '{}'), '') FROM generate_series(1, 90) AS i)"

KINDS = [
    Kind("int4", "int4", ["1", "2", "3", "0", "-5"], as_key=True, native=True),
    Kind("int8", "int4", ["1", "0", "3", "70000"], as_key=True, native=True),
    Kind("int4", "int8", ["1", "2", "3", "4"], ["3000000000"], as_key=True, native=True),
    Kind("int4", "numeric", ["1", "1.4", "2", "2.5", "3"], ["1e10", "'NaN'"], as_key=True, native=True),
    Kind("numeric", "numeric", ["1", "1.0", "1.00", "2", "'NaN'", "-0.5"], as_key=True),
    Kind("numeric(6,2)", "numeric", ["1", "1.001", "1.01", "2", "'NaN'"], ["1e9"], as_key=True),
    Kind("float8", "float8", ["0", "'-0'", "'NaN'", "1.5", "'Infinity'"], as_key=True),
    Kind("float4", "float8", ["1", "1.00000001", "2", "'-0'", "'0'"], ["1e300"], as_key=True),
    Kind("text", "text", ["''", "'a'", "'A'", "'ab'", "'ä'", "'a '"], as_key=True, native=True),
    Kind("text", "int4", ["1", "10", "2"], as_key=True, native=True),
    Kind("text", "varchar(20)", ["'a'", "'Zz'", "'é'"], as_key=True, native=True, collation='"und-x-icu"'),
    Kind("text", "text", ["'a'", "'A'", "'b'", "'B'", "''"], as_key=True, collation="nocase"),
    Kind("citext", "citext", ["'a'", "'A'", "'b'", "'B'", "'c'"], as_key=True),
    Kind("varchar(4)", "text", ["'a'", "'abcd'", "'abcd   '", "'b'"], ["'abcde'"], as_key=True, native=True),
    Kind("char(3)", "text", ["'a'", "'a '", "'b'", "'abc'"], ["'abcd'"], as_key=True),
    Kind("text", "char(3)", ["'a'", "'a '", "'b'", "'abc'"], as_key=True, native=True),
    Kind("bytea", "bytea", [r"'\x'", r"'\x00'", r"'\x0001'", r"'\xff'"], as_key=True, native=True),
    Kind("uuid", "uuid", ["md5('1')", "md5('2')", "md5('3')"], as_key=True, native=True),
    Kind("mood", "mood", ["'sad'", "'ok'", "'glad'"], as_key=True, native=True),
    Kind("bool", "bool", ["true", "false"], as_key=True, native=True),
    Kind("small", "int4", ["1", "2", "3", "99"], ["100"], as_key=True, native=True),
    Kind("word", "text", ["'a'", "'abcd'", "'b'"], ["'abcde'"], as_key=True, native=True),
    Kind(
        "date",
        "timestamp",
        ["'2020-01-01 01:00'", "'2020-01-01 23:00'", "'2000-01-01'", "'infinity'"],
        as_key=True,
        native=True,
    ),
    Kind(
        "timestamptz",
        "timestamptz",
        ["'2020-01-01'", "'2020-01-01 00:00:00.000001'", "'2000-01-01 00:00+00'", "'-infinity'"],
        as_key=True,
        native=True,
    ),
    Kind("interval", "interval", ["'1 day'", "'24 hours'", "'1 mon'", "'30 days'"], as_key=True),
    Kind("int4[]", "int4[]", ["'{}'", "'{1}'", "'[0:0]={1}'", "'{1,NULL}'", "'{{1},{2}}'"], as_key=True),
    Kind("numeric[]", "numeric[]", ["'{1.0}'", "'{1.00}'", "'{2}'"], as_key=True),
    Kind("varchar(2)[]", "text[]", ["'{a}'", "'{a,b}'", "'{NULL,a,b}'"], ["'{abc}'"], as_key=True),
    # "Elements, bounds and columns are 0x00 for NULL"; PostgreSQL has NULL last.
    Kind(
        "pair",
        "pair",
        ["'(1,1.0)'", "'(1,1.00)'", "'(2,)'", "'(,)'"],
        as_key=True,
        image="ROW(v::text IS NULL, (v).i IS NOT NULL, (v).i, (v).n IS NOT NULL, (v).n)",
    ),
    Kind("int4range", "int4range", ["'empty'", "'[1,3)'", "'[1,2]'", "'[2,)'"], as_key=True),
    Kind("jsonb", "jsonb", ["'{\"a\": 1}'", "'{\"a\": 1.0}'", "'[]'", "'null'"], as_key=True),
    Kind("inet", "inet", ["'10.0.0.1'", "'10.0.0.0/8'", "'::1'"], as_key=True),
    Kind("bit varying", "bit(3)", ["B'101'", "B'000'", "B'111'"]),
    Kind("json", "json", ["'{\"a\": 1}'", "'{\"a\":1}'", '\'{"a":1,"a":1}\'', "'null'"]),
    Kind("json", "jsonb", ["'{\"a\": 1}'", "'[1]'"]),
    Kind("box", "box", ["'(1,1),(0,0)'", "'(2,2),(1,1)'", "'(1,1),(0,-0)'"]),
    Kind("point", "point", ["'(0,0)'", "'(0,-0)'", "'(1,NaN)'"]),
    Kind("text", "text", ["repeat('x', 5000)", LONG.format("a"), LONG.format("b"), "'short'"]),
    Kind("tsvector", "tsvector", ["'a b'", "'b a'", "'a:1 b'"]),
]

# Versions have an order that the documentation speaks of; the last ones have NaN or infinity.
VERSION_KINDS = [
    Kind("int4", "int4", ["1", "2", "3", "4"], as_key=True),
    Kind("timestamptz", "timestamptz", ["'2020-01-01'", "'2020-01-02'", "'2020-01-03'"], as_key=True),
    Kind("numeric", "numeric", ["1", "1.0", "2", "2.00", "3"], as_key=True),
    Kind("text", "text", ["'a'", "'B'", "'b'", "'ab'"], as_key=True),
    Kind("int4", "numeric", ["1", "1.4", "2"], as_key=True),
    Kind("citext", "text", ["'a'", "'A'", "'b'"], as_key=True),
    Kind("float8", "float8", ["1", "0", "'-0'", "'NaN'", "'Infinity'"], as_key=True),
]

NUMBER = Kind("int4", "int4", ["0", "1", "2"], as_key=True)
# 3 is what the feature of a shape refuses, where it has one that does.
REFERENCE = Kind("int4", "int4", ["0", "1", "2", "3"], as_key=True)


def learn_all(connection):
    for kind in [*KINDS, *VERSION_KINDS, NUMBER, REFERENCE]:
        kind.learn(connection)
