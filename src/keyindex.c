/*-------------------------------------------------------------------------
 *
 * keyindex.c
 *	  The unique index that decides which rows have the same key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/sysattr.h"
#include "catalog/pg_am.h"
#include "catalog/pg_index.h"
#include "commands/defrem.h"
#include "optimizer/optimizer.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"

#include "compat.h"
#include "keyindex.h"
#include "relcheck.h"

/* How the columns of an index relate to the wanted key. */
typedef enum KeyMatch
{
	KEY_UNRELATED,
	KEY_OVERLAPS,
	KEY_EQUAL
} KeyMatch;

static KeyMatch
match_key(Relation index, List *attnums)
{
	int			nkeys = IndexRelationGetNumberOfKeyAttributes(index);
	int			common = 0;
	Bitmapset  *in_columns = NULL;
	Bitmapset  *in_expressions = NULL;
	ListCell   *lc;

	/* An index can have a column twice. */
	for (int i = 0; i < nkeys; i++)
		in_columns = bms_add_member(in_columns, index->rd_index->indkey.values[i]);
	foreach(lc, attnums)
		common += bms_is_member(lfirst_int(lc), in_columns);
	if (common == nkeys && common == list_length(attnums))
		return KEY_EQUAL;
	pull_varattnos((Node *) RelationGetIndexExpressions(index), 1, &in_expressions);
	foreach(lc, attnums)
		common += bms_is_member(lfirst_int(lc) - FirstLowInvalidHeapAttributeNumber,
								in_expressions);
	return common > 0 ? KEY_OVERLAPS : KEY_UNRELATED;
}

static char *
key_column_names(Relation rel, List *attnums)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, attnums)
		names = lappend(names, NameStr(TupleDescAttr(RelationGetDescr(rel), lfirst_int(lc) - 1)->attname));
	return idem_relinfo_quoted_list(names);
}

/*
 * Why an index that has to do with the key cannot serve as its arbiter, or NULL
 * if it can.
 */
static const char *
rejection(Relation index, KeyMatch match)
{
	if (match != KEY_EQUAL)
		return RelationGetIndexExpressions(index) != NIL ? "has expressions" :
			"has other columns";
	/* 18 counts WITHOUT OVERLAPS among these. */
	if (index->rd_index->indisexclusion)
		return "is of an exclusion constraint";
	if (!index->rd_index->indisunique)
		return "is not unique";
	if (index->rd_rel->relam != BTREE_AM_OID)
		return "is not a btree";
	if (RelationGetIndexPredicate(index) != NIL)
		return "is partial";
	if (!index->rd_index->indisvalid || !index->rd_index->indisready)
		return "is invalid: REINDEX it";
	if (!index->rd_index->indimmediate)
		return "is deferrable";
	return NULL;
}

/* Take over what the key's index says. */
static void
use_index(IdemMergeInfo *info, Relation index, Relation target)
{
	info->nkeys = IndexRelationGetNumberOfKeyAttributes(index);
	info->keys = palloc0(sizeof(IdemKeyColumn) * info->nkeys);
	info->index = RelationGetRelid(index);
	info->index_name = idem_relcheck_name(RelationGetRelid(index));
	info->nulls_not_distinct = index->rd_index->indnullsnotdistinct;
	/* Where all of a key can be NULL, only a system column never is. */
	info->witness = TableOidAttributeNumber;
	for (int i = 0; i < info->nkeys; i++)
	{
		IdemKeyColumn *key = &info->keys[i];
		AttrNumber	attnum = index->rd_index->indkey.values[i];
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(target), attnum - 1);
		bool		descending = (index->rd_indoption[i] & INDOPTION_DESC) != 0;
		Oid			opfamily = index->rd_opfamily[i];
		Datum		classes;
		bool		isnull;

		key->column = idem_relinfo_find_column(info, NameStr(att->attname));
		info->columns[key->column].is_key = true;
		key->opcintype = index->rd_opcintype[i];
		key->collation = index->rd_indcollation[i];
		key->equal_operator = get_opfamily_member(opfamily, key->opcintype, key->opcintype,
												  BTEqualStrategyNumber);
		key->sort_operator = get_opfamily_member(opfamily, key->opcintype, key->opcintype,
												 descending ? BTGreaterStrategyNumber :
												 BTLessStrategyNumber);
		key->nulls_first = (index->rd_indoption[i] & INDOPTION_NULLS_FIRST) != 0;
		key->nullable = !attribute_is_never_null_compat(RelationGetDescr(target), attnum);
		if (info->witness < 0 && (!info->nulls_not_distinct || !key->nullable))
			info->witness = attnum;
		classes = SysCacheGetAttr(INDEXRELID, index->rd_indextuple,
								  Anum_pg_index_indclass, &isnull);
		key->opclass = ((oidvector *) DatumGetPointer(classes))->values[i];
	}
}

/*
 * Find the unique index on exactly the given columns, which decides what the
 * key is, and fill in what info says of the key. The caller has locked the
 * target and paired the columns.
 */
void
idem_keyindex_find(IdemMergeInfo *info, Relation target, List *attnums)
{
	List	   *indexes = RelationGetIndexList(target);
	Oid			chosen = InvalidOid;
	bool		chosen_is_primary = false;
	char	   *deferrable = NULL;
	char	   *exclusion = NULL;
	Oid			unindexable = InvalidOid;
	StringInfoData rejected;
	ListCell   *lc;

	initStringInfo(&rejected);
	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		KeyMatch	match = match_key(index, attnums);
		const char *reason = rejection(index, match);

		if (match != KEY_UNRELATED && reason == NULL)
		{
			/*
			 * Of several, the primary key, else the oldest: the same each
			 * time.
			 */
			if (!OidIsValid(chosen) || index->rd_index->indisprimary ||
				(!chosen_is_primary && lfirst_oid(lc) < chosen))
			{
				chosen = lfirst_oid(lc);
				chosen_is_primary = index->rd_index->indisprimary;
			}
		}
		else if (match != KEY_UNRELATED && (index->rd_index->indisunique || match == KEY_EQUAL))
		{
			appendStringInfo(&rejected, "%sIndex \"%s\" %s.", rejected.len > 0 ? " " : "",
							 RelationGetRelationName(index), reason);
			if (match == KEY_EQUAL && index->rd_index->indisunique &&
				!index->rd_index->indimmediate)
				deferrable = pstrdup(RelationGetRelationName(index));
			if (match == KEY_EQUAL && index->rd_index->indisexclusion)
				exclusion = pstrdup(RelationGetRelationName(index));
		}
		index_close(index, NoLock);
	}
	if (deferrable)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("deferrable unique constraint \"%s\" on the key (%s) of \"%s\" cannot decide what to update",
						deferrable, key_column_names(target, attnums),
						RelationGetRelationName(target)),
				 OidIsValid(chosen) ?
				 errdetail("There is an immediate unique index on the same columns too, but INSERT ... ON CONFLICT cannot tell them apart.") :
				 errdetail("Its uniqueness may be checked only at commit."),
				 OidIsValid(chosen) ?
				 errhint("Drop the constraint; the unique index is enough.") :
				 errhint("Drop the constraint, and add it again as NOT DEFERRABLE.")));
	if (!OidIsValid(chosen) && exclusion)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("exclusion constraint \"%s\" cannot be the key of \"%s\"",
						exclusion, RelationGetRelationName(target)),
				 errdetail("It has no notion of one row that is equal to a staged one."),
				 errhint("Create a unique index on columns that identify a row.")));
	if (!OidIsValid(chosen))
	{
		foreach(lc, attnums)
		{
			Oid			type = TupleDescAttr(RelationGetDescr(target), lfirst_int(lc) - 1)->atttypid;

			if (!OidIsValid(GetDefaultOpClass(type, BTREE_AM_OID)))
				unindexable = type;
		}
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("there is no unique index on the key (%s) of target \"%s\"",
						key_column_names(target, attnums), RelationGetRelationName(target)),
				 rejected.len > 0 ? errdetail("%s", rejected.data) : 0,
				 OidIsValid(unindexable) ?
				 errhint("No unique index is possible on type %s; choose other columns as the key.",
						 format_type_be(unindexable)) :
				 errhint("Run: CREATE UNIQUE INDEX ON %s (%s);", info->target_name,
						 key_column_names(target, attnums))));
	}
	else
	{
		Relation	index = index_open(chosen, AccessShareLock);

		use_index(info, index, target);
		index_close(index, NoLock);
	}
}
