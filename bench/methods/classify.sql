-- First find what is new or has changed, then write that, in the order of the
-- index.
INSERT INTO target
    SELECT s.*
    FROM :source AS s LEFT JOIN target AS t ON t.id = s.id
    WHERE t.id IS NULL
          OR (t.account, t.status, t.amount, t.note, t.created_at, t.updated_at)
             IS DISTINCT FROM (s.account, s.status, s.amount, s.note, s.created_at, s.updated_at)
    ORDER BY s.id
ON CONFLICT (id) DO UPDATE SET account = excluded.account, status = excluded.status,
    amount = excluded.amount, note = excluded.note, created_at = excluded.created_at,
    updated_at = excluded.updated_at;
