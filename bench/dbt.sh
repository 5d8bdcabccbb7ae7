#!/bin/bash
# A dbt model of 1,000,000 rows and an increment of 100,000, of which 10 % differ: by
# idem_merge, and by dbt-postgres' own merge and delete+insert. Needs a server with
# the extension, in which PGDATABASE may be used: make bench does not start one.
# The tables, in the schema bench_dbt, are made anew for each run.
#   STORED=1000000 STAGED=100000 REPEAT=5 bash bench/dbt.sh
# Prints the medians of what dbt calls the model's execution time, which includes
# the temporary table that each strategy starts from, and of the WAL.
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

stored=${STORED:-1000000}
staged=${STAGED:-100000}
repeat=${REPEAT:-5}
strategies="idem_merge merge delete+insert"
run() { PGOPTIONS="-c client_min_messages=warning" psql -XAtq -v ON_ERROR_STOP=1 "$@"; }

make_workdir
python_environment dbt dbt/test/requirements.txt
dbt=${python%/*}/dbt
export DBT_SEND_ANONYMOUS_USAGE_STATS=false DBT_PROFILES_DIR=$work/project PGUSER=${PGUSER:-postgres}

mkdir -p "$work/project/models" "$work/project/dbt_packages"
ln -s "$PWD/dbt" "$work/project/dbt_packages/idempotent_ingest"
cp -r dbt/example/macros dbt/example/profiles.yml "$work/project/"
cd "$work/project"
echo "packages: [{local: $(readlink -f dbt_packages/idempotent_ingest)}]" >packages.yml
sed -i 's/schema: shop/schema: bench_dbt/' profiles.yml
cat >dbt_project.yml <<YML
{name: bench, version: 1.0.0, config-version: 2, profile: shop}
YML
for strategy in $strategies; do
    cat >"models/by_${strategy/+/_}.sql" <<SQL
{{ config(materialized='incremental', incremental_strategy='$strategy', unique_key='id') }}
select * from bench_dbt.increment
SQL
done

run <<SQL
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
DROP SCHEMA IF EXISTS bench_dbt CASCADE;
CREATE SCHEMA bench_dbt;
CREATE TABLE bench_dbt.base AS
SELECT i::bigint AS id, 'customer ' || i % 50000 AS customer, (i % 1000)::numeric(10,2) AS amount, 'EUR' AS currency,
       i % 7 AS status, timestamptz '2026-01-01' + i * interval '1 second' AS ordered_at, md5(i::text) AS reference,
       'some words of a note, as people write them, about order ' || i AS note
FROM generate_series(1, $stored) AS i ORDER BY hashint8(i);
CREATE TABLE bench_dbt.increment AS
SELECT id, customer, amount + CASE WHEN id % 10 = 0 THEN 1 ELSE 0 END AS amount, currency, status, ordered_at, reference, note
FROM bench_dbt.base WHERE id > $stored - $staged;
ANALYZE bench_dbt.base, bench_dbt.increment;
SQL

for ((i = 0; i < repeat; i++)); do
    for strategy in $strategies; do
        model=by_${strategy/+/_}
        run -c "DROP TABLE IF EXISTS bench_dbt.$model" -c "CREATE TABLE bench_dbt.$model AS TABLE bench_dbt.base" \
            -c "CREATE UNIQUE INDEX ON bench_dbt.$model (id)" -c "VACUUM ANALYZE bench_dbt.$model" -c CHECKPOINT
        lsn=$(run -c "SELECT pg_current_wal_lsn()")
        "$dbt" --quiet run --select "$model" || die "$strategy failed"
        echo "$strategy" "$(perl -MJSON::PP -0777 -ne 'print decode_json($_)->{results}[0]{execution_time}' target/run_results.json)" \
            "$(run -c "SELECT round((pg_current_wal_lsn() - '$lsn') / 1e6, 1)")" \
            "$(run -c "SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM bench_dbt.$model t")"
    done
done | tee "$work/results"

[ "$(cut -d ' ' -f 4 "$work/results" | sort -u | wc -l)" = 1 ] || die "the strategies do not end with the same rows"
median()
{
    awk -v s="$1" -v f="$2" '$1 == s { print $f }' "$work/results" | sort -n | awk '{ v[NR] = $1 } END { printf "%.2f", v[int((NR + 1) / 2)] }'
}
for strategy in $strategies; do
    echo "$strategy: $(median "$strategy" 2) s, $(median "$strategy" 3) MB of WAL"
done
