/*-------------------------------------------------------------------------
 *
 * engine_sql.h
 *	  Classify and apply a batch by one generated statement.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ENGINE_SQL_H
#define IDEM_ENGINE_SQL_H

#include "ledger.h"
#include "rowfuncs.h"

/*
 * Staging as a merge reads it. What may give other rows when it is read again,
 * a view or a foreign table, is read once into a tuplestore, when rows are
 * wanted for the first time.
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
	bool		materialized;
} IdemSource;

extern void idem_engine_sql_begin(IdemSource *source, const IdemLedger *ledger, Oid staging,
								  bool read_only);
extern void idem_engine_sql_scan(IdemSource *source, List *columns,
								 IdemCounts *counts, char **fingerprint);
extern void idem_engine_sql_classify(IdemSource *source, const IdemMergeInfo *info,
									 IdemCounts *counts, char **fingerprint);
extern void idem_engine_sql_apply(IdemSource *source, const IdemMergeInfo *info,
								  IdemCounts *counts, char **fingerprint);
extern char *idem_engine_sql_statement(const IdemSource *source, const IdemMergeInfo *info,
									   bool dry_run);
extern void idem_engine_sql_add_columns(const IdemMergeInfo *info);

#endif							/* IDEM_ENGINE_SQL_H */
