/*-------------------------------------------------------------------------
 *
 * resultrel.c
 *	  Writing to a relation by the functions of the executor, without a plan.
 *
 * What ModifyTable sets up for a statement is set up here for those who write
 * rows themselves: the native engine, for the target, and the ledger.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/nodeModifyTable.h"
#include "nodes/makefuncs.h"
#include "parser/parse_coerce.h"
#include "rewrite/rewriteHandler.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "compat.h"
#include "resultrel.h"

/*
 * What a new row has in a column that INSERT does not name, as an expression to
 * be planned; NULL for a plain NULL.
 */
Expr *
idem_resultrel_default(Relation rel, AttrNumber attnum)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), attnum - 1);
	Node	   *expression = build_column_default(rel, attnum);

	if (expression == NULL && get_typtype(att->atttypid) == TYPTYPE_DOMAIN)
	{
		/* A domain may refuse NULL; the executor asks it, too. */
		Oid			base = getBaseType(att->atttypid);

		expression = coerce_to_target_type(NULL,
										   (Node *) makeNullConst(base, -1, get_typcollation(base)),
										   base, att->atttypid, -1,
										   COERCION_IMPLICIT, COERCE_IMPLICIT_CAST, -1);
	}
	return (Expr *) expression;
}

/*
 * Get ready to insert rows, or to update these columns, or both. The caller holds
 * RowExclusiveLock. Without indexes, none of them gets an entry. Lives in the
 * current memory context until idem_resultrel_close().
 */
void
idem_resultrel_open(IdemResultRel *result, Relation rel, bool inserts, Bitmapset *updated,
					bool indexes)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);

	result->rel = rel;
	result->estate = CreateExecutorState();
	rte->rtekind = RTE_RELATION;
	rte->relid = RelationGetRelid(rel);
	rte->relkind = rel->rd_rel->relkind;
	rte->rellockmode = RowExclusiveLock;
	init_range_table_compat(result->estate, rte, updated);
	result->relinfo = makeNode(ResultRelInfo);
	InitResultRelInfo(result->relinfo, rel, 1, NULL, 0);
	if (inserts)
		check_valid_result_rel_compat(result->relinfo, CMD_INSERT);
	if (updated)
		check_valid_result_rel_compat(result->relinfo, CMD_UPDATE);
	init_stored_generated_compat(result->relinfo, result->estate,
								 inserts ? CMD_INSERT : CMD_UPDATE);
	if (indexes)
		ExecOpenIndices(result->relinfo, false);
	result->estate->es_output_cid = GetCurrentCommandId(true);
}

/* Compute and check what depends on the row as a whole, which the slot has. */
void
idem_resultrel_complete_row(IdemResultRel *result, TupleTableSlot *slot, CmdType operation)
{
	const TupleConstr *constr = RelationGetDescr(result->rel)->constr;

	slot->tts_tableOid = RelationGetRelid(result->rel);
	if (constr && constr->has_generated_stored)
		ExecComputeStoredGenerated(result->relinfo, result->estate, slot, operation);
	if (constr)
		ExecConstraints(result->relinfo, slot, result->estate);
	if (result->rel->rd_rel->relispartition)
		ExecPartitionCheck(result->relinfo, slot, result->estate, true);
}

/*
 * Index entries for a row that was written. Does not wait: false if a unique index
 * may have the key already; then the row must not stay.
 */
bool
idem_resultrel_insert_index_entries(IdemResultRel *result, TupleTableSlot *slot, bool is_update,
									bool only_summarizing)
{
	return result->relinfo->ri_NumIndices == 0 ||
		insert_index_tuples_compat(result->relinfo, slot, result->estate, is_update,
								   only_summarizing) == NIL;
}

/* Let go of indexes and memory. */
void
idem_resultrel_close(IdemResultRel *result)
{
	ExecCloseIndices(result->relinfo);
	ExecResetTupleTable(result->estate->es_tupleTable, false);
	ExecCloseResultRelations(result->estate);
	ExecCloseRangeTableRelations(result->estate);
	FreeExecutorState(result->estate);
}
