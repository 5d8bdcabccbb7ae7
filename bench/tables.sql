-- What all profiles need.
CREATE EXTENSION idempotent_ingest;

CREATE FUNCTION make_row(key bigint, revision int)
RETURNS TABLE (id bigint, account int, status text, amount numeric(12,2), note text,
               created_at timestamptz, updated_at timestamptz)
LANGUAGE sql IMMUTABLE AS $$
    SELECT key, (key % 99991)::int, (ARRAY['new', 'paid', 'sent', 'done'])[1 + key % 4],
           (key % 1000000)::numeric / 100 + revision,
           md5(key::text) || md5(revision::text) || md5((key + 1)::text) || md5((key + 2)::text),
           timestamptz '2026-01-01 00:00:00+00' + key * interval '1 second',
           timestamptz '2026-01-01 00:00:00+00' + (key + revision) * interval '1 second'
$$;

-- Stored rows have even keys and new ones odd keys, so that new keys fall
-- between old ones. Where the target is larger than staging, every stride'th of
-- its rows is staged.
--   identical    all as stored
--   changed      one of ten has changed
--   changed_all  all have changed
--   mix          of ten rows five are new, one has changed, four are as stored
--   new          none is stored
--   above        none is stored, and all keys are above the largest stored one
--   duplicates   the mix, but every fifth row is an older state of another one
CREATE FUNCTION make_staged(kind text, staged bigint, stride bigint)
RETURNS TABLE (id bigint, account int, status text, amount numeric(12,2), note text,
               created_at timestamptz, updated_at timestamptz)
LANGUAGE sql IMMUTABLE AS $$
    SELECT r.*
    FROM generate_series(1, staged) AS i,
         LATERAL (SELECT kind = 'duplicates' AND i % 5 = 4 AS older) d,
         LATERAL (SELECT i - older::int AS n) n,
         LATERAL (SELECT kind = 'new' OR kind IN ('mix', 'duplicates') AND n % 10 < 5 AS is_new,
                         kind = 'changed_all'
                         OR kind IN ('changed', 'mix', 'duplicates') AND n % 10 = 5 AS has_changed) c,
         make_row(CASE WHEN kind = 'above' THEN 2 * (staged * stride + i)
                       ELSE 2 * n * stride + is_new::int END,
                  has_changed::int - older::int) AS r
$$;

-- What a user would write for small batches: see small.pgbench.
CREATE TABLE hand_ledger (
    batch_id   text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE FUNCTION hand_merge(batch_id text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    applied bigint;
BEGIN
    INSERT INTO hand_ledger VALUES (batch_id) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO target SELECT * FROM incoming ORDER BY id
    ON CONFLICT (id) DO UPDATE SET account = excluded.account, status = excluded.status,
        amount = excluded.amount, note = excluded.note, created_at = excluded.created_at,
        updated_at = excluded.updated_at;
    GET DIAGNOSTICS applied = ROW_COUNT;
    RETURN applied;
END
$$;

-- A temporary staging table, filled anew for each batch: half of the keys are
-- stored, half are new, until they come again.
CREATE FUNCTION fill(staged int, stored bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF to_regclass('pg_temp.incoming') IS NULL THEN
        CREATE TEMP TABLE incoming (LIKE target);
    ELSE
        TRUNCATE incoming;
    END IF;
    INSERT INTO incoming
        SELECT r.*
        FROM (SELECT DISTINCT 1 + floor(random() * stored * 2)::bigint AS key FROM generate_series(1, staged)) k,
             make_row(k.key, floor(random() * 1000)::int) r;
END
$$;
