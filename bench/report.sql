-- The report, from results.csv on standard input. Writes what the chart shows to
-- :chart.
CREATE TABLE measured (
    number bigint GENERATED ALWAYS AS IDENTITY, profile text, method text, seconds float8, wal numeric,
    growth numeric, peak numeric, engine text, summary text, content text);
\copy measured (profile, method, seconds, wal, growth, peak, engine, summary, content) FROM pstdin WITH (FORMAT csv, HEADER)

CREATE TABLE methods (method text, is_sql boolean, writes boolean);
INSERT INTO methods VALUES
    ('naive', true, true), ('where', true, true), ('merge', true, true), ('classify', true, true),
    ('ordered', true, true), ('dbt', true, true), ('dlt', true, true), ('insert', true, true),
    ('hand', true, false), ('auto', false, true), ('native', false, true), ('sql', false, true),
    ('copy', false, true), ('copy_then_index', false, true), ('hashjoin', false, false),
    ('fingerprint', false, false), ('scan', false, false);

CREATE VIEW medians AS
    SELECT profile, method, min(number) AS number,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS seconds,
           percentile_disc(0.5) WITHIN GROUP (ORDER BY wal) AS wal,
           percentile_disc(0.5) WITHIN GROUP (ORDER BY growth) AS growth,
           max(peak) AS peak,
           (max(seconds) - min(seconds)) / 2 AS spread,
           string_agg(DISTINCT engine, ', ') AS engine
    FROM measured GROUP BY profile, method;

-- What hand-written SQL is fastest, profile by profile. A plain INSERT cannot be
-- retried, so it is one of them only where keys that ever grow are a reason to
-- write it.
CREATE VIEW compared AS
    SELECT a.profile, a.number, a.seconds, a.wal, n.seconds AS naive,
           b.method AS best_method, b.seconds AS best,
           (SELECT min(seconds) FROM medians e WHERE e.profile = a.profile AND e.method IN ('native', 'sql')) AS best_engine
    FROM medians a
    LEFT JOIN medians n ON n.profile = a.profile AND n.method = 'naive'
    LEFT JOIN LATERAL (SELECT m.* FROM medians m JOIN methods USING (method)
                       WHERE m.profile = a.profile AND is_sql AND (m.method <> 'insert' OR m.profile = 'above')
                       ORDER BY seconds LIMIT 1) b ON true
    WHERE a.method = 'auto';

-- Profiles that did not end as they should have: other rows, or other counts.
CREATE VIEW differing AS
    SELECT profile FROM measured JOIN methods USING (method) WHERE writes
    GROUP BY profile
    HAVING count(DISTINCT content) > 1 OR count(DISTINCT regexp_replace(summary, '^\w+: ', '')) FILTER (WHERE summary <> '') > 1;

-- over: at least so many times as fast as naive, or as the best hand-written SQL;
-- limit: at most so many times as long as that.
CREATE TABLE goals (profile text, naive float8, best float8, limit_method text, limit_ratio float8);
INSERT INTO goals VALUES
    ('identical', 10, 1.7, 'hashjoin', 1.1),
    ('identical_10', 5, 2.5, NULL, NULL),
    ('changed', 6, 1.7, NULL, NULL),
    ('changed_all', 1.7, 1.1, NULL, NULL),
    ('mix', 3, 1.6, NULL, NULL),
    ('mix_10', 2.3, 2.0, NULL, NULL),
    ('mix_uuid', 2.1, 1.4, NULL, NULL),
    ('new', 1.8, 1.3, 'copy', 1.2),
    ('new_10', 1.6, 1.5, 'copy', 1.2),
    ('above', 2.3, 1.05, NULL, NULL),
    ('empty', 4, 2.2, 'copy_then_index', 1.0),
    ('empty_indexes', 4, 2.2, 'copy_then_index', 1.0),
    ('duplicates', 2, 1.4, NULL, NULL),
    ('small_1', NULL, 1.0, NULL, NULL),
    ('small_100', NULL, 1.0, NULL, NULL),
    ('small_1000', NULL, 1.0, NULL, NULL);

CREATE TEMP VIEW checks AS
    SELECT number, 1 AS part, profile, 'over naive' AS what, '>= ' || g.naive AS goal,
           c.naive / seconds AS measured, c.naive / seconds >= g.naive AS met
    FROM compared c JOIN goals g USING (profile) WHERE g.naive IS NOT NULL AND c.naive IS NOT NULL
    UNION ALL
    -- Nothing shall be slower than what a user could write, but for the noise.
    SELECT number, 2, profile, 'over the best SQL, ' || best_method, '>= ' || coalesce(g.best, 0.95),
           c.best / seconds, c.best / seconds >= coalesce(g.best, 0.95)
    FROM compared c LEFT JOIN goals g USING (profile)
    WHERE c.best IS NOT NULL AND profile <> 'replay'
    UNION ALL
    SELECT c.number, 3, profile, 'time over ' || limit_method, '<= ' || limit_ratio,
           c.seconds / m.seconds, c.seconds / m.seconds <= limit_ratio
    FROM compared c JOIN goals g USING (profile) JOIN medians m USING (profile) WHERE m.method = g.limit_method
    UNION ALL
    SELECT number, 4, profile, 'auto over the better engine', '<= 1.05',
           seconds / best_engine, seconds / best_engine <= 1.05
    FROM compared WHERE best_engine IS NOT NULL AND profile <> 'replay'
    UNION ALL
    SELECT number, 5, profile, 'MB of WAL', '<= 0.1', wal / 1e6, wal <= 1e5
    FROM compared WHERE profile LIKE 'identical%'
    UNION ALL
    SELECT c.number, 6, profile, 'fingerprint''s share of the time', '<= 0.05',
           (f.seconds - s.seconds) / c.seconds, (f.seconds - s.seconds) / c.seconds <= 0.05
    FROM compared c JOIN medians f USING (profile) JOIN medians s USING (profile)
    WHERE f.method = 'fingerprint' AND s.method = 'scan'
    UNION ALL
    SELECT number, 7, profile, 'calls/s', '>= 5000', 1 / seconds, 1 / seconds >= 5000
    FROM compared WHERE profile = 'replay_by_id'
    UNION ALL
    SELECT * FROM (
        SELECT DISTINCT ON (method) 1000000, 8, profile, 'MB of memory, ' || method || ', the most of all profiles',
               '<= ' || memory / 1048576, peak / 1024, peak * 1024 <= memory
        FROM medians,
             LATERAL (SELECT pg_size_bytes(current_setting('work_mem'))
                             * current_setting('hash_mem_multiplier')::float8 + 64 * 1048576 AS memory) m
        WHERE method IN ('native', 'sql') AND peak IS NOT NULL
        ORDER BY method, peak DESC) most;

\pset border 2
\pset null ''
\echo
\echo '## Goals'
\echo
\echo 'Ratios of medians; more is better, except for times, shares and megabytes.'
\echo
SELECT profile, what, goal, round(measured::numeric, 2) AS measured, CASE WHEN met THEN 'met' ELSE 'MISSED' END AS verdict
FROM checks ORDER BY number, part;

\echo
\echo '## Medians'
\echo
SELECT m.profile, method, round(m.seconds::numeric, 3) AS seconds,
       round((m.spread / m.seconds * 100)::numeric) AS "+- %", round((c.naive / m.seconds)::numeric, 2) AS "over naive",
       round((c.best / m.seconds)::numeric, 2) AS "over best SQL",
       round(m.wal / 1e6, 1) AS "WAL MB", round(m.growth / 1e6, 1) AS "growth MB",
       round(m.peak / 1024, 0) AS "peak MB", engine
FROM medians m LEFT JOIN compared c USING (profile)
WHERE m.wal IS NOT NULL
ORDER BY m.number;

\echo
\echo '## Small batches, replays, and many at once'
\echo
SELECT profile, method, round(seconds::numeric * 1000, 3) AS "ms", round((spread / seconds * 100)::numeric) AS "+- %", round(1 / seconds::numeric, 0) AS "a second",
       round((first_value(seconds) OVER (PARTITION BY profile ORDER BY number) / seconds)::numeric, 2) AS "over the first"
FROM medians WHERE wal IS NULL
ORDER BY number;

\o :chart
\pset format unaligned
\pset fieldsep ' '
\pset tuples_only on
-- Nobody's SQL knows a replay, so there is nothing to compare it with.
SELECT profile, naive / best, naive / seconds FROM compared
WHERE naive IS NOT NULL AND best IS NOT NULL AND profile <> 'replay' ORDER BY number;
\o
