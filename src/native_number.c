/*-------------------------------------------------------------------------
 *
 * native_number.c
 *	  Keys that are one number.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

#include "native_number.h"

/*
 * How many bytes a key has whose order, as the key's index has it, is that of
 * numbers; 0 if it is another one. Staged keys are never NULL then, stored ones
 * can be. (Where NULL is a key like any other, it can be staged even for a column
 * that is NOT NULL: that is an error of the row, and not of the key.)
 */
int
idem_number_length(const IdemMergeInfo *info)
{
	if (info->nkeys != 1 || info->nulls_not_distinct)
		return 0;
	switch (get_opcode(info->keys[0].sort_operator))
	{
		case F_INT2LT:
			return sizeof(int16);
		case F_INT4LT:
		case F_DATE_LT:
			return sizeof(int32);
		case F_INT8LT:
		case F_TIMESTAMP_LT:
		case F_TIMESTAMPTZ_LT:
			return sizeof(int64);
		default:
			return 0;
	}
}
