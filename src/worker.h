/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  The worker of one database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_WORKER_H
#define IDEM_WORKER_H

extern PGDLLEXPORT void idem_worker_main(Datum arg);

#endif							/* IDEM_WORKER_H */
