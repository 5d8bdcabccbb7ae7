-- What each way of loading left behind, against the truth.

CREATE FUNCTION compare(way regclass, OUT rows bigint, OUT missing bigint, OUT doubles bigint, OUT wrong bigint)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'SELECT count(*),
                (SELECT count(*) FROM truth) - count(DISTINCT (t.carrier, t.flight, t.origin, t.sched_dep)),
                count(*) - count(DISTINCT (t.carrier, t.flight, t.origin, t.sched_dep)),
                count(*) FILTER (WHERE (t.dest, t.tailnum, t.dep_delay, t.arr_delay, t.air_time, t.distance,
                                        t.updated_at)
                                       IS DISTINCT FROM
                                       (truth.dest, truth.tailnum, truth.dep_delay, truth.arr_delay,
                                        truth.air_time, truth.distance, truth.updated_at))
         FROM %s t LEFT JOIN truth USING (carrier, flight, origin, sched_dep)', way)
    INTO rows, missing, doubles, wrong;
END
$$;

-- ANALYZE reads every page of tables of this size, so the dead rows are counted.
ANALYZE flights, by_insert, by_insert_pk, by_upsert, by_guarded;

SELECT label AS "loaded by", c.rows, c.missing, c.doubles, c.wrong, m.failed, m.written,
       pg_stat_get_dead_tuples(way) AS dead, m.wal_kb AS "WAL kB"
FROM (VALUES (1, 'by_insert'::regclass, 'INSERT or COPY, no key'),
             (2, 'by_insert_pk', 'INSERT, primary key'),
             (3, 'by_upsert', 'ON CONFLICT DO UPDATE'),
             (4, 'by_guarded', 'the same, DISTINCT ON and WHERE'),
             (5, 'flights', 'idem_merge')) AS ways(place, way, label),
     compare(way) AS c,
     LATERAL (SELECT count(*) FILTER (WHERE sqlstate <> '00000') AS failed,
                     coalesce(sum(written),
                              (SELECT sum(rows_inserted + rows_updated) FROM idem_batches)) AS written,
                     round(sum(wal) / 1024) AS wal_kb
              FROM measured WHERE target = way) AS m
ORDER BY place;

SELECT target AS "failed in", sqlstate,
       string_agg(replace(batch, 'flights-2013-01-', ''), ', ' ORDER BY place) AS batches
FROM (SELECT *, row_number() OVER () AS place FROM measured) AS m
WHERE sqlstate <> '00000'
GROUP BY target, sqlstate
ORDER BY target;
