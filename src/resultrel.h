/*-------------------------------------------------------------------------
 *
 * resultrel.h
 *	  Writing to a relation by the functions of the executor, without a plan.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RESULTREL_H
#define IDEM_RESULTREL_H

#include "executor/executor.h"

typedef struct IdemResultRel
{
	Relation	rel;
	EState	   *estate;
	ResultRelInfo *relinfo;
} IdemResultRel;

extern Expr *idem_resultrel_default(Relation rel, AttrNumber attnum);
extern void idem_resultrel_open(IdemResultRel *result, Relation rel, bool inserts,
								Bitmapset *updated, bool indexes);
extern void idem_resultrel_complete_row(IdemResultRel *result, TupleTableSlot *slot,
										CmdType operation);
extern bool idem_resultrel_insert_index_entries(IdemResultRel *result, TupleTableSlot *slot,
												bool is_update, bool only_summarizing);
extern void idem_resultrel_close(IdemResultRel *result);

#endif							/* IDEM_RESULTREL_H */
