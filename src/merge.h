/*-------------------------------------------------------------------------
 *
 * merge.h
 *	  One merge from beginning to end.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_MERGE_H
#define IDEM_MERGE_H

#include "ledger.h"
#include "relinfo.h"

/* The result row of idem_merge(); what does not apply is NULL or has its null flag. */
typedef struct IdemMergeResult
{
	bool		permitted;		/* the caller may do this: set even on error */
	const char *status;
	const char *batch_id;
	bool		expired;		/* a replay that knows no counts any more */
	int32		revision;		/* 0: none */
	int64		rows[IDEM_LEDGER_COUNTS];	/* as in IdemLedgerEntry */
	const char *fingerprint;
	const char *engine;
	bool		applied_at_null;
	TimestampTz applied_at;
	bool		elapsed_null;
	Interval	elapsed;
} IdemMergeResult;

typedef struct IdemExplanation
{
	const char *engine;
	const char *reason;
	const char *locks;
	const char *statement;
} IdemExplanation;

extern void idem_merge_run(const IdemLedger *ledger, const IdemRequest *request,
						   IdemMergeResult *result);
extern void idem_merge_explain(const IdemLedger *ledger, const IdemRequest *request,
							   IdemExplanation *explanation);
extern char *idem_merge_fingerprint(const IdemLedger *ledger, Oid staging, List *columns);
extern bool idem_merge_claim(const IdemLedger *ledger, Oid target, const char *pipeline,
							 const char *batch_id, const char *fingerprint,
							 Datum metadata, bool metadata_null);

#endif							/* IDEM_MERGE_H */
