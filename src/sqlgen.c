/*-------------------------------------------------------------------------
 *
 * sqlgen.c
 *	  The SQL that merges run.
 *
 * The statement of a merge in mode upsert, without casts and niceties:
 *
 *	INSERT INTO target AS t (k, v)
 *	SELECT p.k, p.v
 *	FROM (SELECT s.k, s.v, t.k IS NOT NULL AS matched
 *		  FROM (SELECT d.k, d.v
 *				FROM (SELECT s.k, s.v
 *					  FROM (SELECT s.k, s.v FROM staging AS s
 *							WHERE idem_row_staged($1, s.k, s.v) OFFSET 0) AS s
 *					  ORDER BY s.k OFFSET 0) AS d
 *				WHERE idem_row_distinct($1, d.k, d.v)) AS s
 *		  LEFT JOIN target AS t ON t.k = s.k
 *		  WHERE idem_row_classify($1, t.k, s.v, t.v)
 *		  ORDER BY CASE WHEN clock_timestamp() IS NOT NULL THEN s.k ELSE s.k END
 *		  OFFSET 0) AS p
 *	WHERE idem_row_propose($1, p.matched, p.k)
 *	ON CONFLICT (k) DO UPDATE SET v = EXCLUDED.v
 *	WHERE idem_row_guard($1, EXCLUDED.v, t.v)
 *	RETURNING idem_row_applied($1, t.k)
 *
 * $1 is the handle by which the functions (rowfuncs.c) find the merge that they
 * work for. OFFSET 0 keeps a subquery from being flattened or given conditions
 * from outside, so that each function sees the rows that it is meant to see, in
 * order:
 *	- idem_row_staged sees all staged rows before idem_row_distinct sees the
 *	  first one, because a sort is in between;
 *	- idem_row_distinct sees them in key order, each once: its subquery is the
 *	  outer side of a left join, or is materialized;
 *	- unchanged and stale rows are gone before INSERT, so that they are not
 *	  locked, logged, or proposed to triggers and sequences;
 *	- all rows have been looked at before the first one is written, so that it
 *	  does not depend on the plan whether a fault of the batch is reported, or
 *	  a constraint that one of its rows violates: a join may keep the order,
 *	  but nothing is known to be in that of a volatile expression, so that
 *	  there is always a sort;
 *	- idem_row_propose is evaluated directly below INSERT, so that what happens
 *	  between two of its calls happened to one row.
 *
 * With target_predicate, the rows are first joined with those that it selects,
 * and what finds none there is looked up by its key:
 *
 *		  LEFT JOIN target AS e ON e.k = s.k AND (predicate)
 *		  LEFT JOIN LATERAL (SELECT e.k, e.v WHERE e.k IS NOT NULL
 *							 UNION ALL
 *							 SELECT l.k, l.v
 *							 FROM (SELECT t.k, t.v FROM target AS t
 *								   WHERE e.k IS NULL AND t.k = s.k OFFSET 0) AS l) AS t ON true
 *
 * So the predicate decides what is scanned, and never what is found. The look-up
 * is a subquery of its own lest partitions be pruned once for all rows.
 *
 * No name is resolved by search_path: relations, functions, operators and
 * types are qualified. (=, <>, IN and the like would be operators; IS NULL, AND
 * and CASE are not.) The predicate is the caller's, and so is what it means.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "parser/parse_coerce.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "sqlgen.h"

/*
 * A common table expression hides tables of its name, and the predicate may read
 * any: so no short one, that a table could have as well.
 */
#define DISTINCT_ROWS_NAME	"idem_distinct_rows"

/* More nullable key columns than this are joined by OR. */
#define MAX_NULL_PATTERN_COLUMNS 3

typedef struct Generator
{
	const IdemMergeInfo *info;
	const char *schema;			/* ours, quoted */
	bool		materialized;
	const char *matched;		/* a column name that the target does not have */
	char	   *witness;		/* NULL if there is no stored row */
	const char *witness_column; /* the same without alias */
} Generator;

static const char *
name_of(const Generator *gen, int column)
{
	return quote_identifier(gen->info->columns[column].name);
}

/* A type as it can be written after :: or NULL::, qualified. */
static char *
type_name_with_typmod(Oid type, int32 typmod)
{
	return format_type_extended(type, typmod,
								FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
}

static char *
type_name(Oid type)
{
	return type_name_with_typmod(type, -1);
}

static char *
collation_name(Oid collation)
{
	HeapTuple	tuple = SearchSysCache1(COLLOID, ObjectIdGetDatum(collation));
	Form_pg_collation form;
	char	   *name;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for collation %u", collation);
	form = (Form_pg_collation) GETSTRUCT(tuple);
	name = quote_qualified_identifier(get_namespace_name(form->collnamespace),
									  NameStr(form->collname));
	ReleaseSysCache(tuple);
	return name;
}

static char *
opclass_name(Oid opclass)
{
	HeapTuple	tuple = SearchSysCache1(CLAOID, ObjectIdGetDatum(opclass));
	Form_pg_opclass form;
	char	   *name;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator class %u", opclass);
	form = (Form_pg_opclass) GETSTRUCT(tuple);
	name = quote_qualified_identifier(get_namespace_name(form->opcnamespace),
									  NameStr(form->opcname));
	ReleaseSysCache(tuple);
	return name;
}

/* OPERATOR(schema.op) */
static char *
operator_name(Oid operator)
{
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	Form_pg_operator form;
	char	   *name;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", operator);
	form = (Form_pg_operator) GETSTRUCT(tuple);
	name = psprintf("OPERATOR(%s.%s)", quote_identifier(get_namespace_name(form->oprnamespace)),
					NameStr(form->oprname));
	ReleaseSysCache(tuple);
	return name;
}

/*
 * A staged value converted to the target's type as INSERT would. An explicit
 * cast cuts 'abcdef'::varchar(3) silently, so length functions are called with
 * isExplicit false, and what has no such function to call (arrays) or passes
 * isExplicit on goes through idem_assign(). Its second argument stands for a
 * type: a base type, for a domain may refuse NULL.
 */
static char *
assigned(const Generator *gen, const char *alias, const IdemColumn *column)
{
	char	   *value = psprintf("%s.%s", alias, quote_identifier(column->name));
	int32		typmod = column->typmod;
	Oid			base = getBaseTypeAndTypmod(column->type, &typmod);
	Oid			staged_base = getBaseType(column->staged_type);
	Oid			cast_function = InvalidOid;
	Oid			length_function = InvalidOid;

	if (column->staged_type == column->type &&
		(column->typmod < 0 || column->typmod == column->staged_typmod))
		return value;
	if (staged_base != base)
		(void) find_coercion_pathway(base, staged_base, COERCION_ASSIGNMENT, &cast_function);
	if (typmod >= 0)
		(void) find_typmod_coercion_function(base, &length_function);

	if (OidIsValid(get_element_type(base)) ||
		(OidIsValid(cast_function) && get_func_nargs(cast_function) == 3))
		value = psprintf("%s.idem_assign(%s, NULL::%s)", gen->schema, value,
						 type_name_with_typmod(base, typmod));
	else
	{
		if (column->staged_type != base)
			value = psprintf("(%s)::%s", value, type_name(base));
		if (OidIsValid(length_function))
			value = psprintf("%s(%s, %d%s)",
							 quote_qualified_identifier(get_namespace_name(get_func_namespace(length_function)),
														get_func_name(length_function)),
							 value, typmod,
							 get_func_nargs(length_function) == 3 ? ", false" : "");
	}
	if (base != column->type)
		value = psprintf("(%s)::%s", value, type_name(column->type));
	return value;
}

/*
 * A key column as the index sees it: of the very type that the operators of the
 * index take, not of a domain over it, which might have operators of its own.
 */
static char *
key_value(const Generator *gen, const char *alias, const IdemKeyColumn *key)
{
	const IdemColumn *column = &gen->info->columns[key->column];
	char	   *value = psprintf("%s.%s", alias, quote_identifier(column->name));
	Oid			type = key->opcintype;

	if (type == RECORDOID || IsPolymorphicType(type))
		type = getBaseType(column->type);
	if (type != column->type)
		value = psprintf("(%s)::%s", value, type_name(type));
	if (OidIsValid(key->collation) &&
		(key->collation != column->staged_collation || key->collation != column->collation))
		value = psprintf("%s COLLATE %s", value, collation_name(key->collation));
	return value;
}

/* The direction of a sort, as short as it can be said. */
static char *
direction(Oid operator, Oid type, bool nulls_first)
{
	TypeCacheEntry *typcache = lookup_type_cache(type, TYPECACHE_LT_OPR | TYPECACHE_GT_OPR);

	if (operator == typcache->lt_opr)
		return nulls_first ? " NULLS FIRST" : "";
	if (operator == typcache->gt_opr)
		return nulls_first ? " DESC" : " DESC NULLS LAST";
	return psprintf(" USING %s NULLS %s", operator_name(operator), nulls_first ? "FIRST" : "LAST");
}

/*
 * ORDER BY's list: the key as its index has it. With sort_always, there is a
 * sort even where the planner knows rows to be in this order.
 */
static void
append_key_order(StringInfo sql, const Generator *gen, const char *alias, bool sort_always)
{
	for (int i = 0; i < gen->info->nkeys; i++)
	{
		const IdemKeyColumn *key = &gen->info->keys[i];
		char	   *value = key_value(gen, alias, key);

		/* Without ELSE, a domain would become its base type. */
		if (i == 0 && sort_always)
			value = psprintf("CASE WHEN pg_catalog.clock_timestamp() IS NOT NULL THEN %s ELSE %s END",
							 value, value);
		appendStringInfo(sql, "%s%s%s", i > 0 ? ", " : "", value,
						 direction(key->sort_operator, key->opcintype, key->nulls_first));
	}
}

/* "alias.a, alias.b", or a record of them where there are too many. */
static void
append_arguments(StringInfo sql, const Generator *gen, const char *alias, int *columns, int count)
{
	bool		wide = count > IDEM_MAX_SEPARATE_ARGS;

	if (wide)
		appendStringInfoString(sql, "ROW(");
	for (int i = 0; i < count; i++)
		appendStringInfo(sql, "%s%s.%s", i > 0 ? ", " : "", alias, name_of(gen, columns[i]));
	if (wide)
		appendStringInfoChar(sql, ')');
}

static void
append_all_arguments(StringInfo sql, const Generator *gen, const char *alias)
{
	int		   *columns = palloc(sizeof(int) * gen->info->ncolumns);

	for (int i = 0; i < gen->info->ncolumns; i++)
		columns[i] = i;
	append_arguments(sql, gen, alias, columns, gen->info->ncolumns);
}

/* A column of the target; one that is only to be added is NULL. */
static void
append_stored(StringInfo sql, const Generator *gen, const IdemColumn *column)
{
	if (column->target_attnum == 0)
		appendStringInfo(sql, "NULL::%s", type_name(getBaseType(column->type)));
	else
		appendStringInfo(sql, "t.%s", quote_identifier(column->name));
}

/* The compared columns of two rows: pairs, or two records. */
static void
append_pairs(StringInfo sql, const Generator *gen, const char *alias)
{
	const IdemMergeInfo *info = gen->info;
	int			count = 0;

	for (int i = 0; i < info->ncolumns; i++)
		count += info->columns[i].is_compared;
	if (count * 2 <= IDEM_MAX_SEPARATE_ARGS)
	{
		for (int i = 0; i < info->ncolumns; i++)
			if (info->columns[i].is_compared)
			{
				appendStringInfo(sql, ", %s.%s, ", alias, name_of(gen, i));
				append_stored(sql, gen, &info->columns[i]);
			}
		return;
	}
	for (int side = 0; side < 2; side++)
	{
		bool		first = true;

		appendStringInfoString(sql, ", ROW(");
		for (int i = 0; i < info->ncolumns; i++)
			if (info->columns[i].is_compared)
			{
				if (!first)
					appendStringInfoString(sql, ", ");
				first = false;
				if (side == 0)
					appendStringInfo(sql, "%s.%s", alias, name_of(gen, i));
				else
					append_stored(sql, gen, &info->columns[i]);
			}
		appendStringInfoChar(sql, ')');
	}
}

/* "alias.a, alias.b" for all columns. */
static void
append_columns(StringInfo sql, const Generator *gen, const char *alias)
{
	for (int i = 0; i < gen->info->ncolumns; i++)
		appendStringInfo(sql, "%s%s.%s", i > 0 ? ", " : "", alias, name_of(gen, i));
}

/*
 * The rows of the batch: cast, ordered, one for each key. Every line starts
 * with indent.
 */
static void
append_distinct_rows(StringInfo sql, const Generator *gen, const char *indent)
{
	const IdemMergeInfo *info = gen->info;
	bool		any = info->on_duplicate == IDEM_DUPLICATE_ANY;
	int		   *image_columns = palloc(sizeof(int) * info->ncolumns);
	int			nimage = 0;

	appendStringInfo(sql, "%sSELECT ", indent);
	append_columns(sql, gen, "d");
	appendStringInfo(sql, "\n%sFROM (\n%s    SELECT ", indent, indent);
	append_columns(sql, gen, "c");
	appendStringInfo(sql, "\n%s    FROM (\n%s        SELECT ", indent, indent);
	for (int i = 0; i < info->ncolumns; i++)
	{
		char	   *value = assigned(gen, "s", &info->columns[i]);

		appendStringInfo(sql, "%s%s", i > 0 ? ", " : "", value);
		if (strcmp(value, psprintf("s.%s", name_of(gen, i))) != 0)
			appendStringInfo(sql, " AS %s", name_of(gen, i));
	}
	appendStringInfo(sql, "\n%s        FROM (\n%s            SELECT ", indent, indent);
	append_columns(sql, gen, "s");
	appendStringInfo(sql, "\n%s            FROM %s AS s\n%s            WHERE %s.idem_row_staged($1, ",
					 indent, gen->materialized ? IDEM_MATERIALIZED_NAME : info->staging_name,
					 indent, gen->schema);
	append_all_arguments(sql, gen, "s");
	appendStringInfo(sql, ")\n%s            OFFSET 0\n%s        ) AS s\n%s    ) AS c\n%s    ORDER BY ",
					 indent, indent, indent, indent);
	append_key_order(sql, gen, "c", false);
	for (int i = 0; i < info->nversions; i++)
	{
		const IdemVersionColumn *version = &info->versions[i];
		const IdemColumn *column = &info->columns[version->column];

		appendStringInfo(sql, ", c.%s", name_of(gen, version->column));
		if (OidIsValid(version->collation) && version->collation != column->staged_collation)
			appendStringInfo(sql, " COLLATE %s", collation_name(version->collation));
		appendStringInfoString(sql, direction(version->greater_operator, column->type, false));
	}
	/* Audit columns alone decide among rows that are equal otherwise. */
	for (int i = 0; i < info->ncolumns; i++)
		if (any || info->columns[i].is_audit)
			image_columns[nimage++] = i;
	if (nimage > 0)
	{
		appendStringInfo(sql, ", %s.idem_image(", gen->schema);
		append_arguments(sql, gen, "c", image_columns, nimage);
		appendStringInfoString(sql, ") DESC");
	}
	appendStringInfo(sql, "\n%s    OFFSET 0\n%s) AS d\n%sWHERE %s.idem_row_distinct($1, ",
					 indent, indent, indent, gen->schema);
	append_all_arguments(sql, gen, "d");
	appendStringInfoString(sql, ")\n");
}

/*
 * A test for NULL, to be written behind a value. For composites, IS NULL and IS
 * NOT NULL look at their columns, and both can be false.
 */
static const char *
null_test(Oid type, bool isnull)
{
	if (type_is_rowtype(type))
		return isnull ? "IS NOT DISTINCT FROM NULL" : "IS DISTINCT FROM NULL";
	return isnull ? "IS NULL" : "IS NOT NULL";
}

/* The same for the witness. */
static const char *
witness_test(const Generator *gen, bool isnull)
{
	return null_test(get_atttype(gen->info->target, gen->info->witness), isnull);
}

/*
 * The condition under which the row "stored" has the key of the row "alias". In an
 * index with NULLS NOT DISTINCT, NULL equals NULL: for the columns in
 * null_pattern the staged value is known to be NULL, for others known not to
 * be; with null_pattern -1 nothing is known.
 */
static void
append_key_condition(StringInfo sql, const Generator *gen, const char *stored_alias,
					 const char *alias, int null_pattern)
{
	const IdemMergeInfo *info = gen->info;
	int			nullable = 0;

	for (int i = 0; i < info->nkeys; i++)
	{
		const IdemKeyColumn *key = &info->keys[i];
		bool		can_be_null = info->nulls_not_distinct && key->nullable;
		char	   *stored = key_value(gen, stored_alias, key);
		char	   *staged = key_value(gen, alias, key);
		const char *is_null = null_test(info->columns[key->column].type, true);

		if (i > 0)
			appendStringInfoString(sql, " AND ");
		if (can_be_null && null_pattern >= 0 && (null_pattern & (1 << nullable)))
			appendStringInfo(sql, "%s.%s %s", stored_alias, name_of(gen, key->column), is_null);
		else if (can_be_null && null_pattern < 0)
			appendStringInfo(sql, "(%s %s %s OR (%s.%s %s AND %s.%s %s))",
							 stored, operator_name(key->equal_operator), staged,
							 stored_alias, name_of(gen, key->column), is_null,
							 alias, name_of(gen, key->column), is_null);
		else
			appendStringInfo(sql, "%s %s %s", stored, operator_name(key->equal_operator), staged);
		nullable += can_be_null;
	}
}

static int
count_nullable_keys(const IdemMergeInfo *info)
{
	int			count = 0;

	for (int i = 0; info->nulls_not_distinct && i < info->nkeys; i++)
		count += info->keys[i].nullable;
	return count;
}

/* "alias.a, alias.b" for all columns of a stored row that the statement needs. */
static void
append_stored_columns(StringInfo sql, const Generator *gen, const char *alias)
{
	const IdemMergeInfo *info = gen->info;
	bool		has_witness = false;

	for (int i = 0; i < info->ncolumns + info->nlacking; i++)
	{
		const IdemColumn *column = i < info->ncolumns ? &info->columns[i] : NULL;
		const char *name = quote_identifier(column ? column->name :
											info->lacking[i - info->ncolumns].name);

		if (column && (column->target_attnum == 0 || !(column->is_compared || column->is_kept)))
			continue;
		appendStringInfo(sql, "%s.%s, ", alias, name);
		has_witness |= strcmp(name, gen->witness_column) == 0;
	}
	if (has_witness)
		sql->data[sql->len -= 2] = '\0';	/* the last comma */
	else
		appendStringInfo(sql, "%s.%s", alias, gen->witness_column);
}

/* What a stored row of the same key comes from, by the name of t. */
static void
append_stored_join(StringInfo sql, const Generator *gen, int null_pattern, const char *indent)
{
	const IdemMergeInfo *info = gen->info;

	appendStringInfo(sql, "%sLEFT JOIN %s AS ", indent, info->target_name);
	if (info->target_predicate == NULL)
	{
		appendStringInfoString(sql, "t ON ");
		append_key_condition(sql, gen, "t", "s", null_pattern);
		appendStringInfoChar(sql, '\n');
		return;
	}
	appendStringInfoString(sql, IDEM_EXPECTED_ALIAS " ON ");
	append_key_condition(sql, gen, IDEM_EXPECTED_ALIAS, "s", null_pattern);
	appendStringInfo(sql, " AND %s\n%sLEFT JOIN LATERAL (\n%s    SELECT ",
					 info->target_predicate, indent, indent);
	append_stored_columns(sql, gen, IDEM_EXPECTED_ALIAS);
	appendStringInfo(sql, "\n%s    WHERE " IDEM_EXPECTED_ALIAS ".%s %s"
					 "\n%s    UNION ALL\n%s    SELECT ",
					 indent, gen->witness_column, witness_test(gen, false), indent, indent);
	append_stored_columns(sql, gen, "l");
	appendStringInfo(sql, "\n%s    FROM (\n%s        SELECT ", indent, indent);
	append_stored_columns(sql, gen, "t");
	appendStringInfo(sql, "\n%s        FROM %s AS t\n%s        WHERE "
					 IDEM_EXPECTED_ALIAS ".%s %s AND ",
					 indent, info->target_name, indent, gen->witness_column,
					 witness_test(gen, true));
	append_key_condition(sql, gen, "t", "s", null_pattern);
	appendStringInfo(sql, "\n%s        OFFSET 0\n%s    ) AS l\n%s) AS t ON true\n",
					 indent, indent, indent);
}

/*
 * From the distinct rows (named s) to those that are new or differ. tlist is
 * what to select of them. Several SELECTs where keys with NULL are joined apart
 * from others: "equal or both NULL" would be a nested loop.
 */
static void
append_classified_rows(StringInfo sql, const Generator *gen, const char *tlist,
					   const char *from, const char *indent)
{
	const IdemMergeInfo *info = gen->info;
	int			nullable = count_nullable_keys(info);
	bool		apart = nullable > 0 && nullable <= MAX_NULL_PATTERN_COLUMNS;

	for (int pattern = 0; pattern < (apart ? 1 << nullable : 1); pattern++)
	{
		int			bit = 0;

		if (pattern > 0)
			appendStringInfo(sql, "%sUNION ALL\n", indent);
		appendStringInfo(sql, "%sSELECT %s\n%sFROM %s\n", indent, tlist, indent, from);
		append_stored_join(sql, gen, apart ? pattern : nullable > 0 ? -1 : 0, indent);
		appendStringInfo(sql, "%sWHERE ", indent);
		for (int i = 0; apart && i < info->nkeys; i++)
			if (info->keys[i].nullable)
				appendStringInfo(sql, "s.%s %s AND ", name_of(gen, info->keys[i].column),
								 null_test(info->columns[info->keys[i].column].type,
										   (pattern & (1 << bit++)) != 0));
		appendStringInfo(sql, "%s.idem_row_classify($1, %s", gen->schema, gen->witness);
		append_pairs(sql, gen, "s");
		appendStringInfoString(sql, ")\n");
	}
}

/* ", s.a, s.b" of the key, for idem_row_propose and idem_row_applied. */
static void
append_key_arguments(StringInfo sql, const Generator *gen, const char *alias)
{
	for (int i = 0; i < gen->info->nkeys; i++)
		appendStringInfo(sql, ", %s.%s", alias, name_of(gen, gen->info->keys[i].column));
}

/* Rows that are read in more than one place, or more than once, go into a CTE. */
static void
append_with(StringInfo sql, const Generator *gen)
{
	appendStringInfoString(sql, "WITH " DISTINCT_ROWS_NAME " AS MATERIALIZED (\n");
	append_distinct_rows(sql, gen, "    ");
	appendStringInfoString(sql, ")");
}

/* The FROM item of the distinct rows: the CTE, or the subquery itself. */
static char *
distinct_from(const Generator *gen, bool with, const char *indent)
{
	StringInfoData from;

	if (with)
		return DISTINCT_ROWS_NAME " AS s";
	initStringInfo(&from);
	appendStringInfoString(&from, "(\n");
	append_distinct_rows(&from, gen, psprintf("%s    ", indent));
	appendStringInfo(&from, "%s) AS s", indent);
	return from.data;
}

static char *
generate_update(const Generator *gen)
{
	const IdemMergeInfo *info = gen->info;
	StringInfoData sql;
	const char *comma = "";
	int			pattern = count_nullable_keys(info) > 0 ? -1 : 0;

	initStringInfo(&sql);
	append_with(&sql, gen);
	appendStringInfoString(&sql, ", l AS MATERIALIZED (\n    SELECT ");
	append_columns(&sql, gen, "s");
	appendStringInfo(&sql, "\n    FROM " DISTINCT_ROWS_NAME " AS s\n    JOIN %s AS t ON ", info->target_name);
	append_key_condition(&sql, gen, "t", "s", pattern);

	/*
	 * What is evaluated first in a join is not for us to say: the function
	 * must not see pairs of different keys.
	 */
	appendStringInfoString(&sql, "\n    WHERE CASE WHEN ");
	append_key_condition(&sql, gen, "t", "s", pattern);
	appendStringInfo(&sql, "\n        THEN %s.idem_row_classify($1, %s", gen->schema, gen->witness);
	append_pairs(&sql, gen, "s");
	appendStringInfoString(&sql, ") ELSE false END\n    ORDER BY ");
	append_key_order(&sql, gen, "s", false);
	appendStringInfo(&sql, "\n    FOR NO KEY UPDATE OF t\n), u AS (\n    UPDATE %s AS t\n    SET ",
					 info->target_name);
	for (int i = 0; i < info->ncolumns; i++)
		if (info->columns[i].is_set)
		{
			appendStringInfo(&sql, "%s%s = l.%s", comma, name_of(gen, i), name_of(gen, i));
			comma = ", ";
		}

	/*
	 * A join may stop early; all rows are to be looked at, and locked, before
	 * the first is written, and none is if there is a fault.
	 */
	appendStringInfo(&sql, "\n    FROM l\n    WHERE (SELECT pg_catalog.count(*) FROM " DISTINCT_ROWS_NAME ") IS NOT NULL"
					 "\n      AND (SELECT pg_catalog.count(*) FROM l) IS NOT NULL"
					 "\n      AND %s.idem_row_propose($1, true", gen->schema);
	append_key_arguments(&sql, gen, "l");
	appendStringInfoString(&sql, ")\n      AND ");
	append_key_condition(&sql, gen, "t", "l", pattern);
	appendStringInfo(&sql, "\n    RETURNING %s.idem_row_applied($1", gen->schema);
	append_key_arguments(&sql, gen, "t");

	/*
	 * The counts want all rows to have been looked at, also where the planner
	 * knows that there is nothing to update: no partitions, or a policy that
	 * is false.
	 */
	appendStringInfoString(&sql, ")\n)\nSELECT (SELECT pg_catalog.count(*) FROM " DISTINCT_ROWS_NAME "),"
						   " (SELECT pg_catalog.count(*) FROM u)");
	return sql.data;
}

/* What a row of p has for a column, and what INSERT proposes for it. */
static char *
classified_tlist(const Generator *gen)
{
	const IdemMergeInfo *info = gen->info;
	StringInfoData tlist;

	initStringInfo(&tlist);
	for (int i = 0; i < info->ncolumns; i++)
	{
		const IdemColumn *column = &info->columns[i];
		const char *name = name_of(gen, i);

		appendStringInfoString(&tlist, i > 0 ? ", " : "");
		if (column->is_kept)
			appendStringInfo(&tlist, "CASE WHEN %s %s THEN s.%s ELSE t.%s END AS %s",
							 gen->witness, witness_test(gen, true), name, name, name);
		else
			appendStringInfo(&tlist, "s.%s", name);
	}
	for (int i = 0; i < info->nlacking; i++)
		appendStringInfo(&tlist, ", t.%s", quote_identifier(info->lacking[i].name));
	appendStringInfo(&tlist, ", %s %s AS %s", gen->witness, witness_test(gen, false),
					 gen->matched);
	return tlist.data;
}

static char *
generate_insert(const Generator *gen)
{
	const IdemMergeInfo *info = gen->info;
	bool		with = count_nullable_keys(info) > 0;
	StringInfoData sql;
	const char *comma = "";

	initStringInfo(&sql);
	if (with)
	{
		append_with(&sql, gen);
		appendStringInfoChar(&sql, '\n');
	}
	appendStringInfo(&sql, "INSERT INTO %s AS t (", info->target_name);
	for (int i = 0; i < info->ncolumns; i++)
		appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", name_of(gen, i));
	for (int i = 0; i < info->nlacking; i++)
		appendStringInfo(&sql, ", %s", quote_identifier(info->lacking[i].name));
	appendStringInfo(&sql, ")\n%sSELECT ",
					 info->overrides_identity ? "OVERRIDING SYSTEM VALUE\n" : "");
	append_columns(&sql, gen, "p");
	for (int i = 0; i < info->nlacking; i++)
	{
		const IdemLackingColumn *lacking = &info->lacking[i];
		const char *name = quote_identifier(lacking->name);

		if (lacking->has_default)
		{
			Oid			base = getBaseType(lacking->type);
			char	   *value = psprintf("%s.idem_column_default($1, %d::smallint, NULL::%s)",
										 gen->schema, lacking->attnum, type_name(base));

			/* The argument stands for the type, and a domain may refuse NULL. */
			if (base != lacking->type)
				value = psprintf("(%s)::%s", value, type_name(lacking->type));
			appendStringInfo(&sql, ",\n       CASE WHEN p.%s THEN p.%s ELSE %s END",
							 gen->matched, name, value);
		}
		else
			appendStringInfo(&sql, ", p.%s", name);
	}
	appendStringInfoString(&sql, "\nFROM (\n");
	if (with)
	{
		/* The order of a UNION is that of its output columns. */
		appendStringInfoString(&sql, "    SELECT * FROM (\n");
		append_classified_rows(&sql, gen, classified_tlist(gen), distinct_from(gen, true, ""), "        ");
		appendStringInfoString(&sql, "    ) AS s\n");
	}
	else
		append_classified_rows(&sql, gen, classified_tlist(gen),
							   distinct_from(gen, false, "    "), "    ");
	appendStringInfoString(&sql, "    ORDER BY ");
	append_key_order(&sql, gen, "s", true);
	appendStringInfo(&sql, "\n    OFFSET 0\n) AS p\nWHERE %s.idem_row_propose($1, p.%s",
					 gen->schema, gen->matched);
	append_key_arguments(&sql, gen, "p");
	appendStringInfoString(&sql, ")\nON CONFLICT (");
	for (int i = 0; i < info->nkeys; i++)
	{
		const IdemKeyColumn *key = &info->keys[i];

		appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", name_of(gen, key->column));
		if (OidIsValid(key->collation))
			appendStringInfo(&sql, " COLLATE %s", collation_name(key->collation));
		appendStringInfo(&sql, " %s", opclass_name(key->opclass));
	}
	if (!info->sets_anything)
		appendStringInfoString(&sql, ") DO NOTHING");
	else
	{
		appendStringInfoString(&sql, ") DO UPDATE\nSET ");
		for (int i = 0; i < info->ncolumns; i++)
			if (info->columns[i].is_set)
			{
				appendStringInfo(&sql, "%s%s = EXCLUDED.%s", comma, name_of(gen, i),
								 name_of(gen, i));
				comma = ", ";
			}
		appendStringInfo(&sql, "\nWHERE %s.idem_row_guard($1", gen->schema);
		append_pairs(&sql, gen, "excluded");
		appendStringInfoChar(&sql, ')');
	}
	appendStringInfo(&sql, "\nRETURNING %s.idem_row_applied($1", gen->schema);
	append_key_arguments(&sql, gen, "t");
	appendStringInfoChar(&sql, ')');
	return sql.data;
}

static void
init_generator(Generator *gen, const IdemMergeInfo *info, const char *schema, bool materialized)
{
	char	   *matched = "matched";

	gen->info = info;
	gen->schema = schema;
	gen->materialized = materialized;
	for (int i = 0; i < info->ncolumns + info->nlacking; i++)
	{
		const char *name = i < info->ncolumns ? info->columns[i].name :
		info->lacking[i - info->ncolumns].name;

		/* Start again with a longer name until no column has it. */
		if (strcmp(name, matched) == 0)
		{
			matched = psprintf("%s_", matched);
			i = -1;
		}
	}
	gen->matched = matched;
	gen->witness_column = quote_identifier(get_attname(info->target, info->witness, false));
	gen->witness = psprintf("t.%s", gen->witness_column);
}

/*
 * The statement that applies a batch; all results of this file are palloc'd.
 * schema is that of the extension, quoted. With materialized, the rows come
 * from the tuplestore that is registered as IDEM_MATERIALIZED_NAME.
 */
char *
idem_sqlgen_apply(const IdemMergeInfo *info, const char *schema, bool materialized)
{
	Generator	gen;

	init_generator(&gen, info, schema, materialized);
	if (info->request->mode == IDEM_MODE_UPDATE)
		return info->sets_anything ? generate_update(&gen) :
			idem_sqlgen_classify(info, schema, materialized);
	return generate_insert(&gen);
}

/* The query that counts what the statement would do. */
char *
idem_sqlgen_classify(const IdemMergeInfo *info, const char *schema, bool materialized)
{
	bool		with = count_nullable_keys(info) > 0;
	Generator	gen;
	StringInfoData sql;

	init_generator(&gen, info, schema, materialized);
	initStringInfo(&sql);
	if (with)
	{
		append_with(&sql, &gen);
		appendStringInfoChar(&sql, '\n');
	}
	append_classified_rows(&sql, &gen, "true", distinct_from(&gen, with, ""), "");
	return sql.data;
}

/* A column list for a SELECT, bytewise as given. */
static char *
select_list(const char *alias, List *columns)
{
	StringInfoData list;
	ListCell   *lc;

	initStringInfo(&list);
	foreach(lc, columns)
		appendStringInfo(&list, "%s%s.%s", list.len > 0 ? ", " : "", alias,
						 quote_identifier(lfirst(lc)));
	return list.data;
}

/* The query that computes the fingerprint of some columns of a relation. */
char *
idem_sqlgen_scan(const char *relation, List *columns, const char *schema)
{
	char	   *list = select_list("s", columns);
	bool		wide = list_length(columns) > IDEM_MAX_SEPARATE_ARGS;

	return psprintf("SELECT FROM (SELECT %s FROM %s AS s OFFSET 0) AS s\n"
					"WHERE %s.idem_row_staged($1, %s%s%s)",
					list, relation, schema, wide ? "ROW(" : "", list, wide ? ")" : "");
}

/* The query that reads some columns of a relation. */
char *
idem_sqlgen_read(const char *relation, List *columns)
{
	return psprintf("SELECT %s FROM %s AS s", select_list("s", columns), relation);
}

/* The statement that gives the target the columns that only staging has. */
char *
idem_sqlgen_add_columns(const IdemMergeInfo *info)
{
	StringInfoData sql;
	ListCell   *lc;

	initStringInfo(&sql);
	appendStringInfo(&sql, "ALTER TABLE %s", info->target_name);
	foreach(lc, info->added)
	{
		const IdemColumn *column = &info->columns[lfirst_int(lc)];

		appendStringInfo(&sql, "%s ADD COLUMN %s %s", foreach_current_index(lc) > 0 ? "," : "",
						 quote_identifier(column->name),
						 type_name_with_typmod(column->type, column->typmod));
		if (OidIsValid(column->collation))
			appendStringInfo(&sql, " COLLATE %s", collation_name(column->collation));
	}
	return sql.data;
}
