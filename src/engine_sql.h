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
#include "source.h"

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
