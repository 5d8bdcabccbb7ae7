/*-------------------------------------------------------------------------
 *
 * job.h
 *	  One attempt at a queued merge, and the process for it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_JOB_H
#define IDEM_JOB_H

#include "queue.h"

extern PGDLLEXPORT void idem_job_main(Datum arg);
extern void idem_job_run(const IdemQueue *queue, const IdemAttempt *attempt);

#endif							/* IDEM_JOB_H */
