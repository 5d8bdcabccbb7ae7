/*-------------------------------------------------------------------------
 *
 * sqlgen.h
 *	  The SQL that merges run.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SQLGEN_H
#define IDEM_SQLGEN_H

#include "relinfo.h"

/*
 * A function call has room for 100 arguments; wider rows are passed as
 * records.
 */
#define IDEM_MAX_SEPARATE_ARGS	90

/* The name under which a materialized staging relation is read. */
#define IDEM_MATERIALIZED_NAME	"idem_staged_rows"

extern char *idem_sqlgen_apply(const IdemMergeInfo *info, const char *schema, bool materialized);
extern char *idem_sqlgen_classify(const IdemMergeInfo *info, const char *schema,
								  bool materialized);
extern char *idem_sqlgen_scan(const char *relation, List *columns, const char *schema);
extern char *idem_sqlgen_read(const char *relation, List *columns);
extern char *idem_sqlgen_add_columns(const IdemMergeInfo *info);

#endif							/* IDEM_SQLGEN_H */
