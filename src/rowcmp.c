/*-------------------------------------------------------------------------
 *
 * rowcmp.c
 *	  What a merge compares: staged rows with each other and with stored ones.
 *
 * Both engines decide by these functions, so that they decide alike.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/timestamp.h"

#include "rowcmp.h"

/*
 * Prepare comparisons for a merge. The result lives in the current memory
 * context, and is good for as long as info is.
 */
IdemComparer *
idem_rowcmp_begin(const IdemMergeInfo *info)
{
	IdemComparer *comparer = palloc0(sizeof(IdemComparer));

	comparer->info = info;
	comparer->images = palloc(sizeof(IdemImageType *) * Max(info->ncolumns, 1));
	for (int i = 0; i < info->ncolumns; i++)
		comparer->images[i] = idem_rowhash_type(info->columns[i].type);
	comparer->versions = palloc0(sizeof(IdemVersionComparer) * Max(info->nversions, 1));
	for (int v = 0; v < info->nversions; v++)
	{
		IdemVersionComparer *version = &comparer->versions[v];

		version->column = info->versions[v].column;
		version->type = getBaseType(info->columns[version->column].type);
		version->collation = info->versions[v].collation;
		fmgr_info(info->versions[v].compare_function, &version->compare);
	}
	return comparer;
}

/* Compare the versions of two rows, left to right; NULL is lowest. */
int
idem_rowcmp_versions(IdemComparer *comparer, const Datum *a, const bool *a_nulls,
					 const Datum *b, const bool *b_nulls)
{
	for (int v = 0; v < comparer->info->nversions; v++)
	{
		IdemVersionComparer *version = &comparer->versions[v];
		int			i = version->column;
		int			order;

		if (a_nulls[i] || b_nulls[i])
			order = (int) b_nulls[i] - (int) a_nulls[i];
		else
			order = DatumGetInt32(FunctionCall2Coll(&version->compare, version->collation,
													a[i], b[i]));
		if (order != 0)
			return order;
	}
	return 0;
}

/* Are two rows the same but for their audit columns? */
bool
idem_rowcmp_same_content(const IdemComparer *comparer, const Datum *a, const bool *a_nulls,
						 const Datum *b, const bool *b_nulls)
{
	for (int i = 0; i < comparer->info->ncolumns; i++)
		if (!comparer->info->columns[i].is_audit &&
			!idem_rowhash_equal(comparer->images[i], a[i], a_nulls[i], b[i], b_nulls[i]))
			return false;
	return true;
}

/*
 * What a staged row means for the stored one of its key. Of the stored row only
 * columns that are compared are looked at.
 */
IdemRowFate
idem_rowcmp_stored(IdemComparer *comparer, const Datum *staged, const bool *staged_nulls,
				   const Datum *stored, const bool *stored_nulls)
{
	const IdemMergeInfo *info = comparer->info;

	if (info->request->on_stale != IDEM_STALE_APPLY &&
		idem_rowcmp_versions(comparer, staged, staged_nulls, stored, stored_nulls) < 0)
		return IDEM_ROW_STALE;
	for (int i = 0; i < info->ncolumns; i++)
		if (info->columns[i].is_compared &&
			!idem_rowhash_equal(comparer->images[i], staged[i], staged_nulls[i],
								stored[i], stored_nulls[i]))
			return IDEM_ROW_CHANGED;
	return IDEM_ROW_UNCHANGED;
}

/* NaN and infinity are above all other versions, for ever. */
static bool
is_endless(Oid type, Datum value)
{
	switch (type)
	{
		case FLOAT4OID:
			return isnan(DatumGetFloat4(value)) || isinf(DatumGetFloat4(value)) > 0;
		case FLOAT8OID:
			return isnan(DatumGetFloat8(value)) || isinf(DatumGetFloat8(value)) > 0;
		case NUMERICOID:
			{
				Numeric		number = DatumGetNumeric(value);

				return numeric_is_nan(number) ||
					(numeric_is_inf(number) &&
					 DatumGetBool(DirectFunctionCall2(numeric_gt, value,
													  NumericGetDatum(int64_to_numeric(0)))));
			}
		case DATEOID:
			return DATE_IS_NOEND(DatumGetDateADT(value));
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return TIMESTAMP_IS_NOEND(DatumGetTimestamp(value));
		default:
			return false;
	}
}

/* Has the row a version that no later one can be above? */
bool
idem_rowcmp_is_endless(const IdemComparer *comparer, const Datum *values, const bool *nulls)
{
	for (int v = 0; v < comparer->info->nversions; v++)
	{
		const IdemVersionComparer *version = &comparer->versions[v];

		if (!nulls[version->column] && is_endless(version->type, values[version->column]))
			return true;
	}
	return false;
}
