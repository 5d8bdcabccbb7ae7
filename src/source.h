/*-------------------------------------------------------------------------
 *
 * source.h
 *	  Staging as a merge reads it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SOURCE_H
#define IDEM_SOURCE_H

#include "ledger.h"
#include "executor/spi.h"
#include "nodes/pg_list.h"
#include "tcop/dest.h"

/*
 * What may give other rows when it is read again, a view or a foreign table, is
 * read once into a tuplestore, when rows are wanted for the first time.
 */
typedef struct IdemSource
{
	const IdemLedger *ledger;
	Oid			staging;
	char	   *name;			/* qualified and quoted */
	List	   *columns;		/* of char *, those that may be read */
	bool		read_only;		/* under the snapshot of the calling
								 * statement; else a new one is taken, to see
								 * what a wait was for */
	bool		materialize;
	struct Tuplestorestate *rows;	/* once they are materialized */
	SPIPlanPtr	plan;			/* of idem_source_prepare() */
} IdemSource;

extern void idem_source_begin(IdemSource *source, const IdemLedger *ledger, Oid staging,
							  bool read_only);
extern void idem_source_lock(IdemSource *source);
extern void idem_source_end(IdemSource *source);
extern void idem_source_materialize(IdemSource *source);
extern void idem_source_prepare(IdemSource *source, List *columns);
extern void idem_source_read(IdemSource *source, DestReceiver *dest);

#endif							/* IDEM_SOURCE_H */
