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
COMMENT ON COLUMN @extschema@.idem_audit.entry IS 'the ledger row as it was; of a batch that was applied again without earlier_fingerprints, which the row still has';

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
-- Merging: one more argument, and one more column in the result
--
-- What users have granted and revoked shall hold for the new functions. In an
-- extension's script it would count as what the extension itself grants, and
-- would not be dumped any more; that record is removed.
SELECT pg_catalog.set_config('idem_update.' OPERATOR(pg_catalog.||) p.proname OPERATOR(pg_catalog.||) '_rights',
                             p.proacl::pg_catalog.text, true),
       pg_catalog.set_config('idem_update.' OPERATOR(pg_catalog.||) p.proname OPERATOR(pg_catalog.||) '_owner',
                             p.proowner::pg_catalog.text, true)
FROM pg_catalog.pg_proc p
WHERE p.oid OPERATOR(pg_catalog.=) '@extschema@.idem_merge(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb)'::pg_catalog.regprocedure
   OR p.oid OPERATOR(pg_catalog.=) '@extschema@.idem_explain(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb)'::pg_catalog.regprocedure;

DROP FUNCTION @extschema@.idem_merge(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb);
DROP FUNCTION @extschema@.idem_explain(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb);

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
    target_predicate text    DEFAULT NULL,
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

COMMENT ON FUNCTION @extschema@.idem_merge(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb, text) IS
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
target_predicate: condition on columns of target that nearly all of its rows with a key of this batch meet, for example "day >= date '2026-11-01'". The rest of target is not scanned: a staged row that finds nothing where the condition holds is looked up by its key, so that the result is the same without it. Default NULL: none.
Returns one row: status (applied, replayed, reapplied, dry_run), a summary for logs, and the counts: rows_staged is the sum of the others. expired is true if the batch is known, but its details are not any more: then the counts are NULL.
Errors: 21000 duplicate keys, 23502 NULL key, 42P10 no unique index on the key, 42703 columns differ, II001 mismatch, II002 already applied, II003 stale row, II004 replay into a target that lost the batch, II005 derived id seen before but not in the target any more; and whatever the equivalent INSERT would raise.$comment$;

CREATE FUNCTION @extschema@.idem_explain(
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
    target_predicate text    DEFAULT NULL,
    OUT engine       text,
    OUT reason       text,
    OUT locks        text,
    OUT statement    text)
AS 'MODULE_PATHNAME', 'idem_explain_0_2'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY INVOKER COST 1000;

COMMENT ON FUNCTION @extschema@.idem_explain(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb, text) IS
$comment$What idem_merge() would do with the same arguments: the engine and why, the locks in the order in which they are taken, and the SQL statement. Nothing is read from staging or target and nothing is written. $1 in the statement stands for the running merge; the statement is to be read, not to be run by hand.$comment$;

COMMENT ON FUNCTION @extschema@.idem_row_propose(bigint, boolean, "any") IS
'Internal to idempotent_ingest: lets the row pass that is about to be written, unless the batch has a fault.';

DO $restore$
DECLARE
    name pg_catalog.text;
    function pg_catalog.regprocedure;
    rights pg_catalog.text;
    owner pg_catalog.text;
    item record;
BEGIN
    FOREACH name IN ARRAY '{idem_merge,idem_explain}'::pg_catalog.text[] LOOP
        function := pg_catalog.format('@extschema@.%s(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb, text)', name);
        -- NULL, the default, is the empty string here
        rights := pg_catalog.current_setting(pg_catalog.format('idem_update.%s_rights', name));
        owner := pg_catalog.current_setting(pg_catalog.format('idem_update.%s_owner', name));
        CONTINUE WHEN rights OPERATOR(pg_catalog.=) '';
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', function);
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM %I', function, pg_catalog.pg_get_userbyid(owner::pg_catalog.oid));
        -- Whoever had passed a right on, the owner does it now.
        FOR item IN
            SELECT a.grantee, pg_catalog.bool_or(a.is_grantable) AS grantable
            FROM pg_catalog.aclexplode(rights::pg_catalog.aclitem[]) a
            GROUP BY a.grantee
        LOOP
            EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %s%s', function,
                CASE WHEN item.grantee OPERATOR(pg_catalog.=) 0 THEN 'PUBLIC'
                     ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(item.grantee)) END,
                CASE WHEN item.grantable THEN ' WITH GRANT OPTION' ELSE '' END);
        END LOOP;
        DELETE FROM pg_catalog.pg_init_privs i
        WHERE i.classoid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
          AND i.objoid OPERATOR(pg_catalog.=) function::pg_catalog.oid;
        -- From PostgreSQL 17 on, roles are kept from being dropped by it, too.
        DELETE FROM pg_catalog.pg_shdepend d
        WHERE d.dbid OPERATOR(pg_catalog.=) (SELECT b.oid FROM pg_catalog.pg_database b
                                             WHERE b.datname OPERATOR(pg_catalog.=) pg_catalog.current_database())
          AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
          AND d.objid OPERATOR(pg_catalog.=) function::pg_catalog.oid
          AND d.deptype OPERATOR(pg_catalog.=) 'i';
    END LOOP;
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

-- Its key can be NULL, which is no replica identity: FOR ALL TABLES publishes it.
ALTER TABLE @extschema@.idem_retention REPLICA IDENTITY FULL;

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
    looked_at   timestamptz NOT NULL DEFAULT '-infinity',
    CONSTRAINT idem_sweep_pkey PRIMARY KEY (first_block)
);
CREATE INDEX idem_sweep_due_idx ON @extschema@.idem_sweep (basis, due, first_block);

COMMENT ON TABLE @extschema@.idem_sweep IS
'When idem_maintain() is to look at a part of the ledger again.';
COMMENT ON COLUMN @extschema@.idem_sweep.first_block IS 'first block of the part';
COMMENT ON COLUMN @extschema@.idem_sweep.due IS 'when something in it can have expired';
COMMENT ON COLUMN @extschema@.idem_sweep.basis IS 'hash of what that was computed from; another one means now';
COMMENT ON COLUMN @extschema@.idem_sweep.looked_at IS 'when it was looked at last; a round does so once, whatever the basis is then';
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
'For each target and pipeline the newest batch that idem_maintain() knows of: it lets older ones expire.';
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
$comment$Clears the details of batches that are older than their retention, and removes batches that are older than their key_retention and those of dropped tables. Removes jobs that ended longer ago than idempotent_ingest.job_retention, and fails those of dropped roles. Commits after each small step, so that it cannot run in a transaction block, and can run beside itself and beside merges. Not for everybody unless granted.
batches_expired: how many batches have lost their details; what is passed in is ignored.
batches_deleted: how many batches are not known any more; what is passed in is ignored.$comment$;

REVOKE ALL ON PROCEDURE @extschema@.idem_maintain(bigint, bigint) FROM PUBLIC;

--
-- Monitoring
--
CREATE FUNCTION @extschema@.idem_stats_memory(
    OUT target regclass,
    OUT batches_applied bigint,
    OUT batches_reapplied bigint,
    OUT batches_replayed bigint,
    OUT errors_mismatch bigint,
    OUT errors_already_applied bigint,
    OUT errors_stale_row bigint,
    OUT errors_lost_batch bigint,
    OUT errors_not_in_target bigint,
    OUT errors_other bigint,
    OUT rows_staged bigint,
    OUT rows_duplicate bigint,
    OUT rows_inserted bigint,
    OUT rows_updated bigint,
    OUT rows_deleted bigint,
    OUT rows_unchanged bigint,
    OUT rows_stale bigint,
    OUT rows_skipped bigint,
    OUT elapsed_seconds double precision,
    OUT wal_bytes bigint,
    OUT last_batch_at timestamptz,
    OUT since timestamptz)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'idem_stats_memory'
LANGUAGE C STABLE PARALLEL RESTRICTED STRICT COST 100 ROWS 100;

COMMENT ON FUNCTION @extschema@.idem_stats_memory() IS
'What merges into the tables of this database have done since the server was started, as far as the current user may know; no rows if the library is not in shared_preload_libraries. Read it through the view idem_stats.';

CREATE FUNCTION @extschema@.idem_stats_in_memory() RETURNS boolean
AS 'MODULE_PATHNAME', 'idem_stats_in_memory'
LANGUAGE C STABLE PARALLEL SAFE STRICT;

COMMENT ON FUNCTION @extschema@.idem_stats_in_memory() IS
'Whether merges are counted in shared memory: the library is in shared_preload_libraries.';

CREATE FUNCTION @extschema@.idem_stats_reset() RETURNS void
AS 'MODULE_PATHNAME', 'idem_stats_reset'
LANGUAGE C VOLATILE PARALLEL UNSAFE STRICT;

COMMENT ON FUNCTION @extschema@.idem_stats_reset() IS
'Lets the counts in shared memory, of all databases, begin at zero. Not for everybody unless granted.';

REVOKE ALL ON FUNCTION @extschema@.idem_stats_reset() FROM PUBLIC;

CREATE VIEW @extschema@.idem_stats WITH (security_barrier) AS
SELECT s.target,
       s.batches_applied,
       s.batches_reapplied,
       s.batches_replayed,
       s.errors_mismatch,
       s.errors_already_applied,
       s.errors_stale_row,
       s.errors_lost_batch,
       s.errors_not_in_target,
       s.errors_other,
       s.rows_staged,
       s.rows_duplicate,
       s.rows_inserted,
       s.rows_updated,
       s.rows_deleted,
       s.rows_unchanged,
       s.rows_stale,
       s.rows_skipped,
       s.elapsed_seconds,
       s.wal_bytes,
       s.last_batch_at,
       s.since,
       'memory'::pg_catalog.text AS source
FROM @extschema@.idem_stats_memory() s
UNION ALL
SELECT l.target,
       l.batches_applied, l.batches_reapplied,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       l.rows_staged, l.rows_duplicate, l.rows_inserted, l.rows_updated,
       l.rows_deleted, l.rows_unchanged, l.rows_stale, l.rows_skipped,
       l.elapsed_seconds, NULL, l.last_batch_at, NULL, 'ledger'
FROM (SELECT b.target, b.target_type,
             pg_catalog.count(*) AS batches_applied,
             pg_catalog.sum(b.revision OPERATOR(pg_catalog.-) 1) AS batches_reapplied,
             pg_catalog.sum(b.rows_staged)::pg_catalog.int8 AS rows_staged,
             pg_catalog.sum(b.rows_duplicate)::pg_catalog.int8 AS rows_duplicate,
             pg_catalog.sum(b.rows_inserted)::pg_catalog.int8 AS rows_inserted,
             pg_catalog.sum(b.rows_updated)::pg_catalog.int8 AS rows_updated,
             pg_catalog.sum(b.rows_deleted)::pg_catalog.int8 AS rows_deleted,
             pg_catalog.sum(b.rows_unchanged)::pg_catalog.int8 AS rows_unchanged,
             pg_catalog.sum(b.rows_stale)::pg_catalog.int8 AS rows_stale,
             pg_catalog.sum(b.rows_skipped)::pg_catalog.int8 AS rows_skipped,
             pg_catalog.sum(EXTRACT(epoch FROM b.elapsed))::pg_catalog.float8 AS elapsed_seconds,
             pg_catalog.max(b.applied_at) AS last_batch_at
      FROM @extschema@.idem_ledger b
      WHERE b.operation OPERATOR(pg_catalog.=) 'merge'
        AND NOT @extschema@.idem_stats_in_memory()
      GROUP BY b.target, b.target_type) l
JOIN pg_catalog.pg_class c
     ON c.oid OPERATOR(pg_catalog.=) l.target::pg_catalog.oid
        AND c.reltype OPERATOR(pg_catalog.=) l.target_type::pg_catalog.oid
WHERE pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')
      OR pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE')
         AND (pg_catalog.has_table_privilege(c.oid, 'SELECT')
              OR pg_catalog.has_any_column_privilege(c.oid, 'SELECT'));

COMMENT ON VIEW @extschema@.idem_stats IS
'What merges have done, for each target: for the tables that the current user may SELECT from, or for all with the rights of pg_read_all_stats. From shared memory if the library is in shared_preload_libraries, and otherwise from the ledger, which does not know of replays, errors and WAL, nor of the rows and times of batches that have expired.';
COMMENT ON COLUMN @extschema@.idem_stats.target IS 'table that was merged into';
COMMENT ON COLUMN @extschema@.idem_stats.batches_applied IS 'calls that applied a batch';
COMMENT ON COLUMN @extschema@.idem_stats.batches_reapplied IS 'calls that applied a known batch again';
COMMENT ON COLUMN @extschema@.idem_stats.batches_replayed IS 'calls that returned the recorded result';
COMMENT ON COLUMN @extschema@.idem_stats.errors_mismatch IS 'calls refused with II001';
COMMENT ON COLUMN @extschema@.idem_stats.errors_already_applied IS 'calls refused with II002';
COMMENT ON COLUMN @extschema@.idem_stats.errors_stale_row IS 'calls refused with II003';
COMMENT ON COLUMN @extschema@.idem_stats.errors_lost_batch IS 'calls refused with II004';
COMMENT ON COLUMN @extschema@.idem_stats.errors_not_in_target IS 'calls refused with II005';
COMMENT ON COLUMN @extschema@.idem_stats.errors_other IS 'calls that failed otherwise, after the privileges were checked';
COMMENT ON COLUMN @extschema@.idem_stats.rows_staged IS 'rows staged in batches that were applied';
COMMENT ON COLUMN @extschema@.idem_stats.rows_duplicate IS 'rows that another row of the same key replaced';
COMMENT ON COLUMN @extschema@.idem_stats.rows_inserted IS 'rows inserted into the target';
COMMENT ON COLUMN @extschema@.idem_stats.rows_updated IS 'rows of the target that were updated';
COMMENT ON COLUMN @extschema@.idem_stats.rows_deleted IS 'rows deleted from the target; always 0 in this version';
COMMENT ON COLUMN @extschema@.idem_stats.rows_unchanged IS 'rows that the target already had';
COMMENT ON COLUMN @extschema@.idem_stats.rows_stale IS 'rows older than the stored ones';
COMMENT ON COLUMN @extschema@.idem_stats.rows_skipped IS 'rows left out by the mode, or by a BEFORE trigger';
COMMENT ON COLUMN @extschema@.idem_stats.elapsed_seconds IS 'time that the calls took';
COMMENT ON COLUMN @extschema@.idem_stats.wal_bytes IS 'WAL that the calls wrote';
COMMENT ON COLUMN @extschema@.idem_stats.last_batch_at IS 'when a batch was applied last';
COMMENT ON COLUMN @extschema@.idem_stats.since IS 'since when it is counted';
COMMENT ON COLUMN @extschema@.idem_stats.source IS 'memory or ledger';

REVOKE ALL ON @extschema@.idem_stats FROM PUBLIC;
GRANT SELECT ON @extschema@.idem_stats TO PUBLIC;

-- The last of the parameters are ours (src/progress.h).
CREATE VIEW @extschema@.idem_progress AS
SELECT s.pid,
       s.relid::pg_catalog.regclass AS target,
       CASE WHEN s.param20 OPERATOR(pg_catalog.=) 1 THEN 'waiting'
            WHEN s.param20 OPERATOR(pg_catalog.=) 2 THEN 'reading'
            WHEN s.param20 OPERATOR(pg_catalog.=) 3 THEN 'applying'
            ELSE 'recording' END AS phase,
       s.param19 AS rows_read,
       s.param3 OPERATOR(pg_catalog.+) s.param4 AS rows_done,
       CASE WHEN s.param18 OPERATOR(pg_catalog.>) 0 THEN s.param18 END AS rows_total,
       s.param1 AS bytes_read,
       CASE WHEN s.param2 OPERATOR(pg_catalog.>) 0 THEN s.param2 END AS bytes_total,
       EXTRACT(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) a.query_start)::pg_catalog.float8 AS elapsed_seconds
FROM pg_catalog.pg_stat_get_progress_info('COPY') s
LEFT JOIN pg_catalog.pg_stat_get_activity(NULL) a ON a.pid OPERATOR(pg_catalog.=) s.pid
WHERE s.param20 OPERATOR(pg_catalog.>) 0
  AND s.datid OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d
                                      WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database());

COMMENT ON VIEW @extschema@.idem_progress IS
'The merges that are running in this database: those of the roles whose rights the current user has, or all with the rights of pg_read_all_stats.';
COMMENT ON COLUMN @extschema@.idem_progress.pid IS 'process that runs the merge';
COMMENT ON COLUMN @extschema@.idem_progress.target IS 'table that it merges into';
COMMENT ON COLUMN @extschema@.idem_progress.phase IS 'waiting (for the batch or the turn of the target), reading (for the fingerprint, or to compare), applying or recording; the counts are those of the phase';
COMMENT ON COLUMN @extschema@.idem_progress.rows_read IS 'staged rows that were read, to the nearest thousand';
COMMENT ON COLUMN @extschema@.idem_progress.rows_done IS 'rows that were written, or need not be, as far as that is known';
COMMENT ON COLUMN @extschema@.idem_progress.rows_total IS 'staged rows, once their number is known; the native engine tells';
COMMENT ON COLUMN @extschema@.idem_progress.bytes_read IS 'bytes of staging that were read; the native engine tells';
COMMENT ON COLUMN @extschema@.idem_progress.bytes_total IS 'bytes of staging, if they are known';
COMMENT ON COLUMN @extschema@.idem_progress.elapsed_seconds IS 'time since the statement began';

REVOKE ALL ON @extschema@.idem_progress FROM PUBLIC;
GRANT SELECT ON @extschema@.idem_progress TO PUBLIC;

--
-- The queue of merges (src/queue.c). Only the extension's own functions write
-- it; people read idem_jobs.
--
CREATE TABLE @extschema@.idem_job (
    job_id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    role             regrole NOT NULL,
    status           text COLLATE "C" NOT NULL DEFAULT 'queued',
    priority         integer NOT NULL,
    run_at           timestamptz NOT NULL,
    attempts         integer NOT NULL DEFAULT 0,
    max_attempts     integer NOT NULL,
    cancel_requested boolean NOT NULL DEFAULT false,
    enqueued_at      timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    started_at       timestamptz,
    finished_at      timestamptz,
    sqlstate         text COLLATE "C",
    message          text,
    result           jsonb,
    staging_type     regtype NOT NULL,
    target_type      regtype NOT NULL,
    staging          regclass NOT NULL,
    target           regclass NOT NULL,
    key_cols         text[],
    batch_id         text,
    pipeline         text NOT NULL,
    version_cols     text[],
    audit_cols       text[],
    update_cols      text[],
    exclude_cols     text[],
    mode             text NOT NULL,
    on_duplicate     text,
    on_stale         text NOT NULL,
    on_schema_change text NOT NULL,
    on_replay        text NOT NULL,
    on_mismatch      text NOT NULL,
    nowait           boolean NOT NULL,
    exclusive        boolean NOT NULL,
    dry_run          boolean NOT NULL,
    metadata         jsonb,
    target_predicate text,
    CONSTRAINT idem_job_status_check CHECK (status OPERATOR(pg_catalog.=) 'queued' OR status OPERATOR(pg_catalog.=) 'running' OR status OPERATOR(pg_catalog.=) 'succeeded' OR status OPERATOR(pg_catalog.=) 'failed' OR status OPERATOR(pg_catalog.=) 'cancelled')
) WITH (fillfactor = 80);

-- In the order in which jobs are taken; and those that are running.
CREATE INDEX idem_job_waiting_idx ON @extschema@.idem_job (status, priority DESC, run_at, job_id)
WHERE status OPERATOR(pg_catalog.=) 'queued' OR status OPERATOR(pg_catalog.=) 'running';

-- For those that are removed some time after they have ended.
CREATE INDEX idem_job_finished_idx ON @extschema@.idem_job (finished_at)
WHERE finished_at IS NOT NULL;

COMMENT ON TABLE @extschema@.idem_job IS
'One row for each merge that was enqueued; written only by idem_enqueue(), idem_cancel(), idem_run_jobs() and the workers. Read it through the view idem_jobs.';
COMMENT ON COLUMN @extschema@.idem_job.job_id IS 'number of the job';
COMMENT ON COLUMN @extschema@.idem_job.role IS 'role that has enqueued the job, and that it runs as';
COMMENT ON COLUMN @extschema@.idem_job.status IS 'queued, running, succeeded, failed or cancelled';
COMMENT ON COLUMN @extschema@.idem_job.priority IS 'of the jobs that are due, those of higher priority are run first';
COMMENT ON COLUMN @extschema@.idem_job.run_at IS 'not to be run before that; of a job that was attempted, the next attempt';
COMMENT ON COLUMN @extschema@.idem_job.attempts IS 'attempts so far, counted before they start; the number of an attempt tells it from others';
COMMENT ON COLUMN @extschema@.idem_job.max_attempts IS 'when so many attempts have failed, so has the job';
COMMENT ON COLUMN @extschema@.idem_job.cancel_requested IS 'somebody has called idem_cancel(): the attempt under way must not succeed, and none follows';
COMMENT ON COLUMN @extschema@.idem_job.enqueued_at IS 'when it was enqueued';
COMMENT ON COLUMN @extschema@.idem_job.started_at IS 'when the latest attempt was started';
COMMENT ON COLUMN @extschema@.idem_job.finished_at IS 'when the job has ended; NULL while it is queued or running';
COMMENT ON COLUMN @extschema@.idem_job.sqlstate IS 'of the error that the latest attempt has ended with';
COMMENT ON COLUMN @extschema@.idem_job.message IS 'primary message of that error';
COMMENT ON COLUMN @extschema@.idem_job.result IS 'row that idem_merge() has returned';
COMMENT ON COLUMN @extschema@.idem_job.staging_type IS 'row type of staging, which tells it from a later relation with the same OID';
COMMENT ON COLUMN @extschema@.idem_job.target_type IS 'row type of the target, likewise';
COMMENT ON COLUMN @extschema@.idem_job.staging IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.target IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.key_cols IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.batch_id IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.pipeline IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.version_cols IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.audit_cols IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.update_cols IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.exclude_cols IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.mode IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.on_duplicate IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.on_stale IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.on_schema_change IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.on_replay IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.on_mismatch IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.nowait IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.exclusive IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.dry_run IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.metadata IS 'argument of idem_merge()';
COMMENT ON COLUMN @extschema@.idem_job.target_predicate IS 'argument of idem_merge()';
COMMENT ON INDEX @extschema@.idem_job_waiting_idx IS 'finds the next job to be run, and those that are running';

REVOKE ALL ON @extschema@.idem_job FROM PUBLIC;
REVOKE ALL ON SEQUENCE @extschema@.idem_job_job_id_seq FROM PUBLIC;

-- Whoever writes a job can have it run as anybody: rights on the table, such as
-- those of pg_write_all_data, are not enough.
CREATE FUNCTION @extschema@.idem_job_guard() RETURNS trigger
AS 'MODULE_PATHNAME', 'idem_job_guard'
LANGUAGE C VOLATILE SECURITY INVOKER;
COMMENT ON FUNCTION @extschema@.idem_job_guard() IS
'Refuses all writes to idem_job but those of its owner, as which the functions of the extension write it.';

CREATE TRIGGER idem_job_guard BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON @extschema@.idem_job
FOR EACH STATEMENT EXECUTE FUNCTION @extschema@.idem_job_guard();
-- Whatever session_replication_role is.
ALTER TABLE @extschema@.idem_job ENABLE ALWAYS TRIGGER idem_job_guard;

-- Jobs that have not ended are dumped, as long as all that they need is there.
-- One that was running counts as interrupted where it is restored.
SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_job', $filter$
WHERE finished_at IS NULL
  AND EXISTS (SELECT FROM pg_catalog.pg_roles r
              WHERE r.oid OPERATOR(pg_catalog.=) role::pg_catalog.oid)
  AND EXISTS (SELECT FROM pg_catalog.pg_class c
              WHERE c.oid OPERATOR(pg_catalog.=) staging::pg_catalog.oid
                AND c.reltype OPERATOR(pg_catalog.=) staging_type::pg_catalog.oid)
  AND EXISTS (SELECT FROM pg_catalog.pg_class c
              WHERE c.oid OPERATOR(pg_catalog.=) target::pg_catalog.oid
                AND c.reltype OPERATOR(pg_catalog.=) target_type::pg_catalog.oid)
$filter$);
SELECT pg_catalog.pg_extension_config_dump('@extschema@.idem_job_job_id_seq', '');

CREATE VIEW @extschema@.idem_jobs WITH (security_barrier) AS
SELECT j.job_id, j.role, j.status, j.staging, j.target, j.batch_id, j.pipeline,
       j.priority, j.run_at, j.attempts, j.max_attempts, j.cancel_requested,
       j.enqueued_at, j.started_at, j.finished_at, j.sqlstate, j.message, j.result
FROM @extschema@.idem_job j
WHERE pg_catalog.pg_has_role(j.role::pg_catalog.oid, 'USAGE');

COMMENT ON VIEW @extschema@.idem_jobs IS
'The merges that were enqueued by the roles whose rights the current user has.';
COMMENT ON COLUMN @extschema@.idem_jobs.job_id IS 'number of the job';
COMMENT ON COLUMN @extschema@.idem_jobs.role IS 'role that has enqueued the job, and that it runs as';
COMMENT ON COLUMN @extschema@.idem_jobs.status IS 'queued, running, succeeded, failed or cancelled';
COMMENT ON COLUMN @extschema@.idem_jobs.staging IS 'relation with the rows to be merged';
COMMENT ON COLUMN @extschema@.idem_jobs.target IS 'table that they are merged into';
COMMENT ON COLUMN @extschema@.idem_jobs.batch_id IS 'as given to idem_enqueue(); NULL if it is to be derived';
COMMENT ON COLUMN @extschema@.idem_jobs.pipeline IS 'sender of the batch, empty string if unnamed';
COMMENT ON COLUMN @extschema@.idem_jobs.priority IS 'of the jobs that are due, those of higher priority are run first';
COMMENT ON COLUMN @extschema@.idem_jobs.run_at IS 'not to be run before that; of a job that was attempted, the next attempt';
COMMENT ON COLUMN @extschema@.idem_jobs.attempts IS 'attempts so far, with the one under way';
COMMENT ON COLUMN @extschema@.idem_jobs.max_attempts IS 'when so many attempts have failed, so has the job';
COMMENT ON COLUMN @extschema@.idem_jobs.cancel_requested IS 'somebody has called idem_cancel()';
COMMENT ON COLUMN @extschema@.idem_jobs.enqueued_at IS 'when it was enqueued';
COMMENT ON COLUMN @extschema@.idem_jobs.started_at IS 'when the latest attempt was started';
COMMENT ON COLUMN @extschema@.idem_jobs.finished_at IS 'when the job has ended; NULL while it is queued or running';
COMMENT ON COLUMN @extschema@.idem_jobs.sqlstate IS 'of the error that the latest attempt has ended with';
COMMENT ON COLUMN @extschema@.idem_jobs.message IS 'primary message of that error';
COMMENT ON COLUMN @extschema@.idem_jobs.result IS 'row that idem_merge() has returned';

REVOKE ALL ON @extschema@.idem_jobs FROM PUBLIC;
GRANT SELECT ON @extschema@.idem_jobs TO PUBLIC;

CREATE FUNCTION @extschema@.idem_enqueue(
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
    target_predicate text    DEFAULT NULL,
    run_at           timestamptz DEFAULT pg_catalog.now(),
    max_attempts     integer DEFAULT 5,
    priority         integer DEFAULT 0)
RETURNS bigint
AS 'MODULE_PATHNAME', 'idem_enqueue'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY INVOKER COST 1000;

COMMENT ON FUNCTION @extschema@.idem_enqueue(regclass, regclass, text[], text, text, text[], text[], text[], text[], text, text, text, text, text, text, boolean, boolean, boolean, jsonb, text, timestamptz, integer, integer) IS
$comment$Has a merge run later, in a process that is connected as the current role, and returns the number of the job. Checks now what idem_merge() would check; rights are checked again when the job is run.
staging to target_predicate: the arguments of idem_merge(). Staging must not be a temporary or unlogged table, and must stay as it is until the job has ended.
run_at: not before that; default now.
max_attempts: attempts that may fail before the job has failed, 1 to 1000; default 5. Only errors that may pass are attempted again.
priority: of the jobs that are due, those of higher priority are run first; default 0.
NOTIFY idem_job, with the number of the job, tells that it has ended.$comment$;

CREATE FUNCTION @extschema@.idem_cancel(job bigint)
RETURNS boolean
AS 'MODULE_PATHNAME', 'idem_cancel'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY INVOKER COST 1000;

COMMENT ON FUNCTION @extschema@.idem_cancel(bigint) IS
$comment$Cancels a queued merge; if it is running, its attempt is cancelled and rolled back. false: the job has ended already.
job: number of a job of the current user, or of a role whose rights the user has.$comment$;

CREATE FUNCTION @extschema@.idem_wait(
    job          bigint,
    timeout      interval DEFAULT NULL,
    OUT job_id   bigint,
    OUT status   text,
    OUT attempts integer,
    OUT sqlstate text,
    OUT message  text,
    OUT result   jsonb)
AS 'MODULE_PATHNAME', 'idem_wait'
LANGUAGE C VOLATILE PARALLEL UNSAFE CALLED ON NULL INPUT SECURITY INVOKER COST 10000;

COMMENT ON FUNCTION @extschema@.idem_wait(bigint, interval) IS
$comment$Waits until a queued merge has ended, and returns its state; or its state when the time is up. Not in the transaction that has enqueued the job.
job: number of a job of the current user, or of a role whose rights the user has.
timeout: how long to wait; NULL (default): without limit.$comment$;

CREATE PROCEDURE @extschema@.idem_run_jobs(
    max_jobs        integer DEFAULT NULL,
    INOUT succeeded integer DEFAULT 0,
    INOUT failed    integer DEFAULT 0)
AS 'MODULE_PATHNAME', 'idem_run_jobs'
LANGUAGE C SECURITY INVOKER;

COMMENT ON PROCEDURE @extschema@.idem_run_jobs(integer, integer, integer) IS
$comment$Runs the jobs of the current role that are due, one after the other in this session, each in a transaction of its own, with or without a worker. Returns how many attempts have succeeded, and how many have failed. Not in a transaction block.
max_jobs: most attempts to make; NULL (default): until no job is due.$comment$;

--
-- Default privileges
--

-- What ALTER DEFAULT PRIVILEGES gives to roles, it has given them on our relations
-- too; and who may write one of them, or put a trigger on it, gets further.
DO $revoke$
DECLARE
    relation record;
BEGIN
    FOR relation IN
        SELECT DISTINCT CASE WHEN c.relkind OPERATOR(pg_catalog.=) 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
               n.nspname AS schema, c.relname AS name, r.rolname AS role
        FROM pg_catalog.pg_extension AS e
        JOIN pg_catalog.pg_depend AS d ON d.refobjid OPERATOR(pg_catalog.=) e.oid
        JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) d.objid
        JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
        CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS a
        JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) a.grantee
        WHERE e.extname OPERATOR(pg_catalog.=) 'idempotent_ingest'
          AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
          AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
          AND d.deptype OPERATOR(pg_catalog.=) 'e'
          AND r.oid OPERATOR(pg_catalog.<>) c.relowner
          -- What 0.1.0 had may have been granted on purpose.
          AND c.relname OPERATOR(pg_catalog.!~) '^idem_(ledger|audit|audit_audit_id_seq|batches)$'
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON %s %I.%I FROM %I CASCADE',
                                  relation.kind, relation.schema, relation.name, relation.role);
    END LOOP;
END $revoke$;
