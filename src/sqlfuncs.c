/*-------------------------------------------------------------------------
 *
 * sqlfuncs.c
 *	  The functions that people call: arguments in, result row out.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "idempotent_ingest.h"
#include "ledger.h"
#include "merge.h"
#include "relcheck.h"
#include "relinfo.h"
#include "security.h"
#include "spi_util.h"
#include "sqlfuncs.h"
#include "turn.h"

/* Where people are shown SQL, lines of more bytes than this are folded. */
#define MAX_SHOWN_LINE	100

PG_FUNCTION_INFO_V1(idem_merge);
PG_FUNCTION_INFO_V1(idem_merge_0_2);
PG_FUNCTION_INFO_V1(idem_explain);
PG_FUNCTION_INFO_V1(idem_explain_0_2);
PG_FUNCTION_INFO_V1(idem_fingerprint);
PG_FUNCTION_INFO_V1(idem_claim);
PG_FUNCTION_INFO_V1(idem_forget);

/* Refuse NULL where it has no meaning. */
void
idem_sqlfuncs_require_argument(FunctionCallInfo fcinfo, int argument, const char *name, bool has_default)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" must not be null", name),
				 has_default ?
				 errhint("Give a value for \"%s\", or leave the argument out.", name) :
				 errhint("Give a value for \"%s\".", name)));
}

/* A name that is part of the ledger's key. */
static char *
get_name(FunctionCallInfo fcinfo, int argument, const char *name, bool may_be_empty)
{
	char	   *value = text_to_cstring(PG_GETARG_TEXT_PP(argument));

	if (*value == '\0' && !may_be_empty)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be empty", name),
				 errhint("Give a value that identifies the batch.")));
	if (strlen(value) > IDEM_MAX_NAME_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("argument \"%s\" is too long", name),
				 errdetail("It has %zu bytes; at most %d are allowed.",
						   strlen(value), IDEM_MAX_NAME_BYTES),
				 errhint("Use a shorter value, for example a hash of the long one.")));
	return value;
}

/* A list of column names; NIL if the argument is NULL. */
static List *
get_columns(FunctionCallInfo fcinfo, int argument, const char *name, bool may_be_empty)
{
	List	   *columns = NIL;
	ArrayType  *array;
	Datum	   *values;
	bool	   *nulls;
	int			count;

	if (PG_ARGISNULL(argument))
		return NIL;
	array = PG_GETARG_ARRAYTYPE_P(argument);
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must be a one-dimensional array", name),
				 errhint("Write it as '{column_a,column_b}'.")));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &count);
	if (count == 0 && !may_be_empty)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be empty", name),
				 errhint("Name at least one column, or leave the argument out.")));
	for (int i = 0; i < count; i++)
	{
		char	   *column;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument \"%s\" must not contain null", name),
					 errhint("Name columns only.")));
		column = TextDatumGetCString(values[i]);
		for (int j = 0; j < i; j++)
		{
			if (strcmp(column, list_nth(columns, j)) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_COLUMN),
						 errmsg("column \"%s\" appears more than once in \"%s\"", column, name),
						 errhint("Name each column once.")));
		}
		columns = lappend(columns, column);
	}
	return columns;
}

/* The position of a word among those that an argument allows. */
static int
get_word(FunctionCallInfo fcinfo, int argument, const char *name, const char *const *words)
{
	char	   *value = text_to_cstring(PG_GETARG_TEXT_PP(argument));
	StringInfoData allowed;

	initStringInfo(&allowed);
	for (int i = 0; words[i]; i++)
	{
		if (strcmp(value, words[i]) == 0)
			return i;
		appendStringInfo(&allowed, "%s%s", i > 0 ? ", " : "", words[i]);
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument \"%s\": \"%s\"", name, value),
			 errhint("Allowed values: %s.", allowed.data)));
	return 0;					/* keep compiler quiet */
}

/*
 * The first nargs arguments that idem_merge(), idem_explain() and idem_enqueue()
 * share; the last has others behind them.
 */
void
idem_sqlfuncs_get_request(FunctionCallInfo fcinfo, int nargs, int others, IdemRequest *request)
{
	static const char *const names[] = {
		"staging", "target", "key_cols", "batch_id", "pipeline", "version_cols",
		"audit_cols", "update_cols", "exclude_cols", "mode", "on_duplicate", "on_stale",
		"on_schema_change", "on_replay", "on_mismatch", "nowait", "exclusive", "dry_run",
		"metadata", "target_predicate"
	};
	static const int not_null[] = {0, 1, 4, 9, 11, 12, 13, 14, 15, 16, 17};
	static const char *const modes[] = {"upsert", "insert", "update", NULL};
	static const char *const duplicates[] = {"error", "latest", "any", NULL};
	static const char *const stales[] = {"skip", "error", "apply", NULL};
	static const char *const changes[] = {"error", "ignore", "add_columns", NULL};
	static const char *const replays[] = {"skip", "error", "reapply", NULL};
	static const char *const mismatches[] = {"error", "skip", "apply", NULL};

	Assert(nargs <= lengthof(names));
	if (PG_NARGS() != nargs + others)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("function was called with %d arguments, expected %d",
						PG_NARGS(), nargs + others),
				 errhint("Run ALTER EXTENSION idempotent_ingest UPDATE.")));
	for (int i = 0; i < lengthof(not_null); i++)
		idem_sqlfuncs_require_argument(fcinfo, not_null[i], names[not_null[i]], not_null[i] > 1);

	memset(request, 0, sizeof(*request));
	request->staging = PG_GETARG_OID(0);
	request->target = PG_GETARG_OID(1);
	request->key_cols = get_columns(fcinfo, 2, names[2], false);
	request->batch_id = PG_ARGISNULL(3) ? NULL : get_name(fcinfo, 3, names[3], false);
	request->pipeline = get_name(fcinfo, 4, names[4], true);
	request->version_cols = get_columns(fcinfo, 5, names[5], false);
	request->audit_cols = get_columns(fcinfo, 6, names[6], true);
	request->has_update_cols = !PG_ARGISNULL(7);
	request->update_cols = get_columns(fcinfo, 7, names[7], true);
	request->exclude_cols = get_columns(fcinfo, 8, names[8], true);
	request->mode = get_word(fcinfo, 9, names[9], modes);
	request->on_duplicate = PG_ARGISNULL(10) ? IDEM_DUPLICATE_DEFAULT :
		get_word(fcinfo, 10, names[10], duplicates) + IDEM_DUPLICATE_ERROR;
	request->on_stale = get_word(fcinfo, 11, names[11], stales);
	request->on_schema_change = get_word(fcinfo, 12, names[12], changes);
	request->on_replay = get_word(fcinfo, 13, names[13], replays);
	request->on_mismatch = get_word(fcinfo, 14, names[14], mismatches);
	request->nowait = PG_GETARG_BOOL(15);
	request->exclusive = PG_GETARG_BOOL(16);
	request->dry_run = PG_GETARG_BOOL(17);
	request->metadata_null = PG_ARGISNULL(18);
	request->metadata = PG_GETARG_DATUM(18);
	if (nargs > IDEM_MERGE_ARGUMENTS_0_1 && !PG_ARGISNULL(19))
		request->target_predicate = text_to_cstring(PG_GETARG_TEXT_PP(19));

	if (request->on_duplicate == IDEM_DUPLICATE_LATEST && request->version_cols == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"on_duplicate\" is latest, but \"version_cols\" is null"),
				 errhint("Name the columns that tell which row is the latest.")));
	if (request->has_update_cols && request->exclude_cols != NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"update_cols\" and \"exclude_cols\" cannot be used together"),
				 errhint("Use one of the two lists.")));
	/* It locks the stored rows as it finds them, so it has to look at all. */
	if (request->target_predicate && request->mode == IDEM_MODE_UPDATE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"target_predicate\" cannot be used with mode update"),
				 errhint("Leave \"target_predicate\" out.")));
}

/* One sentence for logs: the rows staged, and the other counts that are not zero. */
static char *
summary(const IdemMergeResult *result)
{
	static const char *const words[] = {
		"staged", "duplicate", "inserted", "updated", "deleted", "unchanged", "stale", "skipped"
	};
	StringInfoData buf;

	initStringInfo(&buf);
	if (result->expired)
	{
		appendStringInfo(&buf, "%s: the counts have expired", result->status);
		return buf.data;
	}
	appendStringInfo(&buf, "%s: %lld staged", result->status, (long long) result->rows[0]);
	for (int i = 1; i < lengthof(words); i++)
	{
		if (result->rows[i] != 0)
			appendStringInfo(&buf, ", %lld %s", (long long) result->rows[i], words[i]);
	}
	return buf.data;
}

static Datum
text_or_null(const char *value, bool *isnull)
{
	*isnull = value == NULL;
	return value ? CStringGetTextDatum(value) : (Datum) 0;
}

static TupleDesc
result_tupdesc(FunctionCallInfo fcinfo)
{
	TupleDesc	tupdesc;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return BlessTupleDesc(tupdesc);
}

/* How many columns the result of idem_merge() has, and had. */
#define RESULT_COLUMNS		19
#define RESULT_COLUMNS_0_1	18

/* Merge, and return as many columns of the result as the caller knows. */
static Datum
merge(FunctionCallInfo fcinfo, int nargs, int ncolumns)
{
	TupleDesc	tupdesc = result_tupdesc(fcinfo);
	IdemRequest request;
	IdemMergeResult result;
	Datum		values[RESULT_COLUMNS];
	bool		nulls[RESULT_COLUMNS] = {0};
	int			i = 0;

	idem_sqlfuncs_get_request(fcinfo, nargs, 0, &request);
	if (tupdesc->natts != ncolumns)
		elog(ERROR, "idem_merge() is declared with %d columns, not %d", tupdesc->natts, ncolumns);
	idem_merge_run(idem_ledger_open(fcinfo->flinfo->fn_oid), &request, &result);

	values[i++] = CStringGetTextDatum(result.status);
	values[i++] = CStringGetTextDatum(summary(&result));
	values[i] = text_or_null(result.batch_id, &nulls[i]);
	i++;
	values[i++] = CStringGetTextDatum(request.pipeline);
	values[i++] = ObjectIdGetDatum(request.target);
	nulls[i] = result.revision == 0;
	values[i++] = Int32GetDatum(result.revision);
	for (int row = 0; row < lengthof(result.rows); row++)
	{
		nulls[i] = result.expired;
		values[i++] = Int64GetDatum(result.rows[row]);
	}
	values[i] = text_or_null(result.fingerprint, &nulls[i]);
	i++;
	values[i] = text_or_null(result.engine, &nulls[i]);
	i++;
	nulls[i] = result.applied_at_null;
	values[i++] = TimestampTzGetDatum(result.applied_at);
	nulls[i] = result.elapsed_null;
	values[i++] = IntervalPGetDatum(&result.elapsed);
	values[i++] = BoolGetDatum(result.expired);
	Assert(i == lengthof(values));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls)));
}

/* As version 0.1 declares it. */
Datum
idem_merge(PG_FUNCTION_ARGS)
{
	return merge(fcinfo, IDEM_MERGE_ARGUMENTS_0_1, RESULT_COLUMNS_0_1);
}

Datum
idem_merge_0_2(PG_FUNCTION_ARGS)
{
	return merge(fcinfo, IDEM_MERGE_ARGUMENTS, RESULT_COLUMNS);
}

/*
 * A statement for people to read: long lines go on in the next one, after a
 * comma and further to the right. Quoted names stay whole.
 */
static char *
fold_lines(const char *sql)
{
	StringInfoData folded;
	int			line = 0;		/* where it begins */
	int			indent = 0;
	int			fold = 0;		/* where it can be folded, or 0 */
	char		quote = '\0';

	initStringInfo(&folded);
	for (const char *p = sql; *p != '\0'; p++)
	{
		appendStringInfoChar(&folded, *p);
		if (quote != '\0')
			quote = *p == quote ? '\0' : quote;
		else if (*p == '"' || *p == '\'')
			quote = *p;
		else if (*p == '\n')
		{
			line = folded.len;
			indent = strspn(p + 1, " ");
			fold = 0;
		}
		else if (*p == ' ' && folded.len >= 2 && folded.data[folded.len - 2] == ',')
			fold = folded.len;

		if (folded.len - line > MAX_SHOWN_LINE && fold > 0)
		{
			char	   *rest = pstrdup(folded.data + fold);

			folded.len = fold - 1;
			appendStringInfoChar(&folded, '\n');
			line = folded.len;
			appendStringInfo(&folded, "%*s%s", indent + 8, "", rest);
			fold = 0;
		}
	}
	return folded.data;
}

static Datum
explain(FunctionCallInfo fcinfo, int nargs)
{
	TupleDesc	tupdesc = result_tupdesc(fcinfo);
	IdemRequest request;
	IdemExplanation explanation;
	Datum		values[4];
	bool		nulls[4] = {0};

	idem_sqlfuncs_get_request(fcinfo, nargs, 0, &request);
	idem_merge_explain(idem_ledger_open(fcinfo->flinfo->fn_oid), &request, &explanation);
	values[0] = CStringGetTextDatum(explanation.engine);
	values[1] = CStringGetTextDatum(explanation.reason);
	values[2] = CStringGetTextDatum(explanation.locks);
	values[3] = CStringGetTextDatum(fold_lines(explanation.statement));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(tupdesc, values, nulls)));
}

/* As version 0.1 declares it. */
Datum
idem_explain(PG_FUNCTION_ARGS)
{
	return explain(fcinfo, IDEM_MERGE_ARGUMENTS_0_1);
}

Datum
idem_explain_0_2(PG_FUNCTION_ARGS)
{
	return explain(fcinfo, IDEM_MERGE_ARGUMENTS);
}

Datum
idem_fingerprint(PG_FUNCTION_ARGS)
{
	idem_sqlfuncs_require_argument(fcinfo, 0, "staging", false);
	PG_RETURN_TEXT_P(cstring_to_text(idem_merge_fingerprint(idem_ledger_open(fcinfo->flinfo->fn_oid),
															PG_GETARG_OID(0),
															get_columns(fcinfo, 1, "columns", false))));
}

Datum
idem_claim(PG_FUNCTION_ARGS)
{
	idem_sqlfuncs_require_argument(fcinfo, 0, "batch_id", false);
	idem_sqlfuncs_require_argument(fcinfo, 2, "pipeline", true);
	/* 0 is no way to say that there is no target. */
	if (!PG_ARGISNULL(1))
		idem_relcheck_require_exists(PG_GETARG_OID(1));
	PG_RETURN_BOOL(idem_merge_claim(idem_ledger_open(fcinfo->flinfo->fn_oid),
									PG_ARGISNULL(1) ? InvalidOid : PG_GETARG_OID(1),
									get_name(fcinfo, 2, "pipeline", true),
									get_name(fcinfo, 0, "batch_id", false),
									PG_ARGISNULL(3) ? NULL :
									text_to_cstring(PG_GETARG_TEXT_PP(3)),
									PG_GETARG_DATUM(4), PG_ARGISNULL(4)));
}

Datum
idem_forget(PG_FUNCTION_ARGS)
{
	const IdemLedger *ledger = idem_ledger_open(fcinfo->flinfo->fn_oid);
	IdemBatchKey key = {0};
	TimestampTz applied_since = PG_ARGISNULL(3) ? 0 : PG_GETARG_TIMESTAMPTZ(3);
	int64		count;

	idem_sqlfuncs_require_argument(fcinfo, 5, "dry_run", true);
	if (PG_ARGISNULL(1) && PG_ARGISNULL(2) && PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("idem_forget() needs at least one filter"),
				 errhint("Give \"batch_id\", \"pipeline\" or \"applied_since\"; applied_since => '-infinity' means all batches.")));
	if (!PG_GETARG_BOOL(5))
		PreventCommandIfReadOnly("idem_forget()");
	if (PG_ARGISNULL(0))
		key.claimed_by = GetUserId();
	else
	{
		key.target = PG_GETARG_OID(0);
		idem_relcheck_require_exists(key.target);
		idem_security_require_write(key.target);
	}
	key.batch_id = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	key.pipeline = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	idem_spi_connect();

	/*
	 * As for a merge, the batch comes before its ledger row. Not so for all
	 * batches at once, whose locks would not find room in the lock table.
	 */
	if (key.batch_id && !PG_GETARG_BOOL(5))
	{
		ListCell   *lc;

		foreach(lc, idem_ledger_pipelines(ledger, &key,
										  PG_ARGISNULL(3) ? NULL : &applied_since))
			(void) idem_turn_lock_batch(key.target, lfirst(lc), key.batch_id, key.claimed_by,
										false, ledger->owner);
	}
	count = idem_ledger_forget(ledger, &key, PG_ARGISNULL(3) ? NULL : &applied_since,
							   PG_ARGISNULL(4) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(4)),
							   PG_GETARG_BOOL(5));
	idem_spi_finish();
	PG_RETURN_INT64(count);
}
