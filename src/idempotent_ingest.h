/*-------------------------------------------------------------------------
 *
 * idempotent_ingest.h
 *	  Names and constants that every layer shares.
 *
 * Layers call downward only:
 *
 *	0  idempotent_ingest.h, compat.h
 *	1  security, spi_util, rowhash (which calls security), progress, stats,
 *	   shmem, predicate
 *	   valuefuncs (which calls rowhash)
 *	2  relcheck, relinfo and keyindex (which call relcheck and each other),
 *	   ledger, turn, queue (which calls relcheck)
 *	3  sqlgen, rowfuncs, engine_sql (which calls both)
 *	4  merge, maintenance
 *	5  sqlfuncs, maintfuncs, statsfuncs, jobfuncs (which calls sqlfuncs and
 *	   job), job, worker, launcher, dbcommands; the last five know of each
 *	   other through shmem and the queue
 *	6  init
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENT_INGEST_H
#define IDEMPOTENT_INGEST_H

/* SQLSTATEs of our own: only where PostgreSQL has none that fits. */
#define ERRCODE_IDEM_MISMATCH			MAKE_SQLSTATE('I', 'I', '0', '0', '1')
#define ERRCODE_IDEM_ALREADY_APPLIED	MAKE_SQLSTATE('I', 'I', '0', '0', '2')
#define ERRCODE_IDEM_STALE_ROW			MAKE_SQLSTATE('I', 'I', '0', '0', '3')
#define ERRCODE_IDEM_LOST_BATCH			MAKE_SQLSTATE('I', 'I', '0', '0', '4')
#define ERRCODE_IDEM_NOT_IN_TARGET		MAKE_SQLSTATE('I', 'I', '0', '0', '5')

/*
 * The fourth field of an advisory lock tag says whose lock it is: PostgreSQL
 * has 1 and 2, Citus some of the next dozen.
 */
#define IDEM_LOCK_TURN			18761	/* merges of one target take turns */
#define IDEM_LOCK_BATCH			18762	/* one submitter of a batch at a time */
#define IDEM_LOCK_JOB			18763	/* whoever runs a queued job */

/* Longest batch id and pipeline, in bytes: both are in one btree key. */
#define IDEM_MAX_NAME_BYTES		255

/* How many keys an error's detail names. */
#define IDEM_MAX_KEYS_SHOWN		10

/* Version of the fingerprint's algorithm; rowhash.c defines it. */
#define IDEM_FINGERPRINT_VERSION	1

/* How many arguments idem_merge() has, and had. */
#define IDEM_MERGE_ARGUMENTS		20
#define IDEM_MERGE_ARGUMENTS_0_1	19

#endif							/* IDEMPOTENT_INGEST_H */
