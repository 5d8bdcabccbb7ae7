/*-------------------------------------------------------------------------
 *
 * maintfuncs.c
 *	  The functions that people call for retention and cleaning up.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/objectaddress.h"
#include "catalog/pg_class.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "idempotent_ingest.h"
#include "ledger.h"
#include "maintenance.h"
#include "queue.h"
#include "relcheck.h"
#include "security.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(idem_maintain);
PG_FUNCTION_INFO_V1(idem_set_retention);

/* Do for the queue what a worker would do. False if there is nothing more to do. */
static bool
clean_queue(Oid schema)
{
	IdemQueue	queue;
	bool		more;

	idem_spi_connect();
	idem_queue_open(schema, &queue);
	idem_queue_fail_roleless(&queue);
	more = idem_queue_expire(&queue);
	idem_spi_finish();
	return more;
}

/*
 * A procedure: one step after the other, each in a transaction of its own, until
 * there is nothing more to do. Who may call it is a matter of EXECUTE.
 */
Datum
idem_maintain(PG_FUNCTION_ARGS)
{
	Oid			function = fcinfo->flinfo->fn_oid;
	TimestampTz began = GetCurrentTimestamp();
	IdemMaintenanceCounts counts = {0};
	MemoryContext context;
	TupleDesc	tupdesc;
	Datum		values[2];
	bool		nulls[2] = {0};
	bool		in_ledger = true;
	bool		more = true;

	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("idem_maintain() cannot run inside a transaction block"),
				 errdetail("It commits after each of its steps."),
				 errhint("Call it by itself: CALL idem_maintain().")));
	PreventCommandIfReadOnly("idem_maintain()");

	idem_spi_connect_nonatomic();
	context = AllocSetContextCreate(CurrentMemoryContext, "idem_maintain step",
									ALLOCSET_DEFAULT_SIZES);
	while (more)
	{
		MemoryContext old_context = MemoryContextSwitchTo(context);

		CHECK_FOR_INTERRUPTS();
		if (in_ledger)
			in_ledger = idem_maintenance_step(idem_ledger_open(function), began, &counts);
		else
			more = clean_queue(get_func_namespace(function));
		MemoryContextSwitchTo(old_context);
		MemoryContextReset(context);
		idem_spi_commit();
		if (more)
			idem_maintenance_nap();
	}
	idem_spi_finish();

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int64GetDatum(counts.expired);
	values[1] = Int64GetDatum(counts.deleted);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls)));
}

/* An interval that retention can be; NULL if the argument is NULL. */
static Interval *
get_retention(FunctionCallInfo fcinfo, int argument, const char *name)
{
	Interval   *interval;
	Interval	zero = {0};
	Interval	longest = {0};

	if (PG_ARGISNULL(argument))
		return NULL;
	interval = PG_GETARG_INTERVAL_P(argument);
	longest.month = 1000 * MONTHS_PER_YEAR;
	if (DatumGetInt32(DirectFunctionCall2(interval_cmp, IntervalPGetDatum(interval),
										  IntervalPGetDatum(&zero))) < 0 ||
		DatumGetInt32(DirectFunctionCall2(interval_cmp, IntervalPGetDatum(interval),
										  IntervalPGetDatum(&longest))) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" is out of range", name),
				 errdetail("It must not be negative or longer than 1000 years."),
				 errhint("Zero means for ever, and NULL means what is set elsewhere.")));
	return interval;
}

Datum
idem_set_retention(PG_FUNCTION_ARGS)
{
	const IdemLedger *ledger = idem_ledger_open(fcinfo->flinfo->fn_oid);
	Oid			target = PG_ARGISNULL(0) ? InvalidOid : PG_GETARG_OID(0);
	char	   *pipeline = PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3));

	PreventCommandIfReadOnly("idem_set_retention()");
	if (pipeline && strlen(pipeline) > IDEM_MAX_NAME_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("argument \"pipeline\" is too long"),
				 errdetail("It has %zu bytes; at most %d are allowed.",
						   strlen(pipeline), IDEM_MAX_NAME_BYTES),
				 errhint("No batch has a pipeline with a name as long as this.")));
	if (!PG_ARGISNULL(0))
	{
		idem_relcheck_require_exists(target);
		idem_security_require_visible(target);
		idem_security_require_owner(target);
		/* Until the end of the transaction the table is there. */
		idem_relcheck_lock(target, AccessShareLock);
		idem_security_require_owner(target);
	}
	else
		/* Claims of whatever role. */
		idem_security_require_owner(ledger->relid);
	idem_maintenance_set_retention(ledger, target, pipeline,
								   get_retention(fcinfo, 1, "retention"),
								   get_retention(fcinfo, 2, "key_retention"));
	PG_RETURN_VOID();
}
