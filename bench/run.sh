#!/bin/bash
# What "make bench" runs: compares idem_merge() with the naive upsert,
#   INSERT INTO target SELECT * FROM staging ON CONFLICT (id) DO UPDATE SET ...
# on a server that lives only as long as this script. Environment:
#   ROWS=1000000   staged rows, and rows of the target
#   REPEAT=3       runs of each method; they take turns, and the medians count
#   WORK_MEM=64MB
#   PG_MAJOR=NN    which PostgreSQL, of those installed
# Machines are noisy: read the ratios, not the seconds. Exits with 1 if the two
# methods do not end with the same rows, or if a merge was not what it should
# have been; a ratio above its goal is printed as such and is no failure.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

rows=${ROWS:-1000000}
repeat=${REPEAT:-3}
work_mem=${WORK_MEM:-64MB}
for number in "$rows" "$repeat"; do
    [[ $number =~ ^[1-9][0-9]*$ ]] || die "ROWS and REPEAT must be positive numbers"
done

# Stored rows have even keys and new ones odd keys, so that new keys fall
# between old ones. Every table is written in the order in which its rows would
# have come: stored ones by key, staged ones shuffled, the same in every run.
make_tables()
{
    sql -v rows="$rows" <<'END'
CREATE EXTENSION idempotent_ingest;

CREATE FUNCTION make_rows(keys bigint, revision int)
RETURNS TABLE (id bigint, account int, status text, amount numeric(12,2), note text,
               created_at timestamptz, updated_at timestamptz)
LANGUAGE sql IMMUTABLE AS $$
    SELECT keys, (keys % 99991)::int, (ARRAY['new', 'paid', 'sent', 'done'])[1 + keys % 4],
           (keys % 1000000)::numeric / 100 + revision,
           md5(keys::text) || md5(revision::text) || md5((keys + 1)::text) || md5((keys + 2)::text),
           timestamptz '2026-01-01 00:00:00+00' + keys * interval '1 second',
           timestamptz '2026-01-01 00:00:00+00' + (keys + revision) * interval '1 second'
$$;

CREATE TABLE base_old AS
    SELECT r.* FROM generate_series(2, :rows::bigint * 2, 2) AS k, make_rows(k, 0) AS r ORDER BY k;

CREATE TABLE staging_identical AS
    SELECT * FROM base_old ORDER BY md5(id::text);

-- Of ten staged rows five are new, one has changed, four are as stored.
CREATE TABLE staging_mix AS
    SELECT r.*
    FROM generate_series(1, :rows::bigint) AS i,
         make_rows(CASE WHEN i % 10 < 5 THEN i * 2 + 1 ELSE i * 2 END,
                   CASE WHEN i % 10 = 5 THEN 1 ELSE 0 END) AS r
    ORDER BY md5(i::text);

-- What the mix makes of the old rows.
CREATE TABLE base_merged AS
    SELECT * FROM base_old o WHERE NOT EXISTS (SELECT FROM staging_mix s WHERE s.id = o.id)
    UNION ALL
    SELECT * FROM staging_mix
    ORDER BY id;

VACUUM (FREEZE, ANALYZE) base_old, staging_identical, staging_mix, base_merged;

CREATE TABLE measured (profile text, method text, seconds numeric, wal numeric, content text);
END
}

# A new target with the rows of $1, such that nothing of what made it is left to do.
make_target()
{
    sql -v base="$1" <<'END'
SET client_min_messages = warning;
DROP TABLE IF EXISTS target;
CREATE TABLE target AS SELECT * FROM :base ORDER BY id;
ALTER TABLE target ADD PRIMARY KEY (id);
VACUUM (FREEZE, ANALYZE) target;
END
}

# Measures one statement in a session of its own, and notes what the target
# then holds: profile, method, statement.
measure()
{
    sql -v profile="$1" -v method="$2" <<END
CHECKPOINT;
SELECT clock_timestamp() AS started, pg_current_wal_insert_lsn() AS lsn \\gset
$3
SELECT extract(epoch FROM clock_timestamp() - :'started') AS seconds,
       pg_current_wal_insert_lsn() - :'lsn'::pg_lsn AS wal \\gset
INSERT INTO measured
    SELECT :'profile', :'method', :'seconds', :'wal',
           (SELECT count(*) || ' ' || coalesce(sum(hash_record_extended(t, 0)::numeric), 0) FROM target t);
END
}

merge="SELECT status || ' ' || rows_staged || ' ' || rows_inserted || ' ' || rows_updated || ' ' || rows_unchanged
       FROM idem_merge('STAGING', 'target', '{id}', 'batch');"
naive='INSERT INTO target SELECT * FROM STAGING
ON CONFLICT (id) DO UPDATE SET account = excluded.account, status = excluded.status,
    amount = excluded.amount, note = excluded.note, created_at = excluded.created_at,
    updated_at = excluded.updated_at;'

# One run of each method: profile, rows of the target, staging, what the merge
# has to say. A replay needs the batch in the ledger first.
profile()
{
    local name=$1 base=$2 staging=$3 expected=$4 said
    make_target "$base"
    measure "$name" naive "${naive//STAGING/$staging}" >/dev/null
    make_target "$base"
    if [ "$name" = replay ]; then
        sql -c "${merge//STAGING/$staging}" >/dev/null
    fi
    said=$(measure "$name" idem_merge "\\pset tuples_only on"$'\n'"\\pset format unaligned"$'\n'"${merge//STAGING/$staging}")
    [ "$said" = "$expected" ] || die "$name: the merge said \"$said\", expected \"$expected\""
    # Reading staging is no part of what the fingerprint costs: the merge does it anyway.
    measure "$name" fingerprint "SELECT idem_fingerprint('$staging');" >/dev/null
    measure "$name" scan "SELECT FROM (SELECT * FROM $staging OFFSET 0) s WHERE updated_at IS NULL;" >/dev/null
}

major=$(pg_major) || die "no PostgreSQL is installed: run test/setup.sh"
make_workdir
trap stop_server EXIT
trap 'exit 1' INT TERM
build_and_install "$major"
cd "$work/src"
application=bench
on_error_stop=1
# Nothing else shall be at work while something is measured.
start_server "$major" <<END
shared_buffers = 1GB
max_wal_size = 8GB
checkpoint_timeout = 1h
work_mem = '$work_mem'
maintenance_work_mem = 256MB
autovacuum = off
END

echo "making tables of $rows rows"
make_tables
changed=$(((rows + 4) / 10))
new=$(ask "SELECT count(*) FROM staging_mix WHERE id % 2 = 1")
for run in $(seq "$repeat"); do
    echo "run $run of $repeat"
    profile identical base_old staging_identical "applied $rows 0 0 $rows"
    profile mix base_old staging_mix "applied $rows $new $changed $((rows - new - changed))"
    profile replay base_merged staging_mix "replayed $rows 0 0 $rows"
done

echo
ask "SELECT 'PostgreSQL ' || current_setting('server_version') || ', $(nproc) processors, shared_buffers '
     || current_setting('shared_buffers') || ', work_mem ' || current_setting('work_mem') || ', jit '
     || current_setting('jit') || ', fsync ' || current_setting('fsync')"
ask "SELECT '$rows staged rows, about ' || pg_relation_size('base_old') / $rows
     || ' bytes each with their headers; medians of $repeat runs, CHECKPOINT before each'"
echo
sql <<'END'
WITH medians AS (
    SELECT profile, method,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds::float8)::numeric AS seconds,
           percentile_disc(0.5) WITHIN GROUP (ORDER BY wal) AS wal
    FROM measured GROUP BY profile, method),
goals (profile, number, ratio, wal, what) AS (
    VALUES ('identical', 1, 0.35, 100000, 'all rows as stored'),
           ('mix', 2, 0.65, NULL, '50% new, 10% changed, 40% as stored'),
           ('replay', 3, 0.1, NULL, 'the mix again: the same batch id, content verified'))
SELECT g.profile || ': ' || g.what AS profile,
       round(n.seconds, 2) AS "naive s", round(m.seconds, 2) AS "merge s",
       round(m.seconds / n.seconds, 3) AS ratio,
       g.ratio || CASE WHEN m.seconds / n.seconds <= g.ratio THEN ' met' ELSE ' MISSED' END AS goal,
       round(n.wal / 1e6, 1) AS "naive MB", round(m.wal / 1e6, 3) AS "merge MB",
       CASE WHEN g.wal IS NULL THEN '' WHEN m.wal < g.wal THEN '0.1 met' ELSE '0.1 MISSED' END AS "goal MB",
       round((f.seconds - c.seconds) / m.seconds * 100) || '%' AS fingerprint
FROM goals g
JOIN medians n ON n.profile = g.profile AND n.method = 'naive'
JOIN medians m ON m.profile = g.profile AND m.method = 'idem_merge'
JOIN medians f ON f.profile = g.profile AND f.method = 'fingerprint'
JOIN medians c ON c.profile = g.profile AND c.method = 'scan'
ORDER BY g.number;
\pset title 'Single runs, seconds'
SELECT profile, method, string_agg(round(seconds, 2)::text, ' ' ORDER BY seconds) AS runs
FROM measured GROUP BY profile, method ORDER BY profile, method;
END
echo "MB is WAL; fingerprint is idem_fingerprint() less a plain scan, as a share of the merge's time."

differing=$(ask "SELECT string_agg(profile, ', ') FROM (
                     SELECT profile FROM measured GROUP BY profile HAVING count(DISTINCT content) <> 1) p")
[ -z "$differing" ] || die "the methods ended with different rows: $differing"
echo "both methods ended with the same rows in every run"
