/*-------------------------------------------------------------------------
 *
 * engine_sql.h
 *	  Classify and apply a batch by one generated statement.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ENGINE_SQL_H
#define IDEM_ENGINE_SQL_H

#include "rowfuncs.h"

/* Staging as a merge reads it. */
typedef struct IdemSource
{
	bool		materialized;	/* into the tuplestore below, once and for all */
	bool		read_only;
} IdemSource;

extern void idem_engine_sql_prepare(IdemSource *source, Oid staging, char staging_kind,
									const char *name, List *columns, bool read_only);
extern void idem_engine_sql_scan(const IdemSource *source, Oid staging, const char *name,
								 List *columns, const char *schema,
								 IdemCounts *counts, char **fingerprint);
extern void idem_engine_sql_classify(const IdemSource *source, const IdemMergeInfo *info,
									 const char *schema,
									 IdemCounts *counts, char **fingerprint);
extern void idem_engine_sql_apply(const IdemSource *source, const IdemMergeInfo *info,
								  const char *schema,
								  IdemCounts *counts, char **fingerprint);

#endif							/* IDEM_ENGINE_SQL_H */
