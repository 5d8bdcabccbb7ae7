/*-------------------------------------------------------------------------
 *
 * relinfo.c
 *	  From two relations and a list of arguments to columns, key and checks.
 *
 * Relations are locked by OID before anything about them is relied on: what is
 * looked at before (rights, and whether columns are to be added) only decides
 * which lock is taken, if any. Their names are derived afterwards, to write them
 * into SQL and messages.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog/heap.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_coerce.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"
#include "utils/varlena.h"

#include "keyindex.h"
#include "predicate.h"
#include "relcheck.h"
#include "relinfo.h"
#include "rowhash.h"
#include "security.h"

/*
 * Before any lock is taken: refuse what the caller has no right to touch, so
 * that nobody can use us to lock tables of others.
 */
void
idem_relinfo_precheck(const IdemRequest *request)
{
	Oid			role = GetUserId();
	AclMode		write = request->mode == IDEM_MODE_UPDATE ? ACL_UPDATE : ACL_INSERT;

	idem_relcheck_require_exists(request->staging);
	idem_relcheck_require_exists(request->target);
	idem_security_require_visible(request->staging);
	idem_security_require_visible(request->target);
	if (pg_attribute_aclcheck_all(request->staging, role, ACL_SELECT, ACLMASK_ANY) != ACLCHECK_OK)
		idem_security_require(request->staging, InvalidAttrNumber, ACL_SELECT);
	if (pg_attribute_aclcheck_all(request->target, role, write, ACLMASK_ANY) != ACLCHECK_OK)
		idem_security_require(request->target, InvalidAttrNumber, write);
}

/*
 * Has staging columns that the target lacks? Looks without locks, to learn
 * which lock to take first.
 */
bool
idem_relinfo_differs(const IdemRequest *request)
{
	HeapTuple	tuple;
	bool		differs = false;

	for (AttrNumber attnum = 1; !differs; attnum++)
	{
		Form_pg_attribute att;

		tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(request->staging),
								Int16GetDatum(attnum));
		if (!HeapTupleIsValid(tuple))
			break;
		att = (Form_pg_attribute) GETSTRUCT(tuple);
		differs = !att->attisdropped &&
			get_attnum(request->target, NameStr(att->attname)) == InvalidAttrNumber;
		ReleaseSysCache(tuple);
	}
	return differs;
}

/* The target's column with the closest name, or NULL if none is close. */
static const char *
closest_column(TupleDesc tupdesc, const char *name)
{
	const char *closest = NULL;
	int			closest_distance = Min(4, (int) strlen(name) / 2 + 1);

	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);
		int			distance;

		if (att->attisdropped)
			continue;
		distance = varstr_levenshtein_less_equal(name, strlen(name),
												 NameStr(att->attname),
												 strlen(NameStr(att->attname)),
												 1, 1, 1, closest_distance, true);
		if (distance < closest_distance)
		{
			closest = NameStr(att->attname);
			closest_distance = distance;
		}
	}
	return closest;
}

static AttrNumber
find_attribute(TupleDesc tupdesc, const char *name)
{
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return att->attnum;
	}
	return InvalidAttrNumber;
}

/* The position of a paired column, -1 if there is none by that name. */
int
idem_relinfo_find_column(const IdemMergeInfo *info, const char *name)
{
	for (int i = 0; i < info->ncolumns; i++)
		if (strcmp(info->columns[i].name, name) == 0)
			return i;
	return -1;
}

/* Is the name in a list of char *? */
bool
idem_relinfo_has_name(List *names, const char *name)
{
	ListCell   *lc;

	foreach(lc, names)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

/* The names, quoted, with commas between them. */
char *
idem_relinfo_quoted_list(List *names)
{
	StringInfoData buf;
	ListCell   *lc;

	initStringInfo(&buf);
	foreach(lc, names)
		appendStringInfo(&buf, "%s%s", buf.len > 0 ? ", " : "", quote_identifier(lfirst(lc)));
	return buf.data;
}

/*
 * The positions of an argument's columns among those that both relations
 * have; anything else in the list is an error. No name is there twice.
 */
static List *
resolve_names(const IdemMergeInfo *info, Relation staging, Relation target,
			  const char *argument, List *names)
{
	List	   *positions = NIL;
	ListCell   *lc;

	foreach(lc, names)
	{
		char	   *name = lfirst(lc);
		int			position = idem_relinfo_find_column(info, name);
		bool		generated = idem_relinfo_has_name(info->generated, name);
		const char *closest;

		/* Mode update does not set the key, so that it can be generated. */
		if (position >= 0 && info->columns[position].is_generated &&
			strcmp(argument, "key_cols") != 0)
			generated = true;
		else if (position >= 0)
		{
			Assert(!list_member_int(positions, position));
			positions = lappend_int(positions, position);
			continue;
		}
		if (SystemAttributeByName(name) != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("\"%s\" in \"%s\" is a system column", name, argument),
					 errhint("Name columns that staging and target both have.")));
		if (generated)
			ereport(ERROR,
					(errcode(ERRCODE_GENERATED_ALWAYS),
					 errmsg("column \"%s\" in \"%s\" cannot be set from staging", name, argument),
					 errdetail("The target generates it."),
					 errhint("Leave the column out; an identity column can be altered to GENERATED BY DEFAULT instead.")));
		closest = closest_column(RelationGetDescr(target), name);
		if (find_attribute(RelationGetDescr(target), name) == InvalidAttrNumber)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" in \"%s\" does not exist in target \"%s\"",
							name, argument, RelationGetRelationName(target)),
					 closest ? errhint("Perhaps you meant the column \"%s\".", closest) :
					 errhint("Name columns that staging and target both have.")));
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" in \"%s\" does not exist in staging \"%s\"",
						name, argument, RelationGetRelationName(staging)),
				 errhint("Add the column to staging.")));
	}
	return positions;
}

static int
compare_target_order(const void *a, const void *b)
{
	const IdemColumn *ca = a;
	const IdemColumn *cb = b;

	/* Columns that are to be added come last, in the order of staging. */
	if ((ca->target_attnum == 0) != (cb->target_attnum == 0))
		return ca->target_attnum == 0 ? 1 : -1;
	if (ca->target_attnum != cb->target_attnum)
		return ca->target_attnum - cb->target_attnum;
	return ca->staged_attnum - cb->staged_attnum;
}

/*
 * The names of the key's columns: those that were asked for, or of the primary
 * key; NIL if there is neither.
 */
static List *
requested_key_names(const IdemMergeInfo *info, Relation target)
{
	List	   *names = NIL;
	Relation	index;

	if (info->request->key_cols != NIL)
		return info->request->key_cols;
	(void) RelationGetIndexList(target);
	if (!OidIsValid(target->rd_pkindex))
		return NIL;
	index = index_open(target->rd_pkindex, AccessShareLock);
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
	{
		AttrNumber	attnum = index->rd_index->indkey.values[i];

		names = lappend(names, pstrdup(NameStr(TupleDescAttr(RelationGetDescr(target),
															 attnum - 1)->attname)));
	}
	index_close(index, AccessShareLock);
	return names;
}

/*
 * Pair the columns of the two relations by name. What the target generates is
 * left out, but for the key of mode update, which finds rows and is not set.
 */
static void
pair_columns(IdemMergeInfo *info, Relation staging, Relation target, List *keys)
{
	const IdemRequest *request = info->request;
	TupleDesc	staged = RelationGetDescr(staging);
	TupleDesc	stored = RelationGetDescr(target);
	List	   *unknown = NIL;

	info->columns = palloc0(sizeof(IdemColumn) * Max(staged->natts, 1));
	for (int i = 0; i < staged->natts; i++)
	{
		Form_pg_attribute from = TupleDescAttr(staged, i);
		IdemColumn *column = &info->columns[info->ncolumns];
		Form_pg_attribute to = NULL;
		AttrNumber	attnum;

		if (from->attisdropped)
			continue;
		attnum = find_attribute(stored, NameStr(from->attname));
		if (attnum != InvalidAttrNumber)
			to = TupleDescAttr(stored, attnum - 1);
		else if (request->on_schema_change != IDEM_SCHEMA_ADD_COLUMNS)
		{
			if (request->on_schema_change == IDEM_SCHEMA_ERROR)
				unknown = lappend(unknown, pstrdup(NameStr(from->attname)));
			continue;
		}
		column->is_generated = to &&
			(to->attgenerated != '\0' || to->attidentity == ATTRIBUTE_IDENTITY_ALWAYS);
		if (column->is_generated && (request->mode != IDEM_MODE_UPDATE ||
									 !idem_relinfo_has_name(keys, NameStr(to->attname))))
		{
			info->generated = lappend(info->generated, pstrdup(NameStr(from->attname)));
			ereport(NOTICE,
					(errmsg("staged column \"%s\" is ignored, since the target generates it",
							NameStr(from->attname))));
			continue;
		}
		column->name = pstrdup(NameStr(from->attname));
		column->staged_attnum = from->attnum;
		column->staged_type = from->atttypid;
		column->staged_typmod = from->atttypmod;
		column->staged_collation = from->attcollation;
		column->target_attnum = attnum;
		column->type = to ? to->atttypid : from->atttypid;
		column->typmod = to ? to->atttypmod : from->atttypmod;
		column->collation = to ? to->attcollation : from->attcollation;
		if (!can_coerce_type(1, &column->staged_type, &column->type, COERCION_ASSIGNMENT))
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("column \"%s\" is of type %s in target \"%s\" but staged as type %s",
							column->name, format_type_be(column->type),
							RelationGetRelationName(target),
							format_type_be(column->staged_type)),
					 errhint("Stage the column as %s, or merge from a view that casts it.",
							 format_type_be(column->type))));
		info->ncolumns++;
	}
	if (unknown != NIL)
	{
		const char *closest = closest_column(stored, linitial(unknown));

		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("staging \"%s\" has columns that target \"%s\" lacks: %s",
						RelationGetRelationName(staging), RelationGetRelationName(target),
						idem_relinfo_quoted_list(unknown)),
				 closest && list_length(unknown) == 1 ?
				 errdetail("The closest column of the target is \"%s\".", closest) : 0,
				 errhint("Rename or drop the columns, or use on_schema_change => 'ignore' or 'add_columns'.")));
	}
	qsort(info->columns, info->ncolumns, sizeof(IdemColumn), compare_target_order);
	for (int i = 0; i < info->ncolumns; i++)
		if (info->columns[i].target_attnum == 0)
			info->added = lappend_int(info->added, i);
}

/* The attribute numbers of the key's columns. */
static List *
requested_key(IdemMergeInfo *info, Relation staging, Relation target, List *keys)
{
	List	   *attnums = NIL;
	List	   *positions;
	ListCell   *lc;

	if (keys == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("target \"%s\" has no primary key, and \"key_cols\" is null",
						RelationGetRelationName(target)),
				 errhint("Name the key's columns in \"key_cols\"; the target needs a unique index on exactly these.")));
	positions = resolve_names(info, staging, target, "key_cols", keys);
	foreach(lc, positions)
	{
		IdemColumn *column = &info->columns[lfirst_int(lc)];

		if (column->target_attnum == 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column \"%s\" does not exist in target \"%s\"",
							column->name, RelationGetRelationName(target)),
					 errhint("Add the column and a unique index to the target first.")));
		attnums = lappend_int(attnums, column->target_attnum);
	}
	return attnums;
}

/* Find out how the version columns compare. */
static void
use_versions(IdemMergeInfo *info, List *positions)
{
	ListCell   *lc;

	info->nversions = list_length(positions);
	info->versions = palloc0(sizeof(IdemVersionColumn) * Max(info->nversions, 1));
	foreach(lc, positions)
	{
		IdemVersionColumn *version = &info->versions[foreach_current_index(lc)];
		IdemColumn *column = &info->columns[lfirst_int(lc)];
		TypeCacheEntry *typcache = lookup_type_cache(column->type,
													 TYPECACHE_GT_OPR | TYPECACHE_CMP_PROC);

		if (!OidIsValid(typcache->gt_opr) || !OidIsValid(typcache->cmp_proc))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_FUNCTION),
					 errmsg("version column \"%s\" is of type %s, which has no order",
							column->name, format_type_be(column->type)),
					 errhint("Use a column of a type that can be sorted, such as a timestamp or a number.")));
		if (column->is_key)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("key column \"%s\" cannot be in \"version_cols\"", column->name),
					 errhint("Name columns that order the states of one key; its key columns are the same in all of them.")));
		column->is_version = true;
		version->column = lfirst_int(lc);
		version->greater_operator = typcache->gt_opr;
		version->compare_function = typcache->cmp_proc;
		version->collation = column->collation;
	}
}

/* Decide for each column whether it is set and compared on a match. */
static void
use_column_lists(IdemMergeInfo *info, Relation staging, Relation target)
{
	const IdemRequest *request = info->request;
	List	   *audit = resolve_names(info, staging, target, "audit_cols", request->audit_cols);
	List	   *update = resolve_names(info, staging, target, "update_cols", request->update_cols);
	List	   *exclude = resolve_names(info, staging, target, "exclude_cols", request->exclude_cols);

	for (int i = 0; i < info->ncolumns; i++)
	{
		IdemColumn *column = &info->columns[i];
		bool		updates = list_member_int(update, i);
		bool		excludes = list_member_int(exclude, i);

		column->is_audit = list_member_int(audit, i);
		if (column->is_key && (column->is_audit || updates))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("key column \"%s\" cannot be in \"%s\"", column->name,
							updates ? "update_cols" : "audit_cols"),
					 errhint("Leave the column out of the list; key columns identify a row and are never changed.")));
		if (column->is_version && (column->is_audit || excludes))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("version column \"%s\" cannot be in \"%s\"", column->name,
							excludes ? "exclude_cols" : "audit_cols"),
					 errhint("Leave the column out of the list; a version is always stored with its row.")));
		column->is_set = !column->is_key && !column->is_generated && !excludes &&
			(!request->has_update_cols || updates || column->is_version || column->is_audit) &&
			request->mode != IDEM_MODE_INSERT;
		column->is_compared = column->is_set && !column->is_audit;
		info->sets_anything |= column->is_compared;
		/* Who may not read it proposes the staged value, as by hand. */
		column->is_kept = request->mode == IDEM_MODE_UPSERT && !column->is_key &&
			!column->is_set && column->target_attnum != 0 &&
			idem_security_may(info->target, column->target_attnum, ACL_SELECT);
		info->keeps_stored |= column->is_kept;
	}
}

/*
 * Look at the columns of the target that staging does not give. They are listed
 * where a stored row is proposed anew, which is to keep what it has there.
 */
static void
find_lacking_columns(IdemMergeInfo *info, Relation target)
{
	TupleDesc	stored = RelationGetDescr(target);

	info->lacking = palloc0(sizeof(IdemLackingColumn) * Max(stored->natts, 1));
	for (int i = 0; i < stored->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(stored, i);
		IdemLackingColumn *lacking = &info->lacking[info->nlacking];
		bool		has_default;

		if (att->attisdropped || att->attgenerated != '\0' ||
			idem_relinfo_find_column(info, NameStr(att->attname)) >= 0)
			continue;
		has_default = att->atthasdef || att->attidentity != '\0' ||
			get_typtype(att->atttypid) == TYPTYPE_DOMAIN ||
			get_typdefault(att->atttypid) != NULL;
		info->uses_defaults |= has_default;
		if (info->request->mode != IDEM_MODE_UPSERT)
			continue;

		/*
		 * As plain SQL would, leave out what the caller may not read or
		 * write; the row then is proposed with the default.
		 */
		if (!idem_security_may(RelationGetRelid(target), att->attnum, ACL_SELECT) ||
			!idem_security_may(RelationGetRelid(target), att->attnum, ACL_INSERT))
			continue;
		lacking->name = pstrdup(NameStr(att->attname));
		lacking->attnum = att->attnum;
		lacking->type = att->atttypid;
		lacking->has_default = has_default;
		if (att->attidentity == ATTRIBUTE_IDENTITY_ALWAYS)
			info->overrides_identity = true;
		info->keeps_stored = true;
		info->nlacking++;
	}
}

static int
compare_strings(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

/* Append "name": ["a", "b"] to a JSON object. */
static void
append_json_list(StringInfo json, const char *name, List *names)
{
	ListCell   *lc;

	appendStringInfo(json, "%s\"%s\": [", json->len > 1 ? ", " : "", name);
	foreach(lc, names)
	{
		if (foreach_current_index(lc) > 0)
			appendStringInfoString(json, ", ");
		escape_json(json, lfirst(lc));
	}
	appendStringInfoChar(json, ']');
}

static void
append_json_string(StringInfo json, const char *name, const char *value)
{
	appendStringInfo(json, "%s\"%s\": \"%s\"", json->len > 1 ? ", " : "", name, value);
}

/* The columns of the key, in the order of its index. */
static List *
key_names(const IdemMergeInfo *info)
{
	List	   *names = NIL;

	for (int i = 0; i < info->nkeys; i++)
		names = lappend(names, info->columns[info->keys[i].column].name);
	return names;
}

/*
 * The options that decide the result, in one spelling. The order of the index's
 * columns decides nothing: another index on the same ones may take its place.
 */
static void
write_options(IdemMergeInfo *info)
{
	const IdemRequest *request = info->request;
	StringInfoData json;
	List	   *names = key_names(info);

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	list_sort(names, compare_strings);
	append_json_list(&json, "key", names);
	if (request->version_cols != NIL)
		append_json_list(&json, "version", request->version_cols);
	names = list_copy(request->audit_cols);
	list_sort(names, compare_strings);
	if (names != NIL)
		append_json_list(&json, "audit", names);
	names = list_copy(request->update_cols);
	list_sort(names, compare_strings);
	if (request->has_update_cols)
		append_json_list(&json, "update", names);
	names = list_copy(request->exclude_cols);
	list_sort(names, compare_strings);
	if (names != NIL)
		append_json_list(&json, "exclude", names);
	if (request->mode != IDEM_MODE_UPSERT)
		append_json_string(&json, "mode", request->mode == IDEM_MODE_INSERT ? "insert" : "update");
	if (info->on_duplicate != (info->nversions > 0 ? IDEM_DUPLICATE_LATEST : IDEM_DUPLICATE_ERROR))
		append_json_string(&json, "on_duplicate",
						   info->on_duplicate == IDEM_DUPLICATE_ERROR ? "error" :
						   info->on_duplicate == IDEM_DUPLICATE_LATEST ? "latest" : "any");
	if (request->on_stale != IDEM_STALE_SKIP)
		append_json_string(&json, "on_stale",
						   request->on_stale == IDEM_STALE_ERROR ? "error" : "apply");
	appendStringInfoChar(&json, '}');
	info->options = json.data;
}

/*
 * Merges commute (I4) if each key keeps its greatest version whatever the
 * order, and both mean the same columns by that: the turn class stands for the
 * columns and the options, and for the order in which rows are locked, without
 * which they could deadlock.
 */
static void
classify_turn(IdemMergeInfo *info)
{
	const IdemRequest *request = info->request;
	StringInfoData json;
	List	   *names = NIL;

	info->commutes = info->nversions > 0 && request->mode == IDEM_MODE_UPSERT &&
		request->on_stale == IDEM_STALE_SKIP && !request->has_update_cols &&
		request->exclude_cols == NIL;
	for (int i = 0; i < info->ncolumns; i++)
		names = lappend(names, info->columns[i].name);
	initStringInfo(&json);
	append_json_list(&json, "columns", names);
	append_json_list(&json, "order", key_names(info));
	appendStringInfoString(&json, info->options);
	info->turn_class = (int32) (idem_rowhash_number(json.data) & 0x7fffffff);
}

/*
 * Has the target, or a partition for itself, BEFORE ROW triggers? The caller has
 * locked it with its parts.
 */
static bool
has_row_triggers(Oid target)
{
	bool		found = false;
	ListCell   *lc;

	foreach(lc, find_all_inheritors(target, AccessShareLock, NULL))
	{
		Relation	rel = relation_open(lfirst_oid(lc), NoLock);

		found |= rel->trigdesc &&
			(rel->trigdesc->trig_insert_before_row || rel->trigdesc->trig_update_before_row);
		relation_close(rel, NoLock);
	}
	return found;
}

/*
 * Work out what a merge means. The caller holds locks on both relations, and an
 * SPI connection. The result lives in the current memory context and is good
 * for as long as the locks are held.
 */
IdemMergeInfo *
idem_relinfo_resolve(const IdemRequest *request)
{
	IdemMergeInfo *info = palloc0(sizeof(IdemMergeInfo));
	Relation	staging;
	Relation	target;
	List	   *keys;

	idem_relcheck_staging(request->staging);
	staging = table_open(request->staging, NoLock);
	target = relation_open(request->target, NoLock);
	idem_relcheck_target(request->target, request->staging);

	info->request = request;
	info->staging = request->staging;
	info->target = request->target;
	info->staging_kind = staging->rd_rel->relkind;
	info->target_kind = target->rd_rel->relkind;
	info->staging_name = idem_relcheck_name(request->staging);
	info->target_name = idem_relcheck_name(request->target);
	info->target_type = target->rd_rel->reltype;
	info->on_duplicate = request->on_duplicate;
	if (info->on_duplicate == IDEM_DUPLICATE_DEFAULT)
		info->on_duplicate = request->version_cols != NIL ?
			IDEM_DUPLICATE_LATEST : IDEM_DUPLICATE_ERROR;

	keys = requested_key_names(info, target);
	pair_columns(info, staging, target, keys);
	idem_keyindex_find(info, target, requested_key(info, staging, target, keys));
	use_versions(info, resolve_names(info, staging, target, "version_cols",
									 request->version_cols));
	use_column_lists(info, staging, target);
	if (request->mode != IDEM_MODE_UPDATE)
		find_lacking_columns(info, target);
	info->has_row_triggers = has_row_triggers(info->target);
	if (request->target_predicate)
		info->target_predicate = idem_predicate_write(target, request->target_predicate,
													  IDEM_EXPECTED_ALIAS);
	if (request->mode != IDEM_MODE_INSERT && info->sets_anything)
		CheckCmdReplicaIdentity(target, CMD_UPDATE);
	write_options(info);
	classify_turn(info);

	table_close(staging, NoLock);
	relation_close(target, NoLock);
	return info;
}

/*
 * Require what the generated statement needs: the caller gets the executor's
 * error before the batch is claimed, and for a replay, which runs no statement.
 */
void
idem_relinfo_require_privileges(const IdemMergeInfo *info)
{
	IdemMode	mode = info->request->mode;

	idem_security_require_visible(info->staging);
	idem_security_require_visible(info->target);
	idem_security_require(info->target, info->witness, ACL_SELECT);
	for (int i = 0; i < info->ncolumns; i++)
	{
		IdemColumn *column = &info->columns[i];
		bool		is_set = column->is_set && info->sets_anything;

		idem_security_require(info->staging, column->staged_attnum, ACL_SELECT);
		if (column->target_attnum == 0)
		{
			idem_security_require_owner(info->target);
			continue;
		}
		if (mode != IDEM_MODE_UPDATE)
			idem_security_require(info->target, column->target_attnum, ACL_INSERT);
		if (is_set)
			idem_security_require(info->target, column->target_attnum, ACL_UPDATE);
		/* To read EXCLUDED.column takes the right to read the column. */
		if (column->is_key || column->is_compared || (is_set && mode == IDEM_MODE_UPSERT))
			idem_security_require(info->target, column->target_attnum, ACL_SELECT);
	}
}

/* Warn of what is allowed and yet often a mistake. */
void
idem_relinfo_report(const IdemMergeInfo *info)
{
	for (int i = 0; i < info->ncolumns; i++)
	{
		Oid			from = getBaseType(info->columns[i].staged_type);

		if ((from == TIMESTAMPOID || from == DATEOID) &&
			getBaseType(info->columns[i].type) == TIMESTAMPTZOID)
			ereport(WARNING,
					(errmsg("column \"%s\" is staged as %s and stored as timestamp with time zone",
							info->columns[i].name, format_type_be(from)),
					 errdetail("The result depends on the setting TimeZone of each session."),
					 errhint("Stage the column as timestamp with time zone.")));
	}
	if (SessionReplicationRole == SESSION_REPLICATION_ROLE_REPLICA)
		ereport(WARNING,
				(errmsg("session_replication_role is replica"),
				 errdetail("Foreign keys are not checked and ordinary triggers do not fire."),
				 errhint("Unless that is meant, RESET session_replication_role.")));
}

/*
 * The names of a relation's columns: those given, each once, which must exist
 * (or, with missing_ok, NIL is returned if one does not), or all.
 */
List *
idem_relinfo_columns(Oid relid, List *names, bool missing_ok)
{
	Relation	rel = table_open(relid, NoLock);
	TupleDesc	tupdesc = RelationGetDescr(rel);
	List	   *result = NIL;
	ListCell   *lc;

	if (names == NIL)
		for (int i = 0; i < tupdesc->natts; i++)
			if (!TupleDescAttr(tupdesc, i)->attisdropped)
				result = lappend(result, pstrdup(NameStr(TupleDescAttr(tupdesc, i)->attname)));
	foreach(lc, names)
	{
		char	   *name = lfirst(lc);

		if (find_attribute(tupdesc, name) == InvalidAttrNumber)
		{
			const char *closest = closest_column(tupdesc, name);

			if (missing_ok)
			{
				result = NIL;
				break;
			}
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of \"%s\" does not exist", name,
							RelationGetRelationName(rel)),
					 closest ? errhint("Perhaps you meant the column \"%s\".", closest) :
					 errhint("Name columns of the relation.")));
		}
		Assert(!idem_relinfo_has_name(result, name));
		result = lappend(result, name);
	}
	table_close(rel, NoLock);
	return result;
}

/* The types of columns that idem_relinfo_columns() found. */
void
idem_relinfo_column_types(Oid relid, List *names, Oid *types)
{
	ListCell   *lc;

	foreach(lc, names)
	{
		AttrNumber	attnum = get_attnum(relid, lfirst(lc));

		types[foreach_current_index(lc)] = get_atttype(relid, attnum);
	}
}
