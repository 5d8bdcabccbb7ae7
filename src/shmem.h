/*-------------------------------------------------------------------------
 *
 * shmem.h
 *	  What launcher, workers, job processes and sessions know of each other.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SHMEM_H
#define IDEM_SHMEM_H

#include "postgres_ext.h"

/* A place in shared memory, as it is handed to a process that is started. */
typedef struct IdemSlot
{
	int			index;
	uint32		generation;		/* tells it from an earlier use of the place */
} IdemSlot;

/* Of a database's worker. launcher.c has the transitions. */
typedef enum IdemWorkerState
{
	IDEM_WORKER_FREE,
	IDEM_WORKER_STARTING,		/* until it has found the extension */
	IDEM_WORKER_RUNNING,
	/* it has ended, and the launcher has not looked yet */
	IDEM_WORKER_ABSENT,			/* no extension in the database */
	IDEM_WORKER_STOPPED,		/* it was told to */
	IDEM_WORKER_FAILED
} IdemWorkerState;

typedef struct IdemWorkerInfo
{
	IdemSlot	slot;
	Oid			database;
	IdemWorkerState state;
	int			pid;			/* 0 before it has started */
} IdemWorkerInfo;

typedef enum IdemReservation
{
	IDEM_RESERVED,
	IDEM_RESERVATION_EXISTS,
	IDEM_RESERVATION_BLOCKED,	/* a command on the database is running */
	IDEM_RESERVATION_FULL
} IdemReservation;

/* A job that is to be run, or is running. */
typedef struct IdemJobInfo
{
	Oid			database;
	Oid			role;
	int64		job_id;
	int32		attempt;
} IdemJobInfo;

/* Most job processes, and most workers, that there is room for. */
#define IDEM_MAX_JOB_PROCESSES	64
#define IDEM_MAX_WORKERS		128

/* Most databases that the launcher is told by name; more are "all". */
#define IDEM_MAX_CHANGED		32

/* Whom to wake when a transaction commits. */
#define IDEM_WAKE_WORKER		0x01	/* of this database */
#define IDEM_WAKE_EXTENSION		0x02	/* launcher: this database may have
										 * got the extension */
#define IDEM_WAKE_DATABASES		0x04	/* launcher: the list of databases has
										 * changed */

extern void idem_shmem_init(void);

extern void idem_shmem_attach_launcher(void);
extern bool idem_shmem_launcher_woken(bool take);
extern IdemReservation idem_shmem_reserve_worker(Oid database, IdemSlot *slot);
extern void idem_shmem_release_worker(IdemSlot slot);
extern int	idem_shmem_workers(IdemWorkerInfo *workers);
extern void idem_shmem_terminate_worker(IdemSlot slot);
extern int	idem_shmem_take_changed(Oid *databases, bool *all);

extern bool idem_shmem_attach_worker(IdemSlot slot, Oid *database);
extern bool idem_shmem_worker_woken(IdemSlot slot, bool take);
extern void idem_shmem_set_worker(IdemSlot slot, IdemWorkerState state);

extern bool idem_shmem_reserve_job(Oid database, int limit, IdemSlot *slot);
extern bool idem_shmem_want_place(IdemSlot worker, int limit);
extern void idem_shmem_assign_job(IdemSlot slot, const IdemJobInfo *job);
extern void idem_shmem_release_job(IdemSlot slot);
extern bool idem_shmem_attach_job(IdemSlot slot, IdemJobInfo *job);
extern bool idem_shmem_cancel_job(Oid database, int64 job_id);

extern void idem_shmem_wake_at_commit(int whom);
extern void idem_shmem_cancel_at_commit(int64 job_id);
extern bool idem_shmem_block(Oid database);
extern void idem_shmem_unblock(bool at_end);
extern int	idem_shmem_terminate(Oid database);


#endif							/* IDEM_SHMEM_H */
