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
 * Neither is, for a batch that this transaction has recorded itself, what it had
 * deleted before. The counts do not tell when a TRUNCATE was.
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

/* Deletions that do not count. */
typedef struct Uncounted
{
	dlist_node	node;
	MemoryContextCallback callback;
	Oid			target;
	int64		rows;
	/* Of the one batch for which they do not count; NULL: for none. */
	char	   *pipeline;
	char	   *batch_id;
} Uncounted;

/*
 * Those of the current transaction, the latest first, without subtransactions
 * that were rolled back: they are in CurTransactionContext, which goes away with
 * these and stays with what was released, as the counts do.
 */
static dlist_head uncounted = DLIST_STATIC_INIT(uncounted);

static void
forget(void *arg)
{
	dlist_delete(&((Uncounted *) arg)->node);
}

/* Do not count so many deletions: for one batch, or for none (key is NULL). */
static void
remember(Oid target, const IdemBatchKey *key, int64 rows)
{
	MemoryContext context = CurTransactionContext;
	Uncounted  *entry = MemoryContextAllocZero(context, sizeof(*entry));

	entry->target = target;
	entry->rows = rows;
	if (key)
	{
		entry->pipeline = MemoryContextStrdup(context, key->pipeline);
		entry->batch_id = MemoryContextStrdup(context, key->batch_id);
	}
	entry->callback.func = forget;
	entry->callback.arg = entry;
	dlist_push_head(&uncounted, &entry->node);
	MemoryContextRegisterResetCallback(context, &entry->callback);
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
 * How many rows the current transaction has deleted from the target, as far as
 * they count for any batch. True if it has emptied it.
 */
static bool
count_deleted(Oid target, int64 *rows)
{
	IdemWritten written = {0};
	bool		emptied = add_all_written(target, &written);
	dlist_iter	iter;

	dlist_foreach(iter, &uncounted)
	{
		Uncounted  *entry = dlist_container(Uncounted, node, iter.cur);

		if (entry->target == target && entry->batch_id == NULL)
			written.deleted -= entry->rows;
	}
	*rows = written.deleted;
	return emptied;
}

/*
 * Has the current transaction deleted rows from the batch's target, or truncated
 * it, since it was recorded? The caller holds a lock of the target.
 */
bool
idem_deletions_noticed(const IdemBatchKey *key)
{
	int64		rows;
	dlist_iter	iter;

	if (count_deleted(key->target, &rows))
		return true;
	dlist_foreach(iter, &uncounted)
	{
		Uncounted  *entry = dlist_container(Uncounted, node, iter.cur);

		if (entry->target == key->target && entry->batch_id &&
			strcmp(entry->pipeline, key->pipeline) == 0 &&
			strcmp(entry->batch_id, key->batch_id) == 0)
			return rows > entry->rows;
	}
	return rows > 0;
}

/* The batch was recorded now, as new or as another revision. */
void
idem_deletions_recorded(const IdemBatchKey *key)
{
	int64		rows;

	if (!count_deleted(key->target, &rows) && rows > 0)
		remember(key->target, key, rows);
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
	int64		rows;

	(void) add_all_written(target, &after);
	rows = Min(after.deleted - before.deleted, after.inserted - before.inserted - rows_inserted);
	if (rows > 0)
		remember(target, NULL, rows);
}
