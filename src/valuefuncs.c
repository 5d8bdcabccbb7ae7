/*-------------------------------------------------------------------------
 *
 * valuefuncs.c
 *	  Functions on values that the generated statement calls: they need to know
 *	  nothing of the merge.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "rowhash.h"

PG_FUNCTION_INFO_V1(idem_assign);
PG_FUNCTION_INFO_V1(idem_image);

/* A conversion that idem_assign has prepared. */
typedef struct Assignment
{
	ExprState  *state;
	ExprContext *econtext;
} Assignment;

static Assignment *
prepare_assignment(FunctionCallInfo fcinfo)
{
	MemoryContext old_context = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	Assignment *assignment = palloc(sizeof(Assignment));
	CaseTestExpr *input = makeNode(CaseTestExpr);
	Node	   *target = list_length(((FuncExpr *) fcinfo->flinfo->fn_expr)->args) == 2 ?
	lsecond(((FuncExpr *) fcinfo->flinfo->fn_expr)->args) : NULL;
	Node	   *expression;

	input->typeId = get_fn_expr_argtype(fcinfo->flinfo, 0);
	input->typeMod = -1;
	input->collation = get_typcollation(input->typeId);
	if (target == NULL)
		elog(ERROR, "could not determine the type to assign to");
	expression = input->typeId == UNKNOWNOID ? NULL :
		coerce_to_target_type(NULL, (Node *) input, input->typeId,
							  exprType(target), exprTypmod(target),
							  COERCION_ASSIGNMENT, COERCE_IMPLICIT_CAST, -1);
	if (expression == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CANNOT_COERCE),
				 errmsg("cannot assign a value of type %s to type %s",
						format_type_be(input->typeId), format_type_be(exprType(target)))));
	assignment->state = ExecInitExpr(expression_planner((Expr *) expression), NULL);
	assignment->econtext = CreateStandaloneExprContext();
	MemoryContextSwitchTo(old_context);
	return assignment;
}

/* Convert a value as an assignment does. */
Datum
idem_assign(PG_FUNCTION_ARGS)
{
	Assignment *assignment = fcinfo->flinfo->fn_extra;
	bool		isnull;
	Datum		result;

	if (assignment == NULL)
	{
		if (fcinfo->flinfo->fn_expr == NULL || !IsA(fcinfo->flinfo->fn_expr, FuncExpr))
			elog(ERROR, "idem_assign was not called from SQL");
		assignment = fcinfo->flinfo->fn_extra = prepare_assignment(fcinfo);
	}
	assignment->econtext->caseValue_datum = PG_GETARG_DATUM(0);
	assignment->econtext->caseValue_isNull = PG_ARGISNULL(0);
	result = ExecEvalExpr(assignment->state, assignment->econtext, &isnull);
	if (isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}

/* The image types of the columns that idem_image got last. */
typedef struct ImageColumns
{
	Oid			type;			/* of the record; InvalidOid for separate
								 * columns */
	int32		typmod;
	int			count;
	IdemImageType **types;
} ImageColumns;

static ImageColumns *
prepare_images(FunctionCallInfo fcinfo, TupleDesc tupdesc, int count)
{
	ImageColumns *columns = fcinfo->flinfo->fn_extra;
	MemoryContext old_context;

	/* A record can be of another type each time. */
	if (columns && (tupdesc == NULL || (columns->type == tupdesc->tdtypeid &&
										columns->typmod == tupdesc->tdtypmod)))
		return columns;
	old_context = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	columns = palloc0(sizeof(ImageColumns));
	columns->type = tupdesc ? tupdesc->tdtypeid : InvalidOid;
	columns->typmod = tupdesc ? tupdesc->tdtypmod : -1;
	columns->count = count;
	columns->types = palloc(sizeof(IdemImageType *) * Max(count, 1));
	for (int i = 0; i < count; i++)
		columns->types[i] = idem_rowhash_type(tupdesc ? TupleDescAttr(tupdesc, i)->atttypid :
											  get_fn_expr_argtype(fcinfo->flinfo, i));
	fcinfo->flinfo->fn_extra = columns;
	MemoryContextSwitchTo(old_context);
	return columns;
}

/* A sort key by image, of separate columns or of those of one record. */
Datum
idem_image(PG_FUNCTION_ARGS)
{
	ImageColumns *columns;
	StringInfoData key;

	initStringInfo(&key);
	appendStringInfoSpaces(&key, VARHDRSZ);
	if (PG_NARGS() == 1 && get_fn_expr_argtype(fcinfo->flinfo, 0) == RECORDOID &&
		!PG_ARGISNULL(0))
	{
		HeapTupleHeader header = PG_GETARG_HEAPTUPLEHEADER(0);
		TupleDesc	tupdesc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header),
													 HeapTupleHeaderGetTypMod(header));
		int			natts = tupdesc->natts;
		Datum	   *values = palloc(sizeof(Datum) * Max(natts, 1));
		bool	   *nulls = palloc(sizeof(bool) * Max(natts, 1));

		columns = prepare_images(fcinfo, tupdesc, natts);
		ReleaseTupleDesc(tupdesc);
		idem_rowhash_deform(PG_GETARG_DATUM(0), natts, values, nulls);
		for (int i = 0; i < natts; i++)
			idem_rowhash_order(columns->types[i], values[i], nulls[i], &key);
	}
	else
	{
		columns = prepare_images(fcinfo, NULL, PG_NARGS());
		for (int i = 0; i < PG_NARGS(); i++)
			idem_rowhash_order(columns->types[i], PG_GETARG_DATUM(i), PG_ARGISNULL(i), &key);
	}
	SET_VARSIZE(key.data, key.len);
	PG_RETURN_BYTEA_P(key.data);
}
