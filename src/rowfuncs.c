/*-------------------------------------------------------------------------
 *
 * rowfuncs.c
 *	  The functions that the generated statement calls for each row.
 *
 * They filter, compare and count; sqlgen.c shows where each of them stands. The
 * first argument is a random handle, by which they find the run that they work
 * for: whoever calls them from elsewhere does not know it.
 *
 * The fate of a proposed row is known once the next one is proposed, or the
 * statement has ended:
 *
 *		guard called		RETURNING reached		fate
 *		no					yes						inserted
 *		no					no						a BEFORE trigger skipped it, or
 *													DO NOTHING found it stored
 *		said yes			yes						updated
 *		said yes			no						a BEFORE trigger skipped it
 *		said no				no						unchanged or stale after all
 *
 * Faults of the batch (duplicate keys, NULL keys, stale rows where these are an
 * error) do not end the statement at once: no more rows are let through, the
 * rest of the batch is looked at, and the error at the end says all of it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"


#include "access/table.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/supportnodes.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"

#include "idempotent_ingest.h"
#include "progress.h"
#include "resultrel.h"
#include "rowcmp.h"
#include "rowfuncs.h"
#include "sqlgen.h"

PG_FUNCTION_INFO_V1(idem_row_support);
PG_FUNCTION_INFO_V1(idem_row_staged);
PG_FUNCTION_INFO_V1(idem_row_distinct);
PG_FUNCTION_INFO_V1(idem_row_classify);
PG_FUNCTION_INFO_V1(idem_row_propose);
PG_FUNCTION_INFO_V1(idem_row_guard);
PG_FUNCTION_INFO_V1(idem_row_applied);
PG_FUNCTION_INFO_V1(idem_column_default);

/* Longer values are cut where an error names keys. */
#define MAX_SHOWN_VALUE 64

/* A copy of a row that outlives the row. */
typedef struct SavedRow
{
	bool		valid;
	Datum	   *values;
	bool	   *nulls;
	char	   *data;			/* the by-reference values */
	Size		size;
} SavedRow;

struct IdemRun
{
	int64		handle;
	IdemRun    *outer;			/* the run that was active before */
	IdemRunKind kind;
	const IdemMergeInfo *info;	/* NULL in a scan */
	MemoryContext context;

	int			ncolumns;
	bool		wide;			/* rows come as records */
	Datum	   *values;			/* room for a deformed record */
	bool	   *nulls;
	IdemFingerprint *fingerprint;
	IdemCounts	counts;
	bool		failed;			/* let no more rows through */

	/* keys */
	int			nkeys;
	int		   *key_columns;
	FmgrInfo   *key_equal;
	Oid		   *key_collations;
	bool		has_null_keys;
	int64	   *null_keys;		/* rows with NULL, for each column of the key */

	/* idem_row_distinct */
	IdemComparer *comparer;
	SavedRow	first;			/* first row of the current key */
	bool		key_conflicts;
	int64		conflicting_keys;
	StringInfoData shown_keys;
	int64		endless_versions;	/* NaN and infinity */

	/* idem_row_classify and idem_row_guard */
	int			npairs;
	int		   *pair_columns;	/* positions of the columns that are compared */
	bool		wide_pairs;
	Datum	   *stored_values;
	bool	   *stored_nulls;
	Datum	   *pair_values;	/* room for a deformed record */
	bool	   *pair_nulls;
	FmgrInfo   *classify_call;	/* of the plan proper, not of a recheck */
	int64		stale_errors;

	/* idem_row_propose and idem_row_applied */
	struct
	{
		bool		active;
		bool		matched;
		bool		guarded;
		IdemRowFate fate;
		bool		returned;
		bool		key_changed;	/* by a BEFORE trigger */
	}			row;
	SavedRow	proposed_key;
	int64		changed_keys;
	bool		revived;		/* a matched row was inserted: deleted
								 * meanwhile, or moved to another key */

	/* idem_column_default */
	EState	   *estate;
	ExprState **defaults;		/* by position in info->lacking */
};

/* The innermost running merge of this session. */
static IdemRun *active_run = NULL;

static void
init_saved_row(SavedRow *saved, int ncolumns)
{
	saved->values = palloc0(sizeof(Datum) * Max(ncolumns, 1));
	saved->nulls = palloc0(sizeof(bool) * Max(ncolumns, 1));
}

/* Copy a row; images are those of its columns. */
static void
save_row(IdemRun *run, SavedRow *saved, int ncolumns, const Datum *values, const bool *nulls,
		 IdemImageType **images)
{
	Size		needed = 0;
	char	   *next;

	for (int i = 0; i < ncolumns; i++)
	{
		saved->nulls[i] = nulls[i];
		saved->values[i] = values[i];
		if (!nulls[i] && !idem_rowhash_is_byval(images[i]))
			needed += MAXALIGN(datumGetSize(values[i], false, idem_rowhash_typlen(images[i])));
	}
	if (needed > saved->size)
	{
		if (saved->data)
			pfree(saved->data);
		saved->size = needed * 2;
		saved->data = MemoryContextAllocHuge(run->context, saved->size);
	}
	next = saved->data;
	for (int i = 0; i < ncolumns; i++)
		if (!nulls[i] && !idem_rowhash_is_byval(images[i]))
		{
			Size		size = datumGetSize(values[i], false, idem_rowhash_typlen(images[i]));

			memcpy(next, DatumGetPointer(values[i]), size);
			saved->values[i] = PointerGetDatum(next);
			next += MAXALIGN(size);
		}
	saved->valid = true;
}

/*
 * Compile the defaults of columns that staging lacks: before a row needs one, as
 * for an INSERT, so that what is wrong with a default is an error at once.
 */
static void
prepare_defaults(IdemRun *run)
{
	Relation	target = table_open(run->info->target, NoLock);

	run->estate = CreateExecutorState();
	for (int i = 0; i < run->info->nlacking; i++)
		if (run->info->lacking[i].has_default)
			run->defaults[i] = ExecPrepareExpr(idem_resultrel_default(target,
																	  run->info->lacking[i].attnum),
											   run->estate);
	table_close(target, NoLock);
}

/*
 * Begin a run and make it the active one. The columns are those that
 * idem_row_staged gets, in that order. It lives in a context below the current
 * one; idem_rowfuncs_end() must be called, also after an error.
 */
IdemRun *
idem_rowfuncs_begin(IdemRunKind kind, const IdemMergeInfo *info,
					int ncolumns, char **names, Oid *types)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "idem_merge run",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	IdemRun    *run = palloc0(sizeof(IdemRun));
	bool	   *covered = NULL;

	if (!pg_strong_random(&run->handle, sizeof(run->handle)))
		elog(ERROR, "could not generate random values");
	run->kind = kind;
	run->info = info;
	run->context = context;
	run->ncolumns = ncolumns;
	run->wide = ncolumns > IDEM_MAX_SEPARATE_ARGS;
	run->values = palloc(sizeof(Datum) * Max(ncolumns, 1));
	run->nulls = palloc(sizeof(bool) * Max(ncolumns, 1));
	initStringInfo(&run->shown_keys);

	if (info)
	{
		covered = palloc(sizeof(bool) * ncolumns);
		run->comparer = idem_rowcmp_begin(info);
		run->pair_columns = palloc(sizeof(int) * Max(ncolumns, 1));
		for (int i = 0; i < ncolumns; i++)
		{
			covered[i] = !info->columns[i].is_audit;
			if (info->columns[i].is_compared)
				run->pair_columns[run->npairs++] = i;
		}
		run->wide_pairs = run->npairs * 2 > IDEM_MAX_SEPARATE_ARGS;
		run->stored_values = palloc(sizeof(Datum) * Max(ncolumns, 1));
		run->stored_nulls = palloc(sizeof(bool) * Max(ncolumns, 1));
		run->pair_values = palloc(sizeof(Datum) * Max(run->npairs, 1));
		run->pair_nulls = palloc(sizeof(bool) * Max(run->npairs, 1));
		run->nkeys = info->nkeys;
		run->key_columns = palloc(sizeof(int) * info->nkeys);
		run->key_equal = palloc(sizeof(FmgrInfo) * info->nkeys);
		run->key_collations = palloc(sizeof(Oid) * info->nkeys);
		run->null_keys = palloc0(sizeof(int64) * info->nkeys);
		for (int i = 0; i < info->nkeys; i++)
		{
			run->key_columns[i] = info->keys[i].column;
			run->key_collations[i] = info->keys[i].collation;
			fmgr_info(get_opcode(info->keys[i].equal_operator), &run->key_equal[i]);
		}
		init_saved_row(&run->first, ncolumns);
		init_saved_row(&run->proposed_key, info->nkeys);
		run->defaults = palloc0(sizeof(ExprState *) * Max(info->nlacking, 1));
		if (kind == IDEM_RUN_APPLY && info->nlacking > 0)
			prepare_defaults(run);
	}
	run->fingerprint = idem_rowhash_begin(ncolumns, names, types, covered,
										  get_hash_memory_limit());

	run->outer = active_run;
	active_run = run;
	MemoryContextSwitchTo(old_context);
	return run;
}

/* End a run, whether it succeeded or not, and free it. */
void
idem_rowfuncs_end(IdemRun *run)
{
	active_run = run->outer;
	MemoryContextDelete(run->context);
}

/* What $1 of the run's statement must be. */
int64
idem_rowfuncs_handle(const IdemRun *run)
{
	return run->handle;
}

/* The run that a function was called for. */
static IdemRun *
find_run(FunctionCallInfo fcinfo)
{
	IdemRun    *run = active_run;

	if (PG_ARGISNULL(0))
		run = NULL;
	while (run && run->handle != PG_GETARG_INT64(0))
		run = run->outer;
	if (run == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("function was not called by a running merge"),
				 errhint("Call idem_merge(); this function is internal to it.")));
	return run;
}

/* Put the row that a function got into run->values and run->nulls. */
static void
get_row(IdemRun *run, FunctionCallInfo fcinfo)
{
	if (run->wide)
	{
		idem_rowhash_deform(PG_GETARG_DATUM(1), run->ncolumns, run->values, run->nulls);
		return;
	}
	if (PG_NARGS() != run->ncolumns + 1)
		elog(ERROR, "got %d columns, expected %d", PG_NARGS() - 1, run->ncolumns);
	for (int i = 0; i < run->ncolumns; i++)
	{
		run->values[i] = PG_GETARG_DATUM(i + 1);
		run->nulls[i] = PG_ARGISNULL(i + 1);
	}
}

/* Count a row whose key is NULL in some columns; true if it is. */
static bool
has_null_key(IdemRun *run)
{
	bool		found = false;

	if (run->info->nulls_not_distinct)
		return false;
	for (int i = 0; i < run->nkeys; i++)
		if (run->nulls[run->key_columns[i]])
		{
			run->null_keys[i]++;
			found = true;
		}
	run->has_null_keys |= found;
	run->failed |= found;
	return found;
}

/*
 * The filters let pass what they are given, as far as a planner can know: the
 * default for functions, a third, would make it underestimate each time.
 */
Datum
idem_row_support(PG_FUNCTION_ARGS)
{
	Node	   *request = (Node *) PG_GETARG_POINTER(0);

	if (!IsA(request, SupportRequestSelectivity))
		PG_RETURN_POINTER(NULL);
	((SupportRequestSelectivity *) request)->selectivity = 1.0;
	PG_RETURN_POINTER(request);
}

/* A row as it was staged. */
Datum
idem_row_staged(PG_FUNCTION_ARGS)
{
	IdemRun    *run = find_run(fcinfo);

	get_row(run, fcinfo);
	run->counts.staged++;
	if (IDEM_PROGRESS_IS_DUE(run->counts.staged))
		pgstat_progress_update_param(IDEM_PROGRESS_ROWS_READ, run->counts.staged);
	idem_rowhash_add(run->fingerprint, run->values, run->nulls);
	PG_RETURN_BOOL(run->kind != IDEM_RUN_SCAN && !has_null_key(run));
}

/* Is the current row of the same key as the saved one? */
static bool
same_key(IdemRun *run)
{
	for (int i = 0; i < run->nkeys; i++)
	{
		int			column = run->key_columns[i];

		if (run->nulls[column] || run->first.nulls[column])
		{
			if (run->nulls[column] != run->first.nulls[column])
				return false;
		}
		else if (!DatumGetBool(FunctionCall2Coll(&run->key_equal[i], run->key_collations[i],
												 run->values[column],
												 run->first.values[column])))
			return false;
	}
	return true;
}

/* Does the current row contradict the saved one, of the same key? */
static bool
contradicts(IdemRun *run)
{
	if (run->info->on_duplicate == IDEM_DUPLICATE_ANY)
		return false;
	if (run->info->on_duplicate == IDEM_DUPLICATE_LATEST &&
		idem_rowcmp_versions(run->comparer, run->values, run->nulls,
							 run->first.values, run->first.nulls) != 0)
		return false;			/* older: the order is by version */
	return !idem_rowcmp_same_content(run->comparer, run->values, run->nulls,
									 run->first.values, run->first.nulls);
}

/* Note a key of which the batch has different rows. */
static void
note_conflict(IdemRun *run)
{
	StringInfo	keys = &run->shown_keys;

	run->failed = true;
	if (run->key_conflicts)
		return;
	run->key_conflicts = true;
	if (++run->conflicting_keys > IDEM_MAX_KEYS_SHOWN)
		return;
	appendStringInfoString(keys, keys->len > 0 ? ", (" : "(");
	for (int i = 0; i < run->nkeys; i++)
	{
		int			column = run->key_columns[i];
		Oid			output;
		bool		isvarlena;
		char	   *text;
		int			len;

		appendStringInfoString(keys, i > 0 ? ", " : "");
		if (run->nulls[column])
		{
			appendStringInfoString(keys, "null");
			continue;
		}
		getTypeOutputInfo(run->info->columns[column].type, &output, &isvarlena);
		text = OidOutputFunctionCall(output, run->values[column]);

		len = pg_mbcliplen(text, strlen(text), MAX_SHOWN_VALUE);
		appendBinaryStringInfo(keys, text, len);
		if (text[len] != '\0')
			appendStringInfoString(keys, "...");
	}
	appendStringInfoChar(keys, ')');
}

/* A row after casts, in the order of the key; the best row of a key is first. */
Datum
idem_row_distinct(PG_FUNCTION_ARGS)
{
	IdemRun    *run = find_run(fcinfo);

	get_row(run, fcinfo);
	if (has_null_key(run))		/* a cast made it NULL */
		PG_RETURN_BOOL(false);
	if (run->first.valid && same_key(run))
	{
		run->counts.duplicate++;
		if (contradicts(run))
			note_conflict(run);
		PG_RETURN_BOOL(false);
	}
	save_row(run, &run->first, run->ncolumns, run->values, run->nulls, run->comparer->images);
	run->key_conflicts = false;
	run->endless_versions += idem_rowcmp_is_endless(run->comparer, run->values, run->nulls);
	/* Stale rows are counted to the end, even where one of them is an error. */
	PG_RETURN_BOOL(!run->has_null_keys && run->conflicting_keys == 0);
}

/* Take the compared columns of a row from where they were put together. */
static void
spread_pairs(IdemRun *run, Datum *values, bool *nulls)
{
	for (int i = 0; i < run->npairs; i++)
	{
		values[run->pair_columns[i]] = run->pair_values[i];
		nulls[run->pair_columns[i]] = run->pair_nulls[i];
	}
}

/* Compare a proposed row with the stored one; their columns start at argument first. */
static IdemRowFate
compare_rows(IdemRun *run, FunctionCallInfo fcinfo, int first)
{
	if (run->wide_pairs)
	{
		idem_rowhash_deform(PG_GETARG_DATUM(first), run->npairs,
							run->pair_values, run->pair_nulls);
		spread_pairs(run, run->values, run->nulls);
		idem_rowhash_deform(PG_GETARG_DATUM(first + 1), run->npairs,
							run->pair_values, run->pair_nulls);
		spread_pairs(run, run->stored_values, run->stored_nulls);
	}
	else
	{
		if (PG_NARGS() != first + 2 * run->npairs)
			elog(ERROR, "got %d columns, expected %d", PG_NARGS() - first, 2 * run->npairs);
		for (int i = 0; i < run->npairs; i++)
		{
			int			column = run->pair_columns[i];

			run->values[column] = PG_GETARG_DATUM(first + 2 * i);
			run->nulls[column] = PG_ARGISNULL(first + 2 * i);
			run->stored_values[column] = PG_GETARG_DATUM(first + 2 * i + 1);
			run->stored_nulls[column] = PG_ARGISNULL(first + 2 * i + 1);
		}
	}
	return idem_rowcmp_stored(run->comparer, run->values, run->nulls,
							  run->stored_values, run->stored_nulls);
}

/* Count a row that is left alone, as its fate says. */
static void
count_left_alone(IdemRun *run, IdemRowFate fate)
{
	if (fate == IDEM_ROW_UNCHANGED)
		run->counts.unchanged++;
	else
	{
		run->counts.stale++;
		if (run->info->request->on_stale == IDEM_STALE_ERROR)
		{
			run->stale_errors++;
			run->failed = true;
		}
	}
}

/*
 * A staged row beside the stored one of its key. The second argument is NULL if
 * there is none.
 */
Datum
idem_row_classify(PG_FUNCTION_ARGS)
{
	IdemRun    *run = find_run(fcinfo);
	IdemMode	mode = run->info->request->mode;
	bool		stored = !PG_ARGISNULL(1);
	bool		recheck = false;
	IdemRowFate fate;

	/*
	 * SELECT FOR UPDATE evaluates its condition again, by another expression,
	 * when the row has changed before it could be locked.
	 */
	if (mode == IDEM_MODE_UPDATE && run->kind == IDEM_RUN_APPLY)
	{
		if (run->classify_call == NULL)
			run->classify_call = fcinfo->flinfo;
		recheck = run->classify_call != fcinfo->flinfo;
	}
	if (!stored)
	{
		if (mode == IDEM_MODE_UPDATE)
			PG_RETURN_BOOL(false);	/* skipped: what is left at the end */
		run->counts.inserted += run->kind == IDEM_RUN_CLASSIFY;
		PG_RETURN_BOOL(run->kind == IDEM_RUN_APPLY && !run->failed);
	}
	if (mode == IDEM_MODE_INSERT)
	{
		run->counts.skipped++;
		PG_RETURN_BOOL(false);
	}
	fate = compare_rows(run, fcinfo, 2);
	if (fate != IDEM_ROW_CHANGED)
	{
		count_left_alone(run, fate);
		PG_RETURN_BOOL(false);
	}
	run->counts.updated += run->kind == IDEM_RUN_CLASSIFY;
	PG_RETURN_BOOL(run->kind == IDEM_RUN_APPLY && (!run->failed || recheck));
}

/* Count what became of the row that was proposed last. */
static void
finish_row(IdemRun *run)
{
	if (!run->row.active)
		return;
	run->row.active = false;
	if (run->row.returned && run->row.guarded)
		run->counts.updated++;
	else if (run->row.returned)
	{
		run->counts.inserted++;
		run->changed_keys += run->row.key_changed;

		/*
		 * Gone since the snapshot. With nothing kept of the stored row, this
		 * is an insert like any other, where snapshots may follow each other.
		 */
		run->revived |= run->row.matched && !run->row.key_changed &&
			(run->info->keeps_stored || IsolationUsesXactSnapshot());
	}
	else if (run->row.guarded && run->row.fate != IDEM_ROW_CHANGED)
		count_left_alone(run, run->row.fate);
	else if (run->info->request->mode == IDEM_MODE_UPSERT && !run->info->sets_anything &&
			 !run->info->has_row_triggers)
		run->counts.unchanged++;	/* DO NOTHING, as there is nothing but a
									 * key */
	else
		run->counts.skipped++;
	if (IDEM_PROGRESS_IS_DUE(run->counts.inserted + run->counts.updated))
		pgstat_progress_update_param(PROGRESS_COPY_TUPLES_PROCESSED,
									 run->counts.inserted + run->counts.updated);
}

static void
save_proposed_key(IdemRun *run, FunctionCallInfo fcinfo)
{
	IdemImageType *images[INDEX_MAX_KEYS];
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	for (int i = 0; i < run->nkeys; i++)
	{
		images[i] = run->comparer->images[run->key_columns[i]];
		values[i] = PG_GETARG_DATUM(i + 2);
		nulls[i] = PG_ARGISNULL(i + 2);
	}
	save_row(run, &run->proposed_key, run->nkeys, values, nulls, images);
}

/* A row that INSERT or UPDATE takes next, unless the batch has a fault. */
Datum
idem_row_propose(PG_FUNCTION_ARGS)
{
	IdemRun    *run = find_run(fcinfo);

	if (run->info->request->mode == IDEM_MODE_UPDATE)
		PG_RETURN_BOOL(!run->failed);
	finish_row(run);
	run->row.active = !run->failed;
	run->row.matched = PG_GETARG_BOOL(1);
	run->row.guarded = false;
	run->row.returned = false;
	run->row.key_changed = false;
	if (run->info->has_row_triggers)
		save_proposed_key(run, fcinfo);
	PG_RETURN_BOOL(!run->failed);
}

/* The proposed row beside the latest stored one, which is locked now. */
Datum
idem_row_guard(PG_FUNCTION_ARGS)
{
	IdemRun    *run = find_run(fcinfo);

	run->row.guarded = true;
	run->row.fate = compare_rows(run, fcinfo, 1);
	PG_RETURN_BOOL(run->row.fate == IDEM_ROW_CHANGED);
}

/* A row that was written, by its key. */
Datum
idem_row_applied(PG_FUNCTION_ARGS)
{
	IdemRun    *run = find_run(fcinfo);

	if (run->info->request->mode == IDEM_MODE_UPDATE)
	{
		run->counts.updated++;
		PG_RETURN_BOOL(true);
	}
	run->row.returned = true;
	if (run->info->has_row_triggers && !run->row.guarded)
		for (int i = 0; i < run->nkeys; i++)
			run->row.key_changed |=
				!idem_rowhash_equal(run->comparer->images[run->key_columns[i]],
									PG_GETARG_DATUM(i + 1), PG_ARGISNULL(i + 1),
									run->proposed_key.values[i], run->proposed_key.nulls[i]);
	PG_RETURN_BOOL(true);
}

/*
 * The default of a column: for a row that is new, and only then, as the
 * executor would evaluate it for a column that INSERT does not name. Identity
 * columns need no right to their sequence there, and so not here.
 */
Datum
idem_column_default(PG_FUNCTION_ARGS)
{
	IdemRun    *run = find_run(fcinfo);
	int16		attnum = PG_GETARG_INT16(1);
	bool		isnull;
	Datum		result;

	for (int i = 0; i < run->info->nlacking; i++)
	{
		if (run->info->lacking[i].attnum != attnum || run->defaults[i] == NULL)
			continue;
		/* In the caller's memory: the value lives as long as the row. */
		result = ExecEvalExpr(run->defaults[i], GetPerTupleExprContext(run->estate), &isnull);
		if (isnull)
			PG_RETURN_NULL();
		PG_RETURN_DATUM(result);
	}
	elog(ERROR, "column %d has no default", attnum);
}

/* Report what is wrong with the batch. */
static void
report_faults(IdemRun *run)
{
	const IdemMergeInfo *info = run->info;

	/* The first column of the key that has any: the same one each time. */
	for (int i = 0; i < run->nkeys; i++)
	{
		int64		count = run->null_keys[i];

		if (count == 0)
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_NOT_NULL_VIOLATION),
				 errmsg_plural("%lld staged row has null in key column \"%s\"",
							   "%lld staged rows have null in key column \"%s\"",
							   count, (long long) count,
							   info->columns[run->key_columns[i]].name),
				 info->request->mode == IDEM_MODE_UPDATE ?
				 errdetail("A row without a key matches no stored row.") :
				 errdetail("A row without a key would be inserted again by every retry."),
				 errhint("Delete these rows from staging, or give them a key; a unique index with NULLS NOT DISTINCT takes null as a key.")));
	}
	if (run->conflicting_keys > 0)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg_plural("staging has different rows for %lld key",
							   "staging has different rows for %lld keys",
							   run->conflicting_keys, (long long) run->conflicting_keys),
				 check_enable_rls(info->staging, InvalidOid, true) == RLS_ENABLED ? 0 :
				 errdetail("%s: %s%s.",
						   run->conflicting_keys > 1 ? "Keys" : "Key", run->shown_keys.data,
						   run->conflicting_keys > IDEM_MAX_KEYS_SHOWN ? " and others" : ""),
				 info->on_duplicate == IDEM_DUPLICATE_LATEST ?
				 errhint("Their greatest versions are equal too; add a version column that tells them apart, or use on_duplicate => 'any'.") :
				 errhint("Keep one row for each key, or use on_duplicate => 'any', or 'latest' together with \"version_cols\".")));
	if (run->stale_errors > 0)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_STALE_ROW),
				 errmsg_plural("%lld staged row is older than the stored one",
							   "%lld staged rows are older than the stored ones",
							   run->stale_errors, (long long) run->stale_errors),
				 errdetail("A lower version is an error here, since \"on_stale\" is error."),
				 errhint("Use on_stale => 'skip' to leave the stored rows as they are.")));
	if (run->endless_versions > 0)
		ereport(WARNING,
				(errmsg_plural("%lld staged row has a version of NaN or infinity",
							   "%lld staged rows have a version of NaN or infinity",
							   run->endless_versions, (long long) run->endless_versions),
				 errdetail("No later version of such a row can replace it."),
				 errhint("Stage real versions, or null for an unknown one.")));
	if (run->changed_keys > 0)
		ereport(WARNING,
				(errmsg_plural("a BEFORE trigger changed the key of %lld row",
							   "a BEFORE trigger changed the keys of %lld rows",
							   run->changed_keys, (long long) run->changed_keys),
				 errdetail("The staged key does not lead to such a row."),
				 errhint("Leave key columns as they are in triggers.")));
}

/* Every staged row is one of these. */
void
idem_rowfuncs_check(const IdemCounts *counts)
{
	if (counts->staged != counts->duplicate + counts->inserted + counts->updated +
		counts->deleted + counts->unchanged + counts->stale + counts->skipped)
		elog(ERROR, "merge lost count of its rows");
}

/*
 * After the statement: report faults, and say what became of the rows and what
 * the fingerprint is, palloc'd in the current memory context. False if the
 * statement must be run again, because a matched row was deleted before it
 * could be updated and was inserted: with values of the deleted row, or under
 * a snapshot that still has it.
 */
bool
idem_rowfuncs_finish(IdemRun *run, IdemCounts *counts, char **fingerprint)
{
	finish_row(run);
	if (run->info)
	{
		report_faults(run);
		if (run->info->request->mode == IDEM_MODE_UPDATE)
			run->counts.skipped = run->counts.staged - run->counts.duplicate -
				run->counts.updated - run->counts.unchanged - run->counts.stale;
	}
	if (run->estate)
		FreeExecutorState(run->estate);
	run->estate = NULL;
	*counts = run->counts;
	*fingerprint = idem_rowhash_finish(run->fingerprint);
	if (run->kind != IDEM_RUN_SCAN)
		idem_rowfuncs_check(counts);
	return !run->revived;
}
