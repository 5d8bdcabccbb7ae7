/*-------------------------------------------------------------------------
 *
 * merge.c
 *	  One merge from beginning to end: resolve, lock, look up, apply, record.
 *
 * Locks are taken in this order: target and staging; the batch, with its ledger
 * row if there is one and it may be rewritten (reapply, apply); the target's
 * turn; rows of the target in key order; the ledger row if it is new. The batch
 * comes before the turn so that a replay does not queue behind merges of other
 * batches (unless its id is derived: then it has to look at the target), and so
 * that nowait finds out about the same batch at once. Whoever has the turn never
 * waits for the batch lock of another batch, unless its transaction merges more
 * than one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/instrument.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "deletions.h"
#include "engine_native.h"
#include "engine_sql.h"
#include "guc.h"
#include "idempotent_ingest.h"
#include "merge.h"
#include "progress.h"
#include "relcheck.h"
#include "rowhash.h"
#include "security.h"
#include "spi_util.h"
#include "sqlgen.h"
#include "stats.h"
#include "turn.h"

static const char ENGINE_NATIVE[] = "native";
static const char ENGINE_SQL[] = "sql";

/* A merge under way. */
typedef struct Merge
{
	const IdemLedger *ledger;
	const IdemRequest *request;
	const IdemMergeInfo *info;
	IdemSource	source;
	IdemBatchKey key;
	bool		derived;		/* the batch id is */
	char	   *fingerprint;	/* what the batch must have, or NULL */
	IdemLedgerRecord record;
	TimestampTz started;
	IdemMergeResult *result;
	struct Merge *outer;
} Merge;

/* The innermost merge that is applying a batch: what it runs can start others. */
static Merge *applying = NULL;

/* An interval of microseconds; longer ones than a day stay hours. */
static Interval
elapsed_interval(TimestampTz from, TimestampTz to)
{
	Interval	elapsed = {0};

	elapsed.time = to - from;
	return elapsed;
}

static void
set_rows(int64 *rows, const IdemCounts *counts)
{
	rows[0] = counts->staged;
	rows[1] = counts->duplicate;
	rows[2] = counts->inserted;
	rows[3] = counts->updated;
	rows[4] = counts->deleted;
	rows[5] = counts->unchanged;
	rows[6] = counts->stale;
	rows[7] = counts->skipped;
}

/* The columns that the fingerprint covers. */
static List *
staged_columns(const IdemMergeInfo *info)
{
	List	   *names = NIL;

	for (int i = 0; i < info->ncolumns; i++)
		if (!info->columns[i].is_audit)
			names = lappend(names, info->columns[i].name);
	return names;
}

/* Are these the same names, in whatever order? Each is there once. */
static bool
same_names(List *a, List *b)
{
	ListCell   *lc;

	foreach(lc, a)
	{
		if (!idem_relinfo_has_name(b, lfirst(lc)))
			return false;
	}
	return list_length(a) == list_length(b);
}

/* Compute the fingerprint of some columns of staging, and count its rows. */
static char *
scan(Merge *merge, List *columns, IdemCounts *counts)
{
	char	   *fingerprint;

	idem_progress_begin(merge->info->target, IDEM_PHASE_READING);
	idem_engine_sql_scan(&merge->source, columns, counts, &fingerprint);
	return fingerprint;
}

static const int32 *
turn_class(const IdemMergeInfo *info)
{
	return info->commutes ? &info->turn_class : NULL;
}

/* Lock the relations and work out what the merge means. */
static IdemMergeInfo *
resolve(const IdemRequest *request)
{
	IdemMergeInfo *info;

	idem_relinfo_precheck(request);

	/* To build indexes anew is the owner's right. */
	if (request->exclusive)
		idem_security_require_owner(request->target);

	/* A weaker lock first, and the stronger one later, would be a deadlock. */
	if (!request->dry_run &&
		(request->exclusive || (request->on_schema_change == IDEM_SCHEMA_ADD_COLUMNS &&
								idem_relinfo_differs(request))))
	{
		if (!request->exclusive)
			idem_security_require_owner(request->target);
		idem_relcheck_lock(request->target, AccessExclusiveLock);
	}
	idem_relcheck_lock(request->target,
					   request->dry_run ? AccessShareLock : RowExclusiveLock);
	idem_relcheck_lock(request->staging, AccessShareLock);
	info = idem_relinfo_resolve(request);
	idem_relinfo_require_privileges(info);
	return info;
}

/* 55P03: nowait is true, and there is somebody to wait for. */
static void
report_busy(const IdemBatchKey *key)
{
	ereport(ERROR,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
			 errmsg("another transaction is working on batch \"%s\"", key->batch_id),
			 errdetail("It has not ended yet, and \"nowait\" is true."),
			 errhint("Try again later.")));
}

/* Look the batch up, with the options as they are now. */
static bool
find(Merge *merge, IdemLedgerEntry *entry)
{
	bool		lock = merge->request->on_replay == IDEM_REPLAY_REAPPLY ||
	merge->request->on_mismatch == IDEM_MISMATCH_APPLY;

	if (lock && merge->request->nowait &&
		!idem_ledger_try_lock(merge->ledger, &merge->key))
		report_busy(&merge->key);
	return idem_ledger_find(merge->ledger, &merge->key, merge->info->options, lock, entry);
}

/* Return what the ledger has about the batch. */
static void
replay(Merge *merge, const IdemLedgerEntry *entry)
{
	IdemMergeResult *result = merge->result;

	result->status = "replayed";
	result->expired = entry->expired;
	result->revision = entry->revision;
	memcpy(result->rows, entry->rows, sizeof(result->rows));
	result->fingerprint = entry->fingerprint;
	result->engine = entry->engine;
	result->applied_at = entry->applied_at;
	result->elapsed = entry->elapsed;
	result->elapsed_null = entry->elapsed_null;
}

/*
 * Is it unknown whether the target had rows when the batch was applied? It had if
 * some were written, or were found as they are staged, or newer.
 */
static bool
had_no_rows(const IdemLedgerEntry *entry)
{
	return entry->rows[2] + entry->rows[3] + entry->rows[5] + entry->rows[6] == 0;
}

/*
 * II004: a replay would leave the target without the batch. Of one that has
 * expired it is not known whether it wrote rows, so that an empty target proves
 * nothing.
 */
static void
require_batch_in_target(const IdemBatchKey *key, const IdemLedgerEntry *entry)
{
	bool		deleted = idem_deletions_noticed(key);

	if (!deleted &&
		(had_no_rows(entry) || !idem_relcheck_is_empty(key->target)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_LOST_BATCH),
			 entry->is_merge ?
			 errmsg("batch \"%s\" was already applied, but target \"%s\" may have lost it",
					key->batch_id, get_rel_name(key->target)) :
			 errmsg("batch \"%s\" was already claimed, but target \"%s\" may have lost it",
					key->batch_id, get_rel_name(key->target)),
			 deleted ?
			 errdetail("It was recorded at %s, and this transaction has deleted rows from the target or truncated it.",
					   timestamptz_to_str(entry->applied_at)) :
			 errdetail("It was recorded at %s with rows in the target, which is empty now.",
					   timestamptz_to_str(entry->applied_at)),
			 entry->is_merge ?
			 errhint("Use on_replay => 'reapply' to apply it again, or idem_forget() to have it forgotten.") :
			 errhint("Use idem_forget() to have it forgotten, and claim it again.")));
}

/* II001: the id is known for something else. */
static void
report_mismatch(const IdemBatchKey *key, const IdemLedgerEntry *entry, bool content_differs,
				bool columns_missing, const IdemCounts *now)
{
	bool		options_only = !content_differs && !columns_missing;

	StringInfoData detail;

	initStringInfo(&detail);
	appendStringInfo(&detail, "It was applied at %s with %lld staged row%s.",
					 timestamptz_to_str(entry->applied_at), (long long) entry->rows[0],
					 entry->rows[0] == 1 ? "" : "s");
	if (columns_missing)
		appendStringInfoString(&detail, " Staging lacks columns that it had then.");
	else
		appendStringInfo(&detail, " The content %s; staging has %lld row%s now.",
						 content_differs ? "differs" : "is the same",
						 (long long) now->staged, now->staged == 1 ? "" : "s");
	if (entry->differing)
		appendStringInfo(&detail, " Options that differ: %s.", entry->differing);
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_MISMATCH),
			 errmsg("batch \"%s\" was already applied with different %s", key->batch_id,
					options_only ? "options" : "content"),
			 errdetail_internal("%s", detail.data),
			 options_only ?
			 errhint("Repeat the call with the options that it was applied with, or use on_mismatch => 'apply' to apply it with these.") :
			 errhint("Give other content another batch id, or use on_mismatch => 'apply' to apply it under this one.")));
}

/*
 * 55006: whatever a merge runs asks for the very batch that the merge is about,
 * of which the ledger does not know yet, or knows only the earlier revision.
 */
static void
require_not_applying(const IdemBatchKey *key)
{
	for (const Merge *merge = applying; merge; merge = merge->outer)
	{
		if (merge->key.target == key->target && merge->key.claimed_by == key->claimed_by &&
			strcmp(merge->key.pipeline, key->pipeline) == 0 &&
			strcmp(merge->key.batch_id, key->batch_id) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("batch \"%s\" is being merged by this very transaction",
							key->batch_id),
					 errdetail("A trigger, a default or a view that the merge runs has called idem_merge() or idem_claim() for the same batch."),
					 errhint("Give the inner call another batch id or another pipeline.")));
	}
}

/* II001: the id belongs to the other function. */
static void
report_other_operation(const IdemBatchKey *key, const IdemLedgerEntry *entry)
{
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_MISMATCH),
			 errmsg("batch \"%s\" was recorded by %s", key->batch_id,
					entry->is_merge ? "idem_merge()" : "idem_claim()"),
			 errdetail("It was recorded at %s.", timestamptz_to_str(entry->applied_at)),
			 errhint("Use another batch id or another pipeline.")));
}

/*
 * 40001: a ledger row is in the way, and cannot be seen. It was committed after
 * the snapshot was taken, or comes from somebody who does not lock batches; or
 * the ledger did not take ours, because somebody gave it a trigger.
 */
static void
report_race(const IdemBatchKey *key)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("could not serialize access to batch \"%s\"", key->batch_id),
			 errdetail("Another transaction has recorded it meanwhile, or a trigger keeps it out of the ledger."),
			 errhint("Run the transaction again.")));
}

/*
 * Take the target's turn. Under a snapshot from before, what others have merged
 * meanwhile would not be seen.
 */
static void
take_turn(Merge *merge)
{
	const IdemMergeInfo *info = merge->info;

	idem_progress_begin(info->target, IDEM_PHASE_WAITING);
	idem_turn_take(info->target, info->commutes, info->turn_class, merge->ledger->owner);
	if (IsolationUsesXactSnapshot() &&
		idem_ledger_overtaken(merge->ledger, info->target, turn_class(info)))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to a concurrent merge into \"%s\"",
						get_rel_name(info->target)),
				 errdetail("It committed after the snapshot of this transaction was taken."),
				 errhint("Run the transaction again.")));
}

/* Are the columns among those that staging is read by? */
static bool
can_scan(Merge *merge, List *columns)
{
	ListCell   *lc;

	if (!merge->source.materialize)
		return true;
	foreach(lc, columns)
	{
		if (!idem_relinfo_has_name(merge->source.columns, lfirst(lc)))
			return false;
	}
	return true;
}

/*
 * Decide what a known batch id means for this call. NULL: it is a replay, and
 * the result is set. Otherwise the batch is to be applied again, and the result
 * is what idem_audit calls that.
 */
static const char *
decide(Merge *merge, const IdemLedgerEntry *entry)
{
	const IdemRequest *request = merge->request;
	bool		content_differs = false;
	bool		columns_missing = false;
	char	   *expected = merge->fingerprint;
	IdemCounts	counts = {0};

	if (!entry->is_merge)
		report_other_operation(&merge->key, entry);
	if (entry->expired)
	{
		/* Nothing is left to compare with. Who wants this content gets it. */
		if (request->on_mismatch == IDEM_MISMATCH_APPLY && !merge->derived)
			return "apply";
	}
	else if (request->on_mismatch != IDEM_MISMATCH_SKIP && !merge->derived)
	{
		List	   *columns = idem_relinfo_columns(merge->info->staging, entry->columns, true);

		columns_missing = columns == NIL || !can_scan(merge, columns);
		if (!columns_missing)
		{
			/*
			 * Staging can change until it is applied, but that shall be what
			 * is compared here. It may have columns that it had not then;
			 * read them before, so that what changes in between is noticed.
			 */
			if (request->on_replay == IDEM_REPLAY_REAPPLY)
			{
				List	   *staged = staged_columns(merge->info);

				expected = same_names(staged, columns) ? entry->fingerprint :
					scan(merge, staged, &counts);
			}
			content_differs = strcmp(scan(merge, columns, &counts), entry->fingerprint) != 0;
		}
		if (columns_missing || content_differs || entry->differing)
		{
			if (request->on_mismatch == IDEM_MISMATCH_APPLY)
				return "apply";
			report_mismatch(&merge->key, entry, content_differs, columns_missing, &counts);
		}
	}
	if (request->on_replay == IDEM_REPLAY_REAPPLY)
	{
		merge->fingerprint = expected;
		return "reapply";
	}
	if (merge->derived)
	{
		int64		differing;
		char	   *fingerprint;

		/*
		 * The same content may have been overwritten since, by a later state:
		 * whether it is a retry or a return to an earlier state, only the
		 * caller knows. Merges that are not committed yet count, since they
		 * may commit before us.
		 */
		take_turn(merge);
		idem_progress_begin(merge->info->target, IDEM_PHASE_READING);
		idem_engine_sql_classify(&merge->source, merge->info, &counts, &fingerprint);
		differing = counts.inserted + counts.updated;
		if (differing > 0)
			ereport(ERROR,
					(errcode(ERRCODE_IDEM_NOT_IN_TARGET),
					 errmsg("the same content was merged before and is not in target \"%s\" any more",
							get_rel_name(merge->key.target)),
					 errdetail_plural("Batch \"%s\" was applied at %s; %lld staged row differs from the target now.",
									  "Batch \"%s\" was applied at %s; %lld staged rows differ from the target now.",
									  differing, merge->key.batch_id,
									  timestamptz_to_str(entry->applied_at),
									  (long long) differing),
					 errhint("If the target is to return to this state, give a batch id of its own, or use on_replay => 'reapply'.")));
	}
	else
		require_batch_in_target(&merge->key, entry);
	if (request->on_replay == IDEM_REPLAY_ERROR)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_ALREADY_APPLIED),
				 errmsg("batch \"%s\" was already applied", merge->key.batch_id),
				 errdetail("It was applied at %s, and \"on_replay\" is error.",
						   timestamptz_to_str(entry->applied_at)),
				 errhint("Use on_replay => 'skip' to get the recorded result instead.")));
	replay(merge, entry);
	return NULL;
}

/* Give the target the columns that only staging has, and look at it again. */
static void
add_columns(Merge *merge)
{
	if (merge->info->added == NIL)
		return;
	idem_engine_sql_add_columns(merge->info);
	merge->info = idem_relinfo_resolve(merge->request);
}

/* The engine that is to apply a batch first, and why. */
static const char *
choose_engine(const IdemMergeInfo *info, const char **reason)
{
	const char *refusal = idem_engine_native_refusal(info);

	if (idem_guc_engine == IDEM_ENGINE_NATIVE && refusal)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the native engine cannot merge into target \"%s\"",
						get_rel_name(info->target)),
				 errdetail("The reason is: %s.", refusal),
				 errhint("Set \"idempotent_ingest.engine\" to auto or sql.")));
	if (idem_guc_engine != IDEM_ENGINE_AUTO)
	{
		*reason = "idempotent_ingest.engine says so";
		return idem_guc_engine == IDEM_ENGINE_NATIVE ? ENGINE_NATIVE : ENGINE_SQL;
	}
	*reason = refusal ? refusal : idem_engine_native_disadvantage(info);
	if (*reason)
		return ENGINE_SQL;
	*reason = "the target is a plain table";
	return ENGINE_NATIVE;
}

/* Apply the batch; returns the engine that has done it. */
static const char *
run_engine(Merge *merge, IdemCounts *counts, char **fingerprint)
{
	const char *reason;
	const char *engine = choose_engine(merge->info, &reason);
	IdemWritten written;

	if (engine == ENGINE_SQL)
		idem_engine_native_note_skipped(merge->info);
	else if (idem_engine_native_apply(&merge->source, merge->info, counts, fingerprint))
		return engine;
	idem_progress_begin(merge->info->target, IDEM_PHASE_APPLYING);
	written = idem_deletions_begin(merge->info->target);
	idem_engine_sql_apply(&merge->source, merge->info, counts, fingerprint);
	idem_deletions_end(merge->info->target, written, counts->inserted);
	return ENGINE_SQL;
}

/* Apply the batch, and say what of it is to be recorded. */
static void
apply(Merge *merge)
{
	IdemMergeResult *result = merge->result;
	IdemLedgerRecord *record = &merge->record;
	IdemCounts	counts = {0};
	char	   *fingerprint;

	add_columns(merge);
	record->engine = run_engine(merge, &counts, &fingerprint);
	if (merge->fingerprint && strcmp(merge->fingerprint, fingerprint) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("staging \"%s\" changed while it was merged",
						get_rel_name(merge->info->staging)),
				 merge->derived ?
				 errdetail("The batch id was derived from what it contained before.") :
				 errdetail("What it contained before is what batch \"%s\" was applied with.",
						   merge->key.batch_id),
				 merge->derived ?
				 errhint("Run the transaction again, or give a batch id.") :
				 errhint("Run the transaction again.")));
	idem_progress_begin(merge->info->target, IDEM_PHASE_RECORDING);
	record->is_merge = true;
	record->applied_at = GetCurrentTimestamp();
	record->elapsed = elapsed_interval(merge->started, record->applied_at);
	record->fingerprint = fingerprint;
	record->columns = staged_columns(merge->info);
	set_rows(record->rows, &counts);

	result->fingerprint = fingerprint;
	memcpy(result->rows, record->rows, sizeof(result->rows));
	result->engine = record->engine;
	result->applied_at = record->applied_at;
	result->elapsed = record->elapsed;
}

/* Replay the batch that merge->key names, or apply and record it. */
static void
submit(Merge *merge)
{
	const IdemRequest *request = merge->request;
	IdemLedgerEntry entry;
	const char *action;

	require_not_applying(&merge->key);
	idem_progress_begin(merge->key.target, IDEM_PHASE_WAITING);
	if (!idem_turn_lock_batch(merge->key.target, merge->key.pipeline, merge->key.batch_id,
							  merge->key.claimed_by, request->nowait, merge->ledger->owner))
		report_busy(&merge->key);
	idem_ledger_begin_record(&merge->record, merge->info->options,
							 request->metadata, request->metadata_null);
	merge->record.turn_class = turn_class(merge->info);
	merge->outer = applying;
	applying = merge;
	if (!find(merge, &entry))
	{
		if (idem_ledger_is_hidden(merge->ledger, &merge->key))
			report_race(&merge->key);
		take_turn(merge);
		apply(merge);
		if (!idem_ledger_insert(merge->ledger, &merge->key, &merge->record))
			report_race(&merge->key);
		idem_deletions_recorded(&merge->key);
		merge->result->status = "applied";
		merge->result->revision = 1;
	}
	else if ((action = decide(merge, &entry)) != NULL)
	{
		take_turn(merge);
		apply(merge);
		idem_ledger_revise(merge->ledger, &merge->key, action, &merge->record);
		idem_deletions_recorded(&merge->key);
		merge->result->status = "reapplied";
		merge->result->revision = entry.revision + 1;
	}
	applying = merge->outer;
}

/*
 * Count what the merge would do. What only reads does so under the active
 * snapshot; that of the calling statement may be older than our locks, and would
 * not show what those have committed whom we waited for.
 */
static void
dry_run(Merge *merge)
{
	IdemMergeResult *result = merge->result;
	IdemCounts	counts;
	char	   *fingerprint;

	idem_progress_begin(merge->info->target, IDEM_PHASE_READING);
	idem_source_lock(&merge->source);
	PushActiveSnapshot(GetTransactionSnapshot());
	idem_engine_sql_classify(&merge->source, merge->info, &counts, &fingerprint);
	PopActiveSnapshot();
	set_rows(result->rows, &counts);
	result->status = "dry_run";
	result->batch_id = merge->request->batch_id;
	result->fingerprint = fingerprint;
	result->engine = ENGINE_SQL;
	result->applied_at_null = true;
	result->elapsed = elapsed_interval(merge->started, GetCurrentTimestamp());
}

/* Says in the context of every error which merge it was. */
static void
merge_error_context(void *arg)
{
	const Merge *merge = arg;

	/* Names are known once the relations are; look-ups have no place here. */
	if (merge->info)
		errcontext("merge of %s into %s", merge->info->staging_name, merge->info->target_name);
}

static void
run(const IdemLedger *ledger, const IdemRequest *request, IdemMergeResult *result)
{
	ErrorContextCallback error_context;
	Merge		merge = {0};
	IdemMergeInfo *info;
	IdemCounts	counts;

	if (!request->dry_run)
		PreventCommandIfReadOnly("idem_merge()");
	merge.ledger = ledger;
	merge.request = request;
	merge.result = result;
	merge.started = GetCurrentTimestamp();
	error_context.callback = merge_error_context;
	error_context.arg = &merge;
	error_context.previous = error_context_stack;
	error_context_stack = &error_context;

	idem_spi_connect();
	merge.info = info = resolve(request);
	result->permitted = true;
	idem_relcheck_snapshot(info->target);
	idem_relcheck_snapshot(info->staging);
	/* A newer index leads to rows that had another key then. */
	idem_relcheck_snapshot(info->index);
	idem_relinfo_report(info);
	idem_source_begin(&merge.source, ledger, info->staging, request->dry_run);
	if (request->dry_run)
		dry_run(&merge);
	else
	{
		merge.key.target = info->target;
		merge.key.target_type = info->target_type;
		merge.key.pipeline = request->pipeline;
		merge.key.batch_id = request->batch_id;
		if (request->batch_id == NULL)
		{
			merge.derived = true;
			merge.fingerprint = scan(&merge, staged_columns(info), &counts);
			merge.key.batch_id = psprintf("content:%s",
										  idem_rowhash_text(merge.fingerprint, info->options));
		}
		if (merge.derived && counts.staged == 0)
		{
			/* Nothing to remember: any empty batch would be the same one. */
			result->status = "applied";
			result->fingerprint = merge.fingerprint;
			result->engine = ENGINE_SQL;
			result->applied_at_null = true;
			result->elapsed = elapsed_interval(merge.started, GetCurrentTimestamp());
		}
		else
		{
			result->batch_id = merge.key.batch_id;
			submit(&merge);
		}
	}
	idem_source_end(&merge.source);
	idem_progress_end();
	idem_spi_finish();
	error_context_stack = error_context.previous;
}

/* Count a merge in the statistics. */
static void
count(const IdemRequest *request, const IdemMergeResult *result, TimestampTz started,
	  uint64 wal_bytes)
{
	IdemStatsCounts counts = {0};

	if (request->dry_run)
		return;
	counts.outcomes[strcmp(result->status, "replayed") == 0 ? IDEM_STATS_REPLAYED :
					strcmp(result->status, "reapplied") == 0 ? IDEM_STATS_REAPPLIED :
					IDEM_STATS_APPLIED] = 1;
	if (strcmp(result->status, "replayed") != 0)
	{
		memcpy(counts.rows, result->rows, sizeof(counts.rows));
		counts.last_batch = GetCurrentTimestamp();
	}
	counts.microseconds = GetCurrentTimestamp() - started;
	counts.wal_bytes = pgWalUsage.wal_bytes - wal_bytes;
	idem_stats_count(request->target, &counts);
}

/*
 * Run a merge. The result's parts are palloc'd in the current memory context.
 */
void
idem_merge_run(const IdemLedger *ledger, const IdemRequest *request, IdemMergeResult *result)
{
	TimestampTz started = GetCurrentTimestamp();
	uint64		wal_bytes = pgWalUsage.wal_bytes;
	Merge	   *outer = applying;

	memset(result, 0, sizeof(*result));
	PG_TRY();
	{
		run(ledger, request, result);
	}
	PG_CATCH();
	{
		applying = outer;
		/* Those who may not merge into the target do not count there. */
		if (result->permitted && !request->dry_run)
			idem_stats_count_error(request->target, geterrcode());
		PG_RE_THROW();
	}
	PG_END_TRY();
	count(request, result, started, wal_bytes);
}

/* Say how a merge would run. */
void
idem_merge_explain(const IdemLedger *ledger, const IdemRequest *request,
				   IdemExplanation *explanation)
{
	IdemMergeInfo *info;
	bool		adds;
	IdemSource	source;
	IdemRequest look = *request;

	/* Whatever it would lock, to look takes no more than AccessShare. */
	look.dry_run = true;
	idem_spi_connect();
	info = resolve(&look);
	adds = info->added != NIL;
	idem_source_begin(&source, ledger, info->staging, true);
	if (request->dry_run)
	{
		explanation->engine = ENGINE_SQL;
		explanation->reason = "a dry run is a query";
	}
	else
		explanation->engine = choose_engine(info, &explanation->reason);
	if (request->dry_run)
		explanation->locks = psprintf("ACCESS SHARE on %s\nACCESS SHARE on %s",
									  info->target_name, info->staging_name);
	else
		explanation->locks = psprintf("%s on %s\n"
									  "ACCESS SHARE on %s\n"
									  "the batch\n"
									  "the turn of the target%s\n"
									  "the rows to be written, in the order of the key\n"
									  "the ledger row",
									  adds || request->exclusive ? "ACCESS EXCLUSIVE" :
									  "ROW EXCLUSIVE",
									  info->target_name, info->staging_name,
									  info->commutes ? ", beside merges of the same columns" : "");
	explanation->statement = idem_engine_sql_statement(&source, info, request->dry_run);
	idem_spi_finish();
}

/* The fingerprint of a relation; columns NIL means all. Palloc'd. */
char *
idem_merge_fingerprint(const IdemLedger *ledger, Oid staging, List *columns)
{
	IdemSource	source;
	IdemCounts	counts;
	char	   *fingerprint;
	ListCell   *lc;

	idem_relcheck_require_exists(staging);
	idem_security_require_visible(staging);
	if (pg_attribute_aclcheck_all(staging, GetUserId(), ACL_SELECT, ACLMASK_ANY) != ACLCHECK_OK)
		idem_security_require(staging, InvalidAttrNumber, ACL_SELECT);
	idem_relcheck_lock(staging, AccessShareLock);
	idem_relcheck_staging(staging);
	columns = idem_relinfo_columns(staging, columns, false);
	if (columns == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("relation \"%s\" has no columns", get_rel_name(staging)),
				 errhint("A fingerprint is of the values in columns.")));
	foreach(lc, columns)
		idem_security_require(staging, get_attnum(staging, lfirst(lc)), ACL_SELECT);
	idem_relcheck_snapshot(staging);

	idem_spi_connect();
	idem_source_begin(&source, ledger, staging, true);
	idem_source_lock(&source);
	/* As for a dry run, one that is no older than the locks. */
	PushActiveSnapshot(GetTransactionSnapshot());
	idem_engine_sql_scan(&source, columns, &counts, &fingerprint);
	PopActiveSnapshot();
	idem_source_end(&source);
	idem_spi_finish();
	return fingerprint;
}

/*
 * Record a batch for statements of the caller. False if it was recorded before.
 */
bool
idem_merge_claim(const IdemLedger *ledger, Oid target, const char *pipeline,
				 const char *batch_id, const char *fingerprint,
				 Datum metadata, bool metadata_null)
{
	IdemBatchKey key = {0};
	IdemLedgerEntry entry;
	bool		claimed;

	PreventCommandIfReadOnly("idem_claim()");
	key.target = target;
	key.pipeline = pipeline;
	key.batch_id = batch_id;
	if (OidIsValid(target))
	{
		idem_security_require_write(target);
		idem_relcheck_lock(target, RowExclusiveLock);
		idem_security_require_write(target);
	}

	idem_spi_connect();
	if (OidIsValid(target))
	{
		idem_relcheck_target(target, InvalidOid);
		key.target_type = get_rel_type_id(target);
	}
	else
		key.claimed_by = GetUserId();
	require_not_applying(&key);
	(void) idem_turn_lock_batch(key.target, pipeline, batch_id, key.claimed_by, false,
								ledger->owner);
	claimed = !idem_ledger_find(ledger, &key, "{}", false, &entry);
	if (claimed)
	{
		IdemLedgerRecord record;

		idem_ledger_begin_record(&record, "{}", metadata, metadata_null);
		record.fingerprint = fingerprint;
		record.applied_at = GetCurrentTimestamp();
		if (!idem_ledger_insert(ledger, &key, &record))
			report_race(&key);
		if (OidIsValid(target))
			idem_deletions_recorded(&key);
	}
	else
	{
		if (entry.is_merge)
			report_other_operation(&key, &entry);
		if (fingerprint && entry.fingerprint && strcmp(fingerprint, entry.fingerprint) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_IDEM_MISMATCH),
					 errmsg("batch \"%s\" was already claimed with another fingerprint", batch_id),
					 !OidIsValid(target) || idem_security_may_read(target) ?
					 errdetail("It was claimed at %s with fingerprint \"%s\".",
							   timestamptz_to_str(entry.applied_at), entry.fingerprint) :
					 errdetail("It was claimed at %s.", timestamptz_to_str(entry.applied_at)),
					 errhint("Give other content another batch id.")));
		if (OidIsValid(target) && idem_deletions_noticed(&key))
			require_batch_in_target(&key, &entry);
	}
	idem_spi_finish();
	return claimed;
}
