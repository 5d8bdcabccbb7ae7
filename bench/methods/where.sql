-- The naive one, but what has not changed is locked only, not written.
INSERT INTO target SELECT * FROM :source AS s
ON CONFLICT (id) DO UPDATE SET account = excluded.account, status = excluded.status,
    amount = excluded.amount, note = excluded.note, created_at = excluded.created_at,
    updated_at = excluded.updated_at
WHERE (target.account, target.status, target.amount, target.note, target.created_at, target.updated_at)
      IS DISTINCT FROM
      (excluded.account, excluded.status, excluded.amount, excluded.note, excluded.created_at, excluded.updated_at);
