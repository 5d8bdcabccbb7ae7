-- What dbt does for incremental_strategy = 'delete+insert'.
BEGIN;
DELETE FROM target WHERE (id) IN (SELECT DISTINCT id FROM :source AS s);
INSERT INTO target (id, account, status, amount, note, created_at, updated_at)
    (SELECT id, account, status, amount, note, created_at, updated_at FROM :source AS s);
COMMIT;
