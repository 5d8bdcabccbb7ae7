-- The same delivery by the other ways. Errors are noted, and the next delivery
-- goes on: that is what a nightly job does.

-- no key: what COPY straight into the table leaves, too
SELECT pg_current_wal_insert_lsn() AS lsn \gset
INSERT INTO by_insert SELECT * FROM staging_flights;
INSERT INTO measured
VALUES ('by_insert', :'batch', :'SQLSTATE', :ROW_COUNT, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), :'lsn'));

-- a primary key, and no ON CONFLICT
SELECT pg_current_wal_insert_lsn() AS lsn \gset
INSERT INTO by_insert_pk SELECT * FROM staging_flights;
INSERT INTO measured
VALUES ('by_insert_pk', :'batch', :'SQLSTATE', :ROW_COUNT, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), :'lsn'));

-- the usual upsert: the last one to arrive wins
SELECT pg_current_wal_insert_lsn() AS lsn \gset
INSERT INTO by_upsert SELECT * FROM staging_flights
ON CONFLICT (carrier, flight, origin, sched_dep) DO UPDATE
SET (dest, tailnum, dep_delay, arr_delay, air_time, distance, updated_at, _loaded_at) =
    (excluded.dest, excluded.tailnum, excluded.dep_delay, excluded.arr_delay, excluded.air_time,
     excluded.distance, excluded.updated_at, excluded._loaded_at);
INSERT INTO measured
VALUES ('by_upsert', :'batch', :'SQLSTATE', :ROW_COUNT, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), :'lsn'));

-- the careful upsert: one row per key, and only a newer one replaces the stored one
SELECT pg_current_wal_insert_lsn() AS lsn \gset
INSERT INTO by_guarded AS stored
SELECT DISTINCT ON (carrier, flight, origin, sched_dep) * FROM staging_flights
ORDER BY carrier, flight, origin, sched_dep, updated_at DESC
ON CONFLICT (carrier, flight, origin, sched_dep) DO UPDATE
SET (dest, tailnum, dep_delay, arr_delay, air_time, distance, updated_at, _loaded_at) =
    (excluded.dest, excluded.tailnum, excluded.dep_delay, excluded.arr_delay, excluded.air_time,
     excluded.distance, excluded.updated_at, excluded._loaded_at)
WHERE stored.updated_at < excluded.updated_at;
INSERT INTO measured
VALUES ('by_guarded', :'batch', :'SQLSTATE', :ROW_COUNT, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), :'lsn'));
