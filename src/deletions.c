/*-------------------------------------------------------------------------
 *
 * deletions.c
 *	  What the current transaction has taken from a target.
 *
 * PostgreSQL keeps counts of what a transaction has written, for its statistics.
 * They say whether rows were deleted, but for one thing: when ON CONFLICT has
 * inserted a row, and finds that somebody else has inserted the same key
 * meanwhile, it takes its own row back, which is counted as an insertion and a
 * deletion. A merge knows how many rows it has inserted, and so how many of these
 * there were. They are kept here until the transaction ends, and not counted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "lib/ilist.h"
#include "pgstat.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "compat.h"
#include "deletions.h"

/* Rows that a merge has taken back. */
typedef struct TakenBack
{
	dlist_node	node;
	MemoryContextCallback callback;
	Oid			target;
	int64		rows;
} TakenBack;

/*
 * Those of the current transaction, without subtransactions that were rolled
 * back: they are in CurTransactionContext, which goes away with these and stays
 * with what was released, as the counts do.
 */
static dlist_head taken_back = DLIST_STATIC_INIT(taken_back);

static void
forget(void *arg)
{
	dlist_delete(&((TakenBack *) arg)->node);
}

/*
 * Add what was written to a table to the counts. True if it was emptied; without
 * track_counts only new storage tells.
 */
static bool
add_written(Oid relid, IdemWritten *written)
{
	Relation	rel = relation_open(relid, NoLock);
	bool		emptied = false;

	/* An invalidation cuts the entry off from its counts: look again. */
	if (pgstat_should_count_relation(rel))
	{
		PgStat_TableXactStatus *level;

		for (level = rel->pgstat_info->trans; level; level = level->upper)
		{
			emptied |= level->truncdropped;
			written->inserted += level->tuples_inserted;
			written->deleted += level->tuples_deleted;
		}
	}
	else if (rel->rd_createSubid == InvalidSubTransactionId &&
			 RELKIND_HAS_STORAGE(rel->rd_rel->relkind))
		emptied = IDEM_RELATION_HAS_NEW_STORAGE(rel);
	relation_close(rel, NoLock);
	return emptied;
}

/* The same for a target, which the caller has locked, with all its parts. */
static bool
add_all_written(Oid target, IdemWritten *written)
{
	bool		emptied = false;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(target, AccessShareLock, NULL))
		emptied |= add_written(lfirst_oid(lc), written);
	return emptied;
}

/*
 * Has the current transaction deleted rows from the target, or truncated it? The
 * caller holds a lock of it.
 */
bool
idem_deletions_noticed(Oid target)
{
	IdemWritten written = {0};
	dlist_iter	iter;

	if (add_all_written(target, &written))
		return true;
	dlist_foreach(iter, &taken_back)
	{
		TakenBack  *entry = dlist_container(TakenBack, node, iter.cur);

		if (entry->target == target)
			written.deleted -= entry->rows;
	}
	return written.deleted > 0;
}

/*
 * What was written to the target before a statement with ON CONFLICT, for
 * idem_deletions_end().
 */
IdemWritten
idem_deletions_begin(Oid target)
{
	IdemWritten written = {0};

	(void) add_all_written(target, &written);
	return written;
}

/*
 * The statement has inserted rows_inserted rows; whatever else it has inserted it
 * has taken back. What triggers delete from the target beside is not that.
 */
void
idem_deletions_end(Oid target, IdemWritten before, int64 rows_inserted)
{
	IdemWritten after = {0};
	TakenBack  *entry;
	int64		rows;

	(void) add_all_written(target, &after);
	rows = Min(after.deleted - before.deleted, after.inserted - before.inserted - rows_inserted);
	if (rows <= 0)
		return;
	entry = MemoryContextAlloc(CurTransactionContext, sizeof(*entry));
	entry->target = target;
	entry->rows = rows;
	entry->callback.func = forget;
	entry->callback.arg = entry;
	dlist_push_head(&taken_back, &entry->node);
	MemoryContextRegisterResetCallback(CurTransactionContext, &entry->callback);
}
