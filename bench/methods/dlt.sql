-- What dlt does for write_disposition = 'merge' with a primary key.
BEGIN;
DELETE FROM target AS d WHERE EXISTS (SELECT 1 FROM staging AS s WHERE d.id = s.id);
INSERT INTO target (id, account, status, amount, note, created_at, updated_at)
    SELECT id, account, status, amount, note, created_at, updated_at
    FROM (SELECT row_number() OVER (PARTITION BY id ORDER BY :newest_first) AS _dlt_dedup_rn,
                 id, account, status, amount, note, created_at, updated_at
          FROM staging) AS _dlt_dedup_numbered
    WHERE _dlt_dedup_rn = 1;
COMMIT;
