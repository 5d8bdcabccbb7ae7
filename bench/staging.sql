-- The tables of one profile: :stored_table, of which targets are copies, and
-- staging. Stored rows are written in the order of their bigint key, staged ones
-- are shuffled, the same in every run.
SET client_min_messages = warning;
SELECT CASE :'key' WHEN 'uuid' THEN 'md5(id::text)::uuid AS id' ELSE 'id' END AS id \gset

DROP TABLE IF EXISTS staging, merged;
CREATE TABLE staging AS
    SELECT :id, account, status, amount, note, created_at, updated_at
    FROM make_staged(:'kind', :staged, greatest(1, :stored / :staged))
    ORDER BY md5(id::text || updated_at);

CREATE TABLE IF NOT EXISTS :stored_table AS
    SELECT :id, account, status, amount, note, created_at, updated_at
    FROM generate_series(1, :stored::bigint) AS n, make_row(2 * n, 0)
    ORDER BY n;

-- What a merge of staging makes of the stored rows.
\if :merged
CREATE TABLE merged AS
    SELECT * FROM :stored_table o WHERE NOT EXISTS (SELECT FROM staging s WHERE s.id = o.id)
    UNION ALL
    SELECT * FROM staging
    ORDER BY id;
\endif

VACUUM (FREEZE, ANALYZE) staging;
\if :copies
COPY (SELECT * FROM staging ORDER BY id) TO :'copy_file';
\endif
