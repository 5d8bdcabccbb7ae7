/*-------------------------------------------------------------------------
 *
 * maintenance.c
 *	  Retention: what keeps the ledger from growing for ever.
 *
 * A batch expires when it is older than its retention: its details are cleared
 * in place, its key stays, so that it is recognised for ever, or until
 * key_retention is over as well. The newest batch of a (target, pipeline) stays
 * as it is, however old: a stream that was quiet for a year still knows its
 * position. Rows about tables and roles that are gone are removed.
 *
 * Rows to be cleared are found without an index that merges would have to
 * maintain, and that would keep the update of a row from staying within its
 * page: idem_sweep has one row for each RANGE_BLOCKS blocks of the ledger, which
 * says when something in them will be due. A range is looked at when that time
 * has come, and the time is set anew from what is left in it. Batches that are put
 * there later cannot be due before the time of that look and the smallest
 * retention, which is considered as well. There are two exceptions: a range in
 * which nothing is seen may be what a restore is filling, and a row that is
 * cleared can move to another range, which is noted there. Both are looked at
 * again soon.
 *
 * basis is what the time was computed from (settings and the ledger's file), and a
 * range with another one is looked at in any case; but once in a round, lest two
 * rounds with different settings undo each other's for ever.
 *
 * idem_newest has, for each (target, pipeline), the newest batch that was met:
 * older ones may expire because of it. Ranges are looked at from the newest to
 * the oldest, so that hardly any batch has to stay, until the next look, only
 * because a newer one was not met yet.
 *
 * One step deals with one range, in a transaction of the caller's, which is short
 * and writes little WAL, since merges that commit have to flush it. The range's
 * row is locked, so that several processes take different ranges. Rows of the
 * ledger that somebody else has locked are left for another time: no step waits
 * while it holds locks on them, and merges meet such a lock only where they
 * would write the very row (reapply, idem_forget).
 *
 * Everything runs as the ledger's owner, as in ledger.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/itemptr.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "guc.h"
#include "maintenance.h"
#include "rowhash.h"
#include "security.h"
#include "spi_util.h"

/* Blocks of the ledger that one step deals with: some 120 rows. */
#define RANGE_BLOCKS	8

/* Among how many batches of a pipeline its newest one is looked for. */
#define LAST_BATCHES	100

/* How many rows of dropped tables go at once. */
#define DROPPED_ROWS	500

/* What the due times are computed from. */
typedef struct Basis
{
	char	   *hash;
	Interval   *smallest;		/* of all retentions; NULL if nothing expires */
	int64		blocks;			/* of the ledger */
} Basis;

/*
 * Rows of the ledger, each with how long it and its key are kept; NULL is for
 * ever. $1 and $2 are the settings, $3 and $4 the range.
 */
#define ROWS \
	" %1$s.idem_ledger l" \
	" LEFT JOIN %1$s.idem_retention p ON p.target = l.target AND p.target_type = l.target_type" \
	" AND p.pipeline = l.pipeline" \
	" LEFT JOIN %1$s.idem_retention t ON t.target = l.target AND t.target_type = l.target_type" \
	" AND t.pipeline IS NULL" \
	" CROSS JOIN LATERAL (SELECT" \
	" NULLIF(COALESCE(p.retention, t.retention, $1), '0') AS details," \
	" NULLIF(COALESCE(p.key_retention, t.key_retention, $2), '0') AS key) AS keep"
#define IN_RANGE " WHERE l.ctid >= $3 AND l.ctid < $4"

/* A row that there is something to do about, unless it is the newest one. */
#define KEY_IS_DUE "l.applied_at < now() - keep.key"
#define IS_DUE \
	"(" KEY_IS_DUE " OR (l.options IS NOT NULL AND l.applied_at < now() - keep.details))"

/* When to look again where nobody knows better: so late may a batch expire. */
#define SOON(smallest) "now() + LEAST(" smallest " / 10, '1 day')"

/* The row of n that k, of idem_newest, is about, unless that has expired. */
#define THE_NEWEST \
	" WHERE n.target = k.target AND n.pipeline = k.pipeline AND n.batch_id = k.batch_id" \
	" AND n.claimed_by = k.claimed_by AND n.options IS NOT NULL"

/* A row about a table, or of a role, that is gone. */
#define IS_ORPHAN \
	"(l.target::oid <> 0 AND NOT EXISTS (SELECT FROM pg_class c" \
	" WHERE c.oid = l.target::oid AND c.reltype = l.target_type::oid)" \
	" OR l.claimed_by::oid <> 0 AND NOT EXISTS (SELECT FROM pg_roles r" \
	" WHERE r.oid = l.claimed_by::oid))"

/*
 * Run a statement as the owner; in its text, %1$s is the schema. Steps deal with
 * so few rows that to plan would be half of the work: plans are made once, and
 * such that they stay good when the ledger has grown.
 */
static uint64
run(const IdemLedger *ledger, const char *text, IdemSpiArgs *args)
{
	static const char *const settings[][2] = {
		{"jit", "off"}, {"enable_seqscan", "off"}, {"plan_cache_mode", "force_generic_plan"}
	};
	IdemIdentity saved;
	uint64		processed;

	idem_security_push(&saved, ledger->owner);
	/* They are undone with the push. */
	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i][0], settings[i][1], PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	processed = idem_spi_execute_cached(psprintf(text, ledger->schema), InvalidOid, args, false);
	idem_security_pop(&saved);
	return processed;
}

/* A number of the last result, which is of one row. */
static int64
result_number(int column)
{
	bool		isnull;

	return DatumGetInt64(idem_spi_value(0, column, CurrentMemoryContext, &isnull));
}

static Datum
minutes_to_interval(int minutes)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = minutes * (int64) USECS_PER_MINUTE;
	return IntervalPGetDatum(interval);
}

/* $1 and $2 of most statements. */
static void
retention_arguments(IdemSpiArgs *args)
{
	idem_spi_arg(args, INTERVALOID, minutes_to_interval(idem_guc_retention), false);
	idem_spi_arg(args, INTERVALOID, minutes_to_interval(idem_guc_key_retention), false);
}

/* $3 and $4 of statements with IN_RANGE. */
static void
range_arguments(IdemSpiArgs *args, BlockNumber first_block)
{
	ItemPointer bounds = palloc(2 * sizeof(ItemPointerData));

	retention_arguments(args);
	for (int i = 0; i < 2; i++)
	{
		ItemPointerSet(&bounds[i], first_block + i * RANGE_BLOCKS, 0);
		idem_spi_arg(args, TIDOID, PointerGetDatum(&bounds[i]), false);
	}
}

/*
 * Whatever the session's settings are, the hash of the same is the same: intervals
 * have several forms as text.
 */
#define INTERVAL_BITS(value) "quote_nullable(encode(interval_send(" value "), 'hex'))"

static void
look_at_basis(const IdemLedger *ledger, Basis *basis)
{
	IdemSpiArgs args = {0};
	Datum		smallest;
	bool		isnull;

	retention_arguments(&args);
	idem_spi_arg(&args, REGCLASSOID, ObjectIdGetDatum(ledger->relid), false);
	idem_spi_arg(&args, INT8OID, Int64GetDatum(BLCKSZ), false);
	(void) run(ledger,
			   "SELECT concat_ws(' ', pg_relation_filenode($3),"
			   " " INTERVAL_BITS("$1") ", " INTERVAL_BITS("$2") "), r.settings,"
			   " LEAST(NULLIF($1, '0'), NULLIF($2, '0'), r.smallest), pg_relation_size($3) / $4"
			   " FROM (SELECT COALESCE(string_agg(concat_ws(' ', target::oid, target_type::oid,"
			   " quote_nullable(pipeline), " INTERVAL_BITS("retention") ","
			   " " INTERVAL_BITS("key_retention") "), ' ' ORDER BY target, pipeline), '') AS settings,"
			   " LEAST(min(NULLIF(retention, '0')), min(NULLIF(key_retention, '0'))) AS smallest"
			   " FROM %1$s.idem_retention) AS r", &args);
	basis->hash = idem_rowhash_text(idem_spi_text(0, 1, CurrentMemoryContext),
									idem_spi_text(0, 2, CurrentMemoryContext));
	smallest = idem_spi_value(0, 3, CurrentMemoryContext, &isnull);
	basis->smallest = isnull ? NULL : DatumGetIntervalP(smallest);
	basis->blocks = result_number(4);
}

/*
 * Let each range of the ledger have a row. If none has, all are looked at soon. One
 * that the ledger has grown by has new batches, which merges may be adding to:
 * it can wait as long as any.
 */
static void
extend_sweep(const IdemLedger *ledger, const Basis *basis)
{
	IdemSpiArgs args = {0};

	idem_spi_arg(&args, INT8OID, Int64GetDatum(basis->blocks), false);
	idem_spi_arg(&args, INT8OID, Int64GetDatum(RANGE_BLOCKS), false);
	idem_spi_arg_text(&args, basis->hash);
	idem_spi_arg(&args, INTERVALOID, IntervalPGetDatum(basis->smallest), basis->smallest == NULL);
	(void) run(ledger,
			   "INSERT INTO %1$s.idem_sweep (first_block, due, basis)"
			   " SELECT first_block, CASE WHEN EXISTS (SELECT FROM %1$s.idem_sweep)"
			   " THEN " SOON("$4") " ELSE '-infinity' END, $3"
			   " FROM generate_series(COALESCE((SELECT max(first_block) + $2 FROM %1$s.idem_sweep), 0),"
			   " $1 - 1, $2) AS first_block ON CONFLICT DO NOTHING", &args);
}

/*
 * Lock the row of a range that was due when the round began, and that nobody else
 * is dealing with; the newest first. False if there is none.
 */
static bool
take_range(const IdemLedger *ledger, const Basis *basis, TimestampTz began,
		   BlockNumber *first_block)
{
	/*
	 * Each of them is served by the index, which "<>" would not be. What was
	 * looked at in the future was so before the clock was set back.
	 */
	static const char *const conditions[] = {
		"basis = $1 AND due < $2",
		"basis < $1 AND (looked_at < $2 OR looked_at > clock_timestamp())",
		"basis > $1 AND (looked_at < $2 OR looked_at > clock_timestamp())"
	};

	for (int i = 0; i < lengthof(conditions); i++)
	{
		IdemSpiArgs args = {0};

		idem_spi_arg_text(&args, basis->hash);
		idem_spi_arg(&args, TIMESTAMPTZOID, TimestampTzGetDatum(began), false);
		if (run(ledger, psprintf("SELECT first_block FROM %%1$s.idem_sweep WHERE %s"
								 " ORDER BY basis DESC, due DESC, first_block DESC LIMIT 1"
								 " FOR UPDATE SKIP LOCKED",
								 conditions[i]), &args) > 0)
		{
			*first_block = (BlockNumber) result_number(1);
			return true;
		}
	}
	return false;
}

/*
 * See that idem_newest has, for each (target, pipeline) of the range, a batch
 * that is at least as new as those in it. Where one is missing, it is taken from
 * the range or from the last of the pipeline's batches by name: most names
 * contain a number or a date. To find the very newest would mean to read them
 * all.
 */
static void
note_newest(const IdemLedger *ledger, BlockNumber first_block)
{
	IdemSpiArgs args = {0};

	range_arguments(&args, first_block);
	idem_spi_arg(&args, INT8OID, Int64GetDatum(LAST_BATCHES), false);
	(void) run(ledger,
			   "INSERT INTO %1$s.idem_newest (target, pipeline, claimed_by, batch_id)"
			   " SELECT r.target, r.pipeline, r.claimed_by, newest.batch_id"
			   " FROM (SELECT DISTINCT ON (l.target, l.pipeline, l.claimed_by) l.*"
			   " FROM" ROWS IN_RANGE " AND l.options IS NOT NULL"
			   " ORDER BY l.target, l.pipeline, l.claimed_by, l.applied_at DESC, l.batch_id) AS r"
			   " CROSS JOIN LATERAL (SELECT r.batch_id, r.applied_at UNION ALL"
			   " SELECT n.batch_id, n.applied_at FROM (SELECT * FROM %1$s.idem_ledger n"
			   " WHERE n.target = r.target AND n.pipeline = r.pipeline"
			   " ORDER BY n.target DESC, n.pipeline DESC, n.batch_id DESC LIMIT $5) AS n"
			   " WHERE n.claimed_by = r.claimed_by AND n.target_type = r.target_type"
			   " AND n.options IS NOT NULL"
			   " ORDER BY applied_at DESC, batch_id LIMIT 1) AS newest"
			   " WHERE NOT EXISTS (SELECT FROM %1$s.idem_newest k CROSS JOIN LATERAL"
			   " (SELECT * FROM %1$s.idem_ledger n" THE_NEWEST " OFFSET 0) AS n"
			   " WHERE k.target = r.target AND k.pipeline = r.pipeline"
			   " AND k.claimed_by = r.claimed_by AND n.target_type = r.target_type"
			   " AND n.applied_at >= r.applied_at)"
			   " ORDER BY r.target, r.pipeline, r.claimed_by"
			   " ON CONFLICT (target, pipeline, claimed_by) DO UPDATE SET batch_id = EXCLUDED.batch_id",
			   &args);
}

/*
 * Clear the rows of a range that have expired, and remove those whose key is not
 * to be kept, or that are about something that is gone. The batch that makes
 * others expire is held, so that it is not forgotten meanwhile.
 *
 * A row whose page is too full for what is left of it moves: the range that it is
 * in then is to be looked at soon. False if that cannot be noted, as somebody
 * else is dealing with that range, and may not have seen the row: what was done
 * here must be undone then.
 */
static bool
clear_range(const IdemLedger *ledger, const Basis *basis, BlockNumber first_block,
			IdemMaintenanceCounts *counts)
{
	IdemSpiArgs args = {0};

	range_arguments(&args, first_block);
	idem_spi_arg(&args, INTERVALOID, IntervalPGetDatum(basis->smallest), basis->smallest == NULL);
	idem_spi_arg(&args, INT8OID, Int64GetDatum(RANGE_BLOCKS), false);
	(void) run(ledger,
			   "WITH newest AS MATERIALIZED (SELECT k.target, k.pipeline, k.claimed_by,"
			   " n.target_type, n.applied_at"
			   " FROM (SELECT DISTINCT l.target, l.pipeline, l.claimed_by"
			   " FROM" ROWS IN_RANGE " AND " IS_DUE ") AS due"
			   " JOIN %1$s.idem_newest k USING (target, pipeline, claimed_by)"
			   " CROSS JOIN LATERAL (SELECT * FROM %1$s.idem_ledger n" THE_NEWEST
			   " FOR KEY SHARE SKIP LOCKED) AS n),"
			   " found AS MATERIALIZED (SELECT l.ctid AS at,"
			   " " IS_ORPHAN " OR COALESCE(" KEY_IS_DUE ", false) AS remove"
			   " FROM" ROWS
			   " LEFT JOIN newest n ON n.target = l.target AND n.pipeline = l.pipeline"
			   " AND n.claimed_by = l.claimed_by AND n.target_type = l.target_type"
			   " AND n.applied_at > l.applied_at"
			   IN_RANGE " AND (" IS_ORPHAN " OR " IS_DUE " AND n.target IS NOT NULL)"
			   " FOR UPDATE OF l SKIP LOCKED),"
			   " removed AS (DELETE FROM %1$s.idem_ledger"
			   " WHERE ctid = ANY (ARRAY(SELECT at FROM found WHERE remove)) RETURNING 1),"
			   " cleared AS (UPDATE %1$s.idem_ledger"
			   " SET fingerprint = NULL, fingerprint_version = NULL, fingerprint_columns = NULL,"
			   " earlier_fingerprints = NULL, rows_staged = NULL, rows_duplicate = NULL,"
			   " rows_inserted = NULL, rows_updated = NULL, rows_deleted = NULL,"
			   " rows_unchanged = NULL, rows_stale = NULL, rows_skipped = NULL, engine = NULL,"
			   " elapsed = NULL, role = NULL, application_name = NULL, options = NULL,"
			   " metadata = NULL"
			   " WHERE ctid = ANY (ARRAY(SELECT at FROM found WHERE NOT remove)) RETURNING ctid AS at),"
			   " moved AS MATERIALIZED (SELECT first_block FROM %1$s.idem_sweep"
			   " WHERE first_block = ANY (ARRAY(SELECT DISTINCT (at::text::point)[0]::int8 / $6 * $6"
			   " FROM cleared WHERE at < $3 OR at >= $4))),"
			   " locked AS MATERIALIZED (SELECT first_block FROM %1$s.idem_sweep"
			   " WHERE first_block = ANY (ARRAY(SELECT first_block FROM moved)) FOR UPDATE SKIP LOCKED),"
			   " noted AS (UPDATE %1$s.idem_sweep SET due = " SOON("$5")
			   " WHERE first_block = ANY (ARRAY(SELECT first_block FROM locked)) AND due > " SOON("$5") ")"
			   " SELECT (SELECT count(*) FROM cleared), (SELECT count(*) FROM removed),"
			   " (SELECT count(*) FROM moved) - (SELECT count(*) FROM locked)",
			   &args);
	if (result_number(3) != 0)
		return false;
	counts->expired += result_number(1);
	counts->deleted += result_number(2);
	return true;
}

/* The same, or nothing. */
static void
try_to_clear_range(const IdemLedger *ledger, const Basis *basis, BlockNumber first_block,
				   IdemMaintenanceCounts *counts)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	if (clear_range(ledger, basis, first_block, counts))
		ReleaseCurrentSubTransaction();
	else
		RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

/*
 * Set when the range is to be looked at again: when the first of its rows will
 * be due, or one that is put there from now on could be; soon if it has none. A row
 * that stays though it is due, as the newest one does, does not bring us back
 * before that.
 */
static void
set_due(const IdemLedger *ledger, const Basis *basis, BlockNumber first_block)
{
	IdemSpiArgs args = {0};

	range_arguments(&args, first_block);
	idem_spi_arg(&args, INT8OID, Int64GetDatum(first_block), false);
	idem_spi_arg_text(&args, basis->hash);
	idem_spi_arg(&args, INTERVALOID, IntervalPGetDatum(basis->smallest), basis->smallest == NULL);
	(void) run(ledger,
			   "UPDATE %1$s.idem_sweep SET basis = $6, looked_at = now(), due = CASE"
			   " WHEN $7 IS NULL THEN 'infinity'"
			   " WHEN NOT EXISTS (SELECT FROM %1$s.idem_ledger l" IN_RANGE ") THEN " SOON("$7")
			   " ELSE GREATEST(" SOON("$7") ", LEAST(now() + $7,"
			   " (SELECT min(l.applied_at + CASE WHEN l.options IS NULL THEN keep.key"
			   " ELSE LEAST(keep.details, keep.key) END) FROM" ROWS IN_RANGE "))) END"
			   " WHERE first_block = $5", &args);
}

/*
 * Remove what is kept about tables that are gone, without waiting until the
 * ranges are due. Whether a table's OID has another table now is only seen then.
 */
static void
remove_dropped(const IdemLedger *ledger, IdemMaintenanceCounts *counts)
{
	IdemSpiArgs args = {0};

	idem_spi_arg(&args, INT8OID, Int64GetDatum(DROPPED_ROWS), false);
	counts->deleted +=
		run(ledger,
			"WITH RECURSIVE known AS ("
			"(SELECT target FROM %1$s.idem_ledger ORDER BY target LIMIT 1)"
			" UNION ALL"
			" SELECT (SELECT l.target FROM %1$s.idem_ledger l WHERE l.target > known.target"
			" ORDER BY l.target LIMIT 1)"
			" FROM known WHERE known.target IS NOT NULL),"
			" dropped AS MATERIALIZED (SELECT target FROM known WHERE target::oid <> 0"
			" AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = target::oid))"
			" DELETE FROM %1$s.idem_ledger WHERE ctid = ANY (ARRAY("
			"SELECT l.ctid FROM dropped JOIN %1$s.idem_ledger l USING (target)"
			" LIMIT $1 FOR UPDATE OF l SKIP LOCKED))", &args);
	args.count = 0;
	(void) run(ledger,
			   "DELETE FROM %1$s.idem_newest WHERE target::oid <> 0"
			   " AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = target::oid)", &args);
	(void) run(ledger,
			   "DELETE FROM %1$s.idem_retention WHERE target::oid <> 0"
			   " AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = target::oid"
			   " AND c.reltype = target_type::oid)", &args);
}

/*
 * Do one unit of work, and add to the counts. False if there is nothing more to
 * do in the round that began at the given time: a round ends, though a range may
 * be due again before the others were looked at. The caller begins and ends the
 * transaction, which should be at READ COMMITTED and do nothing else.
 */
bool
idem_maintenance_step(const IdemLedger *ledger, TimestampTz began,
					  IdemMaintenanceCounts *counts)
{
	IdemMaintenanceCounts before = *counts;
	Basis		basis;
	BlockNumber first_block;
	bool		more;

	/* The library can be newer than the extension's objects. */
	if (!OidIsValid(idem_security_own_table("idem_sweep", ledger->schema_oid)))
		return false;

	/* In this transaction only. What a crash takes back is done again. */
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);

	idem_spi_connect();
	look_at_basis(ledger, &basis);
	extend_sweep(ledger, &basis);
	more = take_range(ledger, &basis, began, &first_block);
	if (more)
	{
		note_newest(ledger, first_block);
		try_to_clear_range(ledger, &basis, first_block, counts);
		set_due(ledger, &basis, first_block);
	}
	else
	{
		remove_dropped(ledger, counts);
		more = counts->deleted > before.deleted;
	}
	idem_spi_finish();
	return more;
}

/*
 * Wait between two steps, so that merges need not share the disk and the WAL
 * with us all the time. To be called outside of the steps' transactions.
 */
void
idem_maintenance_nap(void)
{
	if (idem_guc_maintenance_delay == 0)
		return;
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 idem_guc_maintenance_delay, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

/*
 * Set how long batches of a target, and of a pipeline if it is not NULL, are
 * kept; NULL is what holds otherwise, zero is for ever. InvalidOid is for claims
 * without a target. The caller has checked rights.
 */
void
idem_maintenance_set_retention(const IdemLedger *ledger, Oid target, const char *pipeline,
							   const Interval *retention, const Interval *key_retention)
{
	IdemSpiArgs args = {0};

	idem_spi_connect();
	idem_spi_arg(&args, REGCLASSOID, ObjectIdGetDatum(target), false);
	idem_spi_arg_text(&args, pipeline);
	if (retention || key_retention)
	{
		idem_spi_arg(&args, REGTYPEOID,
					 ObjectIdGetDatum(OidIsValid(target) ? get_rel_type_id(target) : InvalidOid),
					 false);
		idem_spi_arg(&args, INTERVALOID, IntervalPGetDatum(retention), retention == NULL);
		idem_spi_arg(&args, INTERVALOID, IntervalPGetDatum(key_retention), key_retention == NULL);
		(void) run(ledger,
				   "INSERT INTO %1$s.idem_retention (target, pipeline, target_type, retention, key_retention)"
				   " VALUES ($1, $2, $3, $4, $5)"
				   " ON CONFLICT (target, pipeline) DO UPDATE SET target_type = EXCLUDED.target_type,"
				   " retention = EXCLUDED.retention, key_retention = EXCLUDED.key_retention", &args);
	}
	else
		(void) run(ledger,
				   "DELETE FROM %1$s.idem_retention"
				   " WHERE target = $1 AND pipeline IS NOT DISTINCT FROM $2", &args);
	idem_spi_finish();
}
