-- Fills the ledger with :ledger batches, all like the one that is merged here.
SELECT FROM idem_merge('staging', 'target', '{id}', 'batch 0') \g /dev/null
SELECT format('INSERT INTO idem_ledger SELECT %s FROM idem_ledger, generate_series(1, %s) AS n WHERE batch_id = %L',
              string_agg(CASE attname WHEN 'batch_id' THEN '''batch '' || n' ELSE quote_ident(attname) END,
                         ', ' ORDER BY attnum), :ledger, 'batch 0')
FROM pg_attribute WHERE attrelid = 'idem_ledger'::regclass AND attnum > 0 AND NOT attisdropped \gexec
VACUUM (FREEZE, ANALYZE) idem_ledger;
CHECKPOINT;
