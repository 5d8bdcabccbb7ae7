/*-------------------------------------------------------------------------
 *
 * rowfuncs.h
 *	  The running merge, as the functions in its statement see it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ROWFUNCS_H
#define IDEM_ROWFUNCS_H

#include "relinfo.h"

/* What became of the staged rows. */
typedef struct IdemCounts
{
	int64		staged;
	int64		duplicate;
	int64		inserted;
	int64		updated;
	int64		deleted;
	int64		unchanged;
	int64		stale;
	int64		skipped;
} IdemCounts;

typedef enum IdemRunKind
{
	IDEM_RUN_SCAN,				/* fingerprint only */
	IDEM_RUN_CLASSIFY,			/* count what a merge would do */
	IDEM_RUN_APPLY
} IdemRunKind;

typedef struct IdemRun IdemRun;

extern IdemRun *idem_rowfuncs_begin(IdemRunKind kind, const IdemMergeInfo *info,
									int ncolumns, char **names, Oid *types);
extern void idem_rowfuncs_end(IdemRun *run);
extern int64 idem_rowfuncs_handle(const IdemRun *run);
extern void idem_rowfuncs_check(const IdemCounts *counts);
extern bool idem_rowfuncs_finish(IdemRun *run, IdemCounts *counts, char **fingerprint);

#endif							/* IDEM_ROWFUNCS_H */
