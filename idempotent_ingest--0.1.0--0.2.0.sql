/* idempotent_ingest--0.1.0--0.2.0.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION idempotent_ingest UPDATE TO '0.2.0'" to load this file. \quit

--
-- The ledger: the details of a batch can expire
--
ALTER TABLE @extschema@.idem_ledger
    ALTER COLUMN role DROP NOT NULL,
    ALTER COLUMN options DROP NOT NULL;

COMMENT ON TABLE @extschema@.idem_ledger IS
'One row for each batch that was applied; written by idem_merge(), idem_claim() and idem_forget(), in the transaction of the batch itself, and by idem_maintain(), which clears the details of batches that have expired and leaves their keys. Read it through the view idem_batches.';
COMMENT ON COLUMN @extschema@.idem_ledger.options IS 'options that decide the result, without those at their default: key, version, audit, update, exclude, mode, on_duplicate, on_stale; NULL once the batch has expired, and then fingerprint, counts, engine, elapsed, role, application_name and metadata are NULL as well';

-- The new column is the last one, so that views of users can stay.
CREATE OR REPLACE VIEW @extschema@.idem_batches WITH (security_barrier) AS
SELECT l.target, l.pipeline, l.batch_id, l.operation, l.revision,
       l.rows_staged, l.rows_duplicate, l.rows_inserted, l.rows_updated,
       l.rows_deleted, l.rows_unchanged, l.rows_stale, l.rows_skipped,
       l.fingerprint, l.engine, l.applied_at, l.elapsed, l.role,
       l.application_name, l.xid, l.options, l.metadata,
       l.options IS NULL AS expired
FROM @extschema@.idem_ledger l
WHERE CASE WHEN l.target::pg_catalog.oid OPERATOR(pg_catalog.=) 0
           THEN pg_catalog.pg_has_role(l.claimed_by::pg_catalog.oid, 'USAGE')
           ELSE EXISTS (SELECT FROM pg_catalog.pg_class c
                        WHERE c.oid OPERATOR(pg_catalog.=) l.target::pg_catalog.oid
                          AND c.reltype OPERATOR(pg_catalog.=) l.target_type::pg_catalog.oid
                          AND pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE')
                          AND (pg_catalog.has_table_privilege(c.oid, 'SELECT')
                               OR pg_catalog.has_any_column_privilege(c.oid, 'SELECT')))
      END;

COMMENT ON COLUMN @extschema@.idem_batches.expired IS 'true: the batch is known still, but its details are not';

--
-- Merging: the result has one more column
--
-- What users have granted and revoked shall hold for the new function. In an
-- extension's script it would count as what the extension itself grants, and
-- would not be dumped any more; that record is removed.
SELECT pg_catalog.set_config('idem_update.rights', p.proacl::pg_catalog.text, true),
       pg_catalog.set_config('idem_update.owner', p.proowner::pg_catalog.text, true)
FROM pg_catalog.pg_proc p
WHERE p.oid OPERATOR(pg_catalog.=) '@extschema@.idem_merge(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb)'::pg_catalog.regprocedure;

DROP FUNCTION @extschema@.idem_merge(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb);

CREATE FUNCTION @extschema@.idem_merge(
    staging          regclass,
    target           regclass,
    key_cols         text[]  DEFAULT NULL,
    batch_id         text    DEFAULT NULL,
    pipeline         text    DEFAULT '',
    version_cols     text[]  DEFAULT NULL,
    audit_cols       text[]  DEFAULT NULL,
    update_cols      text[]  DEFAULT NULL,
    exclude_cols     text[]  DEFAULT NULL,
    mode             text    DEFAULT 'upsert',
    on_duplicate     text    DEFAULT NULL,
    on_stale         text    DEFAULT 'skip',
    on_schema_change text    DEFAULT 'error',
    on_replay        text    DEFAULT 'skip',
    on_mismatch      text    DEFAULT 'error',
    nowait           boolean DEFAULT false,
    exclusive        boolean DEFAULT false,
    dry_run          boolean DEFAULT false,
    metadata         jsonb   DEFAULT NULL,
    OUT status         text,
    OUT summary        text,
    OUT batch_id       text,
    OUT pipeline       text,
    OUT target         regclass,
    OUT revision       integer,
    OUT rows_staged    bigint,
    OUT rows_duplicate bigint,
    OUT rows_inserted  bigint,
    OUT rows_updated   bigint,
    OUT rows_deleted   bigint,
    OUT rows_unchanged bigint,
    OUT rows_stale     bigint,
    OUT rows_skipped   bigint,
    OUT fingerprint    text,
    OUT engine         text,
    OUT applied_at     timestamptz,
    OUT elapsed        interval,
    OUT expired        boolean)
AS 'MODULE_PATHNAME', 'idem_merge_0_2'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY INVOKER COST 10000;

COMMENT ON FUNCTION @extschema@.idem_merge(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb) IS
$comment$Brings target up to date from staging and records the batch in the ledger, in the same transaction. A call for a batch that the ledger already has returns the recorded result and writes nothing. Call it as: SELECT * FROM idem_merge(...).
staging: table, view, materialized view or foreign table with the incoming rows; columns pair with the target's by name.
target: table to be brought up to date.
key_cols: columns that identify a row; the target needs a unique index on exactly these. NULL (default): the primary key.
batch_id: name of the batch, at most 255 bytes. NULL (default): derived from the content.
pipeline: sender of the batch, at most 255 bytes; default ''. A batch is (target, pipeline, batch_id).
version_cols: columns that order the states of one key, compared left to right, NULL lowest; a staged row with a lower version than the stored one is stale. Default NULL: none.
audit_cols: columns written with a row, but never a reason to write it, and not part of the fingerprint. Default NULL: none.
update_cols: only these columns change on a match. Default NULL: all that staging has.
exclude_cols: these columns never change on a match. Default NULL: none.
mode: upsert (default), insert (existing rows stay as they are) or update (nothing is inserted).
on_duplicate: several different rows of one key: error, latest (the greatest version wins, a tie is an error) or any (the greatest version, then the greatest image wins). Default NULL: latest with version_cols, otherwise error. Identical rows always collapse.
on_stale: skip (default), error (II003) or apply.
on_schema_change: staged columns that the target lacks: error (default), ignore or add_columns (ALTER TABLE, ACCESS EXCLUSIVE lock).
on_replay: skip (default: return the recorded result), error (II002) or reapply.
on_mismatch: known batch_id with other content, key or options: error (default, II001), skip (staging is not read) or apply.
nowait: true: 55P03 instead of waiting for the same batch in another session; default false.
exclusive: true: an ACCESS EXCLUSIVE lock on the target is allowed, which only its owner may have: an empty target is filled before its indexes are built; default false.
dry_run: true: exact counts, nothing written or claimed, and no lock but ACCESS SHARE; works on a standby; default false.
metadata: kept in the ledger, for example a file name or offsets. Default NULL.
Returns one row: status (applied, replayed, reapplied, dry_run), a summary for logs, and the counts: rows_staged is the sum of the others. expired is true if the batch is known, but its details are not any more: then the counts are NULL.
Errors: 21000 duplicate keys, 23502 NULL key, 42P10 no unique index on the key, 42703 columns differ, II001 mismatch, II002 already applied, II003 stale row, II004 replay into a target that lost the batch, II005 derived id seen before but not in the target any more; and whatever the equivalent INSERT would raise.$comment$;

DO $restore$
DECLARE
    merge CONSTANT pg_catalog.regprocedure := '@extschema@.idem_merge(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb)'::pg_catalog.regprocedure;
    -- NULL, the default, is the empty string here
    rights CONSTANT pg_catalog.text := pg_catalog.current_setting('idem_update.rights');
    owner CONSTANT pg_catalog.text := pg_catalog.current_setting('idem_update.owner');
    item record;
BEGIN
    IF rights OPERATOR(pg_catalog.=) '' THEN
        RETURN;
    END IF;
    EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', merge);
    EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM %I', merge, pg_catalog.pg_get_userbyid(owner::pg_catalog.oid));
    -- Whoever had passed a right on, the owner does it now.
    FOR item IN
        SELECT a.grantee, pg_catalog.bool_or(a.is_grantable) AS grantable
        FROM pg_catalog.aclexplode(rights::pg_catalog.aclitem[]) a
        GROUP BY a.grantee
    LOOP
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %s%s', merge,
            CASE WHEN item.grantee OPERATOR(pg_catalog.=) 0 THEN 'PUBLIC'
                 ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(item.grantee)) END,
            CASE WHEN item.grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
    DELETE FROM pg_catalog.pg_init_privs i
    WHERE i.classoid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
      AND i.objoid OPERATOR(pg_catalog.=) merge::pg_catalog.oid;
    -- From PostgreSQL 17 on, roles are kept from being dropped by it, too.
    DELETE FROM pg_catalog.pg_shdepend d
    WHERE d.dbid OPERATOR(pg_catalog.=) (SELECT b.oid FROM pg_catalog.pg_database b
                                         WHERE b.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
      AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
      AND d.objid OPERATOR(pg_catalog.=) merge::pg_catalog.oid
      AND d.deptype OPERATOR(pg_catalog.=) 'i';
END $restore$;

--
-- Retention
--
CREATE TABLE @extschema@.idem_retention (
    target        regclass NOT NULL,
    pipeline      text COLLATE "C",
    target_type   regtype NOT NULL,
    retention     interval,
    key_retention interval,
    CONSTRAINT idem_retention_key UNIQUE NULLS NOT DISTINCT (target, pipeline)
);

COMMENT ON TABLE @extschema@.idem_retention IS
'How long batches are kept where that is not as the settings idempotent_ingest.retention and idempotent_ingest.key_retention say; written by idem_set_retention().';
COMMENT ON COLUMN @extschema@.idem_retention.target IS 'table whose batches are meant; 0 for claims without a target';
COMMENT ON COLUMN @extschema@.idem_retention.pipeline IS 'pipeline whose batches are meant; NULL for all that have no row of their own';
COMMENT ON COLUMN @extschema@.idem_retention.target_type IS 'row type of the target, as in idem_ledger';
COMMENT ON COLUMN @extschema@.idem_retention.retention IS 'how long details are kept; 0 for ever, NULL as for the whole target, or as the setting says';
COMMENT ON COLUMN @extschema@.idem_retention.key_retention IS 'how long a batch is recognised; 0 for ever, NULL as for the whole target, or as the setting says';

REVOKE ALL ON @extschema@.idem_retention FROM PUBLIC;

SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_retention', $filter$
WHERE target::pg_catalog.oid OPERATOR(pg_catalog.=) 0
   OR EXISTS (SELECT FROM pg_catalog.pg_class c
              WHERE c.oid OPERATOR(pg_catalog.=) target::pg_catalog.oid
                AND c.reltype OPERATOR(pg_catalog.=) target_type::pg_catalog.oid)
$filter$);

-- What maintenance knows about the ledger. It finds all of it out anew if it is
-- lost, so that it need not be dumped.
CREATE TABLE @extschema@.idem_sweep (
    first_block bigint NOT NULL,
    due         timestamptz NOT NULL,
    basis       text COLLATE "C" NOT NULL,
    CONSTRAINT idem_sweep_pkey PRIMARY KEY (first_block)
);
CREATE INDEX idem_sweep_due_idx ON @extschema@.idem_sweep (basis, due);

COMMENT ON TABLE @extschema@.idem_sweep IS
'When idem_maintain() is to look at a part of the ledger again.';
COMMENT ON COLUMN @extschema@.idem_sweep.first_block IS 'first block of the part';
COMMENT ON COLUMN @extschema@.idem_sweep.due IS 'when something in it can have expired';
COMMENT ON COLUMN @extschema@.idem_sweep.basis IS 'hash of what that was computed from; another one means now';
COMMENT ON INDEX @extschema@.idem_sweep_due_idx IS 'finds a part that is to be looked at';

REVOKE ALL ON @extschema@.idem_sweep FROM PUBLIC;

CREATE TABLE @extschema@.idem_newest (
    target     regclass NOT NULL,
    pipeline   text COLLATE "C" NOT NULL,
    claimed_by regrole NOT NULL,
    batch_id   text COLLATE "C" NOT NULL,
    CONSTRAINT idem_newest_pkey PRIMARY KEY (target, pipeline, claimed_by)
);

COMMENT ON TABLE @extschema@.idem_newest IS
'For each target and pipeline a batch that let older ones expire: the newest that idem_maintain() knows of.';
COMMENT ON COLUMN @extschema@.idem_newest.target IS 'as in idem_ledger';
COMMENT ON COLUMN @extschema@.idem_newest.pipeline IS 'as in idem_ledger';
COMMENT ON COLUMN @extschema@.idem_newest.claimed_by IS 'as in idem_ledger';
COMMENT ON COLUMN @extschema@.idem_newest.batch_id IS 'as in idem_ledger';

REVOKE ALL ON @extschema@.idem_newest FROM PUBLIC;

CREATE FUNCTION @extschema@.idem_set_retention(
    target        regclass,
    retention     interval DEFAULT NULL,
    key_retention interval DEFAULT NULL,
    pipeline      text     DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'idem_set_retention'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY INVOKER COST 1000;

COMMENT ON FUNCTION @extschema@.idem_set_retention(regclass, interval, interval, text) IS
$comment$Sets how long the batches of a table are kept, in place of the settings idempotent_ingest.retention and idempotent_ingest.key_retention. For the owner of the table. With both NULL, what was set is removed.
target: table whose batches are meant. NULL: claims without a target, of whatever role; for the owner of the extension only.
retention: age at which the details of a batch are cleared; 0 is never. NULL (default): as set for the whole target, or by the setting.
key_retention: age at which a batch is not recognised any more; 0 is never. NULL (default): as set for the whole target, or by the setting.
pipeline: pipeline whose batches are meant. NULL (default): all that have no retention of their own.$comment$;

CREATE PROCEDURE @extschema@.idem_maintain(
    INOUT batches_expired bigint DEFAULT 0,
    INOUT batches_deleted bigint DEFAULT 0)
AS 'MODULE_PATHNAME', 'idem_maintain'
LANGUAGE C SECURITY INVOKER;

COMMENT ON PROCEDURE @extschema@.idem_maintain(bigint, bigint) IS
$comment$Clears the details of batches that are older than their retention, and removes batches that are older than their key_retention and those of dropped tables. Commits after each small step, so that it cannot run in a transaction block, and can run beside itself and beside merges. Not for everybody unless granted.
batches_expired: how many batches have lost their details; what is passed in is ignored.
batches_deleted: how many batches are not known any more; what is passed in is ignored.$comment$;

REVOKE ALL ON PROCEDURE @extschema@.idem_maintain(bigint, bigint) FROM PUBLIC;
