-- A limit: find the stored row of each staged key, and look at no other column,
-- in one process.
SET max_parallel_workers_per_gather = 0;
SET enable_mergejoin = off;
SET enable_nestloop = off;
SET enable_indexonlyscan = off;
SELECT count(*) FROM staging JOIN target USING (id) \g /dev/null
