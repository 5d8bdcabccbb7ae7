/*-------------------------------------------------------------------------
 *
 * rowcmp.h
 *	  What a merge compares: staged rows with each other and with stored ones.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ROWCMP_H
#define IDEM_ROWCMP_H

#include "fmgr.h"
#include "relinfo.h"
#include "rowhash.h"

typedef enum IdemRowFate
{
	IDEM_ROW_CHANGED,
	IDEM_ROW_UNCHANGED,
	IDEM_ROW_STALE
} IdemRowFate;

typedef struct IdemVersionComparer
{
	int			column;			/* position in IdemMergeInfo.columns */
	Oid			type;			/* never a domain */
	Oid			collation;
	FmgrInfo	compare;
} IdemVersionComparer;

/* Rows are arrays of values by position in IdemMergeInfo.columns, after casts. */
typedef struct IdemComparer
{
	const IdemMergeInfo *info;
	IdemImageType **images;		/* of the columns, in the target's types */
	IdemVersionComparer *versions;
} IdemComparer;

extern IdemComparer *idem_rowcmp_begin(const IdemMergeInfo *info);
extern int	idem_rowcmp_versions(IdemComparer *comparer,
								 const Datum *a, const bool *a_nulls,
								 const Datum *b, const bool *b_nulls);
extern bool idem_rowcmp_same_content(const IdemComparer *comparer,
									 const Datum *a, const bool *a_nulls,
									 const Datum *b, const bool *b_nulls);
extern IdemRowFate idem_rowcmp_stored(IdemComparer *comparer,
									  const Datum *staged, const bool *staged_nulls,
									  const Datum *stored, const bool *stored_nulls);
extern bool idem_rowcmp_is_endless(const IdemComparer *comparer,
								   const Datum *values, const bool *nulls);

#endif							/* IDEM_ROWCMP_H */
