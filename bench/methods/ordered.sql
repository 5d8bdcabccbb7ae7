-- The naive one, in the order of the index.
INSERT INTO target SELECT * FROM :source AS s ORDER BY id
ON CONFLICT (id) DO UPDATE SET account = excluded.account, status = excluded.status,
    amount = excluded.amount, note = excluded.note, created_at = excluded.created_at,
    updated_at = excluded.updated_at;
