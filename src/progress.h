/*-------------------------------------------------------------------------
 *
 * progress.h
 *	  What others can see of a merge that is running.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_PROGRESS_H
#define IDEM_PROGRESS_H

#include "commands/progress.h"
#include "utils/backend_progress.h"

/* The view idem_progress has words for these. */
typedef enum IdemPhase
{
	IDEM_PHASE_WAITING = 1,		/* for the batch or the target's turn */
	IDEM_PHASE_READING,			/* for the fingerprint */
	IDEM_PHASE_APPLYING,
	IDEM_PHASE_RECORDING
} IdemPhase;

/*
 * Parameters besides those of pg_stat_progress_copy, from the end of the array,
 * so that there is room for more of these.
 */
#define IDEM_PROGRESS_PHASE			19
#define IDEM_PROGRESS_ROWS_READ		18
#define IDEM_PROGRESS_ROWS_TOTAL	17	/* 0: not known yet */

/* Rows are counted one by one and reported now and then. */
#define IDEM_PROGRESS_IS_DUE(rows)	(((rows) & 1023) == 0)

extern void idem_progress_begin(Oid target, IdemPhase phase);
extern void idem_progress_end(void);

#endif							/* IDEM_PROGRESS_H */
