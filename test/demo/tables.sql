-- The tables of the demo: the target of idem_merge(), its staging table, and
-- one table for each other way to load the same files.

CREATE TABLE flights (
    carrier    text,
    flight     integer,
    origin     text,
    sched_dep  timestamptz,
    dest       text NOT NULL,
    tailnum    text,
    dep_delay  integer,
    arr_delay  integer,
    air_time   integer,
    distance   integer NOT NULL,
    updated_at timestamptz NOT NULL,
    _loaded_at timestamptz NOT NULL,
    PRIMARY KEY (carrier, flight, origin, sched_dep)
);

-- Unlogged, as staging usually is: a crash empties it, and the job fills it anew.
-- The time of loading differs for every row and on every attempt.
CREATE UNLOGGED TABLE staging_flights (LIKE flights);
ALTER TABLE staging_flights ALTER _loaded_at SET DEFAULT clock_timestamp();

CREATE TABLE by_insert    (LIKE flights);
CREATE TABLE by_insert_pk (LIKE flights INCLUDING INDEXES);
CREATE TABLE by_upsert    (LIKE flights INCLUDING INDEXES);
CREATE TABLE by_guarded   (LIKE flights INCLUDING INDEXES);

-- What the files say, worked out from the files alone.
CREATE TABLE truth (LIKE flights INCLUDING INDEXES);
ALTER TABLE truth DROP _loaded_at;

-- One row for each delivery and way.
CREATE TABLE measured (
    target   regclass NOT NULL,
    batch    text NOT NULL,
    sqlstate text NOT NULL,
    written  bigint,
    wal      bigint NOT NULL
);
