/*-------------------------------------------------------------------------
 *
 * stats.h
 *	  Counts of what merges have done, for each target, in shared memory.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_STATS_H
#define IDEM_STATS_H

#include "datatype/timestamp.h"

/* How merges end. */
typedef enum IdemStatsOutcome
{
	IDEM_STATS_APPLIED,
	IDEM_STATS_REAPPLIED,
	IDEM_STATS_REPLAYED,
	IDEM_STATS_MISMATCH,		/* II001, and so on */
	IDEM_STATS_ALREADY_APPLIED,
	IDEM_STATS_STALE_ROW,
	IDEM_STATS_LOST_BATCH,
	IDEM_STATS_NOT_IN_TARGET,
	IDEM_STATS_OTHER_ERROR,
	IDEM_STATS_OUTCOMES
} IdemStatsOutcome;

/* How many counts of rows there are, as in the ledger. */
#define IDEM_STATS_ROWS		8

typedef struct IdemStatsCounts
{
	int64		outcomes[IDEM_STATS_OUTCOMES];
	int64		rows[IDEM_STATS_ROWS];
	int64		microseconds;
	int64		wal_bytes;
	TimestampTz last_batch;		/* 0: none */
} IdemStatsCounts;

/* What is known about a target. */
typedef struct IdemStatsTarget
{
	Oid			target;
	IdemStatsCounts counts;
} IdemStatsTarget;

extern void idem_stats_init(void);
extern bool idem_stats_is_there(void);
extern void idem_stats_count(Oid target, const IdemStatsCounts *counts);
extern void idem_stats_count_error(Oid target, int sqlstate);
extern int	idem_stats_read(IdemStatsTarget **targets, TimestampTz *since);
extern void idem_stats_clear(void);

#endif							/* IDEM_STATS_H */
