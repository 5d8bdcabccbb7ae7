MERGE INTO target AS t USING :source AS s ON t.id = s.id
WHEN MATCHED AND (t.account, t.status, t.amount, t.note, t.created_at, t.updated_at)
                 IS DISTINCT FROM (s.account, s.status, s.amount, s.note, s.created_at, s.updated_at)
    THEN UPDATE SET account = s.account, status = s.status, amount = s.amount, note = s.note,
        created_at = s.created_at, updated_at = s.updated_at
WHEN NOT MATCHED
    THEN INSERT (id, account, status, amount, note, created_at, updated_at)
        VALUES (s.id, s.account, s.status, s.amount, s.note, s.created_at, s.updated_at);
