/*-------------------------------------------------------------------------
 *
 * queue.h
 *	  The queue of merges: statements on idem_job.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_QUEUE_H
#define IDEM_QUEUE_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

#include "spi_util.h"

/* Where the queue is, and whose. */
typedef struct IdemQueue
{
	Oid			relid;
	Oid			owner;
	Oid			schema_oid;		/* of all our objects */
	char	   *schema;			/* its name, quoted */
} IdemQueue;

/* An attempt at a job. A later attempt at the same job has another number. */
typedef struct IdemAttempt
{
	int64		job_id;
	int32		attempt;		/* from 1 */
	Oid			role;
} IdemAttempt;

/* Most attempts that can be asked for. */
#define IDEM_MAX_ATTEMPTS		1000

/* What idem_wait() tells of a job. */
typedef struct IdemJobState
{
	Oid			role;
	bool		ended;
	bool		is_ours;		/* written by the current transaction */
	char	   *status;
	int32		attempts;
	char	   *sqlstate;		/* NULL: none; so are the next two */
	char	   *message;
	bool		result_null;
	Datum		result;
} IdemJobState;

extern void idem_queue_open(Oid schema, IdemQueue *queue);
extern bool idem_queue_find(IdemQueue *queue);
extern int64 idem_queue_enqueue(const IdemQueue *queue, const NullableDatum *arguments,
								TimestampTz run_at, int32 max_attempts, int32 priority);
extern List *idem_queue_take(const IdemQueue *queue, Oid role, int limit);
extern bool idem_queue_lock(const IdemQueue *queue, const IdemAttempt *attempt);
extern void idem_queue_give_back(const IdemQueue *queue, const IdemAttempt *attempt);
extern bool idem_queue_load(const IdemQueue *queue, const IdemAttempt *attempt,
							IdemSpiArgs *arguments, bool *cancelled);
extern bool idem_queue_succeed(const IdemQueue *queue, const IdemAttempt *attempt, Datum result);
extern bool idem_queue_fail(const IdemQueue *queue, const IdemAttempt *attempt, int sqlstate,
							const char *message);
extern List *idem_queue_running(const IdemQueue *queue, Oid role, bool cancelled);
extern bool idem_queue_reclaim(const IdemQueue *queue, Oid role, List *except);
extern void idem_queue_fail_roleless(const IdemQueue *queue);
extern bool idem_queue_cancel(const IdemQueue *queue, int64 job_id);
extern bool idem_queue_look(const IdemQueue *queue, int64 job_id, IdemJobState *state);
extern bool idem_queue_next(const IdemQueue *queue, int retry, TimestampTz *run_at);
extern bool idem_queue_expire(const IdemQueue *queue);

extern void idem_queue_hold(int64 job_id, bool session);
extern void idem_queue_let_go(int64 job_id);

#endif							/* IDEM_QUEUE_H */
