/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Differences between PostgreSQL majors; the only file that looks at
 *	  PG_VERSION_NUM.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_COMPAT_H
#define IDEM_COMPAT_H

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_namespace.h"
#include "executor/executor.h"
#include "executor/nodeModifyTable.h"
#include "nodes/parsenodes.h"
#if PG_VERSION_NUM >= 160000
#include "parser/parse_relation.h"
#endif
#include "storage/bufmgr.h"
#include "storage/shmem.h"
#include "utils/acl.h"
#include "utils/rel.h"
#include "utils/tuplesort.h"

#if PG_VERSION_NUM < 150000
#error "idempotent_ingest needs PostgreSQL 15 or later"
#endif

/* 16 replaced the per-catalog functions by one for all. */
static inline AclResult
namespace_aclcheck_compat(Oid namespace_oid, Oid role, AclMode mode)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(NamespaceRelationId, namespace_oid, role, mode);
#else
	return pg_namespace_aclcheck(namespace_oid, role, mode);
#endif
}

static inline bool
class_ownercheck_compat(Oid relid, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(RelationRelationId, relid, role);
#else
	return pg_class_ownercheck(relid, role);
#endif
}

static inline AclResult
database_aclcheck_compat(Oid database, Oid role, AclMode mode)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(DatabaseRelationId, database, role, mode);
#else
	return pg_database_aclcheck(database, role, mode);
#endif
}

static inline bool
database_ownercheck_compat(Oid database, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(DatabaseRelationId, database, role);
#else
	return pg_database_ownercheck(database, role);
#endif
}

/* 16 lets the caller choose whether to copy, 15 always does: here the caller frees. */
static inline bool
tuplesort_getdatum_compat(Tuplesortstate *state, Datum *value, bool *isnull)
{
#if PG_VERSION_NUM >= 160000
	return tuplesort_getdatum(state, true, true, value, isnull, NULL);
#else
	return tuplesort_getdatum(state, true, value, isnull, NULL);
#endif
}

/* A hash table of fixed size; 19 does without the size to begin with. */
static inline HTAB *
shmem_init_hash_compat(const char *name, long nelems, HASHCTL *control, int flags)
{
#if PG_VERSION_NUM >= 190000
	return ShmemInitHash(name, nelems, control, flags);
#else
	return ShmemInitHash(name, nelems, nelems, control, flags);
#endif
}

/*
 * Is it certain that no row has NULL there? 18 brought NOT NULL constraints that
 * were not verified.
 */
static inline bool
attribute_is_never_null_compat(TupleDesc tupdesc, AttrNumber attnum)
{
#if PG_VERSION_NUM >= 180000
	return TupleDescCompactAttr(tupdesc, attnum - 1)->attnullability == ATTNULLABLE_VALID;
#else
	return TupleDescAttr(tupdesc, attnum - 1)->attnotnull;
#endif
}

/* 18 brought virtual generated columns. */
static inline bool
attribute_is_virtual_compat(Form_pg_attribute attribute)
{
#if PG_VERSION_NUM >= 180000
	return attribute->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL;
#else
	return false;
#endif
}

/* 18 can leave room before the tuple. */
static inline MinimalTuple
form_minimal_tuple_compat(TupleDesc tupdesc, Datum *values, bool *nulls)
{
#if PG_VERSION_NUM >= 180000
	return heap_form_minimal_tuple(tupdesc, values, nulls, 0);
#else
	return heap_form_minimal_tuple(tupdesc, values, nulls);
#endif
}

/* 19 wants to be told when a descriptor is complete. */
static inline void
tupdesc_finalize_compat(TupleDesc tupdesc)
{
#if PG_VERSION_NUM >= 190000
	TupleDescFinalize(tupdesc);
#endif
}

/*
 * Make a range table of one relation, and note which columns will be updated.
 * 16 moved these to a list of their own, 18 wants to know what is not pruned.
 */
static inline void
init_range_table_compat(EState *estate, RangeTblEntry *rte, Bitmapset *updated)
{
#if PG_VERSION_NUM >= 160000
	List	   *permissions = NIL;

	addRTEPermissionInfo(&permissions, rte)->updatedCols = updated;
#if PG_VERSION_NUM >= 180000
	ExecInitRangeTable(estate, list_make1(rte), permissions, bms_make_singleton(1));
#else
	ExecInitRangeTable(estate, list_make1(rte), permissions);
#endif
#else
	rte->updatedCols = updated;
	ExecInitRangeTable(estate, list_make1(rte));
#endif
}

/* 16 renamed what says where a relation is stored. */
static inline bool
read_recent_buffer_compat(Relation rel, BlockNumber block, Buffer recent)
{
#if PG_VERSION_NUM >= 160000
	return ReadRecentBuffer(rel->rd_locator, MAIN_FORKNUM, block, recent);
#else
	return ReadRecentBuffer(rel->rd_node, MAIN_FORKNUM, block, recent);
#endif
}

/*
 * Build the indexes of a relation anew, unique ones with the check that they
 * are. 17 wants to know of the statement, for event triggers.
 */
static inline void
reindex_relation_compat(Oid relid)
{
	ReindexParams params = {0};

#if PG_VERSION_NUM >= 170000
	(void) reindex_relation(NULL, relid, REINDEX_REL_CHECK_CONSTRAINTS, &params);
#else
	(void) reindex_relation(relid, REINDEX_REL_CHECK_CONSTRAINTS, &params);
#endif
}

/* 19 has flags. */
static inline TupleTableSlot *
alloc_table_slot_compat(List **table, TupleDesc tupdesc, const TupleTableSlotOps *ops)
{
#if PG_VERSION_NUM >= 190000
	return ExecAllocTableSlot(table, tupdesc, ops, 0);
#else
	return ExecAllocTableSlot(table, tupdesc, ops);
#endif
}

/* 19 has flags. */
static inline TableScanDesc
table_beginscan_compat(Relation table, Snapshot snapshot)
{
#if PG_VERSION_NUM >= 190000
	return table_beginscan(table, snapshot, 0, NULL, 0);
#else
	return table_beginscan(table, snapshot, 0, NULL);
#endif
}

/* 18 can instrument index scans, 19 has flags. */
static inline IndexScanDesc
index_beginscan_compat(Relation table, Relation index, Snapshot snapshot, int nkeys)
{
#if PG_VERSION_NUM >= 190000
	return index_beginscan(table, index, snapshot, NULL, nkeys, 0, 0);
#elif PG_VERSION_NUM >= 180000
	return index_beginscan(table, index, snapshot, NULL, nkeys, 0);
#else
	return index_beginscan(table, index, snapshot, nkeys, 0);
#endif
}

/*
 * Until 16, whoever asks first decides whether all generated columns are
 * computed or only those that an UPDATE changes: let it be all if rows may be
 * inserted as well.
 */
static inline void
init_stored_generated_compat(ResultRelInfo *relinfo, EState *estate, CmdType operation)
{
#if PG_VERSION_NUM < 160000
	ExecInitStoredGenerated(relinfo, estate, operation);
#endif
}

/* 17 added the actions of MERGE, 18 what ON CONFLICT does. */
static inline void
check_valid_result_rel_compat(ResultRelInfo *relinfo, CmdType operation)
{
#if PG_VERSION_NUM >= 180000
	CheckValidResultRel(relinfo, operation, ONCONFLICT_NONE, NIL);
#elif PG_VERSION_NUM >= 170000
	CheckValidResultRel(relinfo, operation, NIL);
#else
	CheckValidResultRel(relinfo, operation);
#endif
}

/* Which indexes need an entry for the new version of a row. */
typedef enum IdemUpdateIndexes
{
	IDEM_UPDATE_NO_INDEXES,
	IDEM_UPDATE_SUMMARIZING_INDEXES,
	IDEM_UPDATE_ALL_INDEXES
} IdemUpdateIndexes;

/* 16 tells apart the indexes that summarize, 19 has options. */
static inline TM_Result
table_tuple_update_compat(Relation rel, ItemPointer tid, TupleTableSlot *slot, CommandId cid,
						  Snapshot snapshot, TM_FailureData *failure,
						  IdemUpdateIndexes *update)
{
	LockTupleMode lock_mode;
	TM_Result	result;
#if PG_VERSION_NUM >= 160000
	TU_UpdateIndexes which;

#if PG_VERSION_NUM >= 190000
	result = table_tuple_update(rel, tid, slot, cid, 0, snapshot, InvalidSnapshot, true,
								failure, &lock_mode, &which);
#else
	result = table_tuple_update(rel, tid, slot, cid, snapshot, InvalidSnapshot, true,
								failure, &lock_mode, &which);
#endif
	*update = which == TU_All ? IDEM_UPDATE_ALL_INDEXES :
		which == TU_Summarizing ? IDEM_UPDATE_SUMMARIZING_INDEXES : IDEM_UPDATE_NO_INDEXES;
#else
	bool		which;

	result = table_tuple_update(rel, tid, slot, cid, snapshot, InvalidSnapshot, true,
								failure, &lock_mode, &which);
	*update = which ? IDEM_UPDATE_ALL_INDEXES : IDEM_UPDATE_NO_INDEXES;
#endif
	return result;
}

/*
 * Insert index entries without waiting for anybody. Returns the OIDs of unique
 * indexes that may have the key already. 16 added the choice of summarizing
 * indexes, 19 made flags of the arguments.
 */
static inline List *
insert_index_tuples_compat(ResultRelInfo *relinfo, TupleTableSlot *slot, EState *estate,
						   bool is_update, bool only_summarizing)
{
	bool		conflict = false;

#if PG_VERSION_NUM >= 190000
	return ExecInsertIndexTuples(relinfo, estate,
								 EIIT_NO_DUPE_ERROR | (is_update ? EIIT_IS_UPDATE : 0) |
								 (only_summarizing ? EIIT_ONLY_SUMMARIZING : 0),
								 slot, NIL, &conflict);
#elif PG_VERSION_NUM >= 160000
	return ExecInsertIndexTuples(relinfo, slot, estate, is_update, true, &conflict, NIL,
								 only_summarizing);
#else
	return ExecInsertIndexTuples(relinfo, slot, estate, is_update, true, &conflict, NIL);
#endif
}

#if PG_VERSION_NUM >= 160000
#define IDEM_RELATION_HAS_NEW_STORAGE(rel) \
	((rel)->rd_newRelfilelocatorSubid != InvalidSubTransactionId)
#else
#define IDEM_RELATION_HAS_NEW_STORAGE(rel) \
	((rel)->rd_newRelfilenodeSubid != InvalidSubTransactionId)
#endif

#endif							/* IDEM_COMPAT_H */
