/*-------------------------------------------------------------------------
 *
 * ledger.h
 *	  The ledger: one row for each batch that was applied.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LEDGER_H
#define IDEM_LEDGER_H

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

/* Where the ledger is, and whose. */
typedef struct IdemLedger
{
	Oid			relid;
	Oid			owner;
	Oid			schema_oid;		/* of all our objects */
	char	   *schema;			/* its name, quoted */
} IdemLedger;

/* What identifies a batch. */
typedef struct IdemBatchKey
{
	Oid			target;			/* InvalidOid for a claim without target */
	Oid			target_type;	/* its row type */
	const char *pipeline;
	const char *batch_id;
	Oid			claimed_by;		/* role of a claim without target */
} IdemBatchKey;

/* How many counts a ledger row has. */
#define IDEM_LEDGER_COUNTS 8

/* A ledger row as a replay needs it. */
typedef struct IdemLedgerEntry
{
	bool		is_merge;
	bool		expired;		/* what follows is not known any more, except
								 * revision and applied_at */
	int32		revision;
	char	   *fingerprint;	/* NULL if a claim had none */
	List	   *columns;		/* of char *, covered by the fingerprint */
	int64		rows[IDEM_LEDGER_COUNTS];	/* staged, duplicate, inserted,
											 * updated, deleted, unchanged,
											 * stale, skipped */
	char	   *engine;
	TimestampTz applied_at;
	bool		elapsed_null;
	Interval	elapsed;
	char	   *differing;		/* options that differ from those given, or
								 * NULL */
} IdemLedgerEntry;

/* What a batch leaves in its row. */
typedef struct IdemLedgerRecord
{
	bool		is_merge;
	const char *role;
	const char *application_name;
	const char *options;
	const char *fingerprint;	/* NULL if a claim has none */
	TimestampTz applied_at;
	Datum		metadata;
	bool		metadata_null;
	/* Of a merge only. */
	const int32 *turn_class;	/* NULL if it does not commute with others */
	List	   *columns;		/* of char *, covered by the fingerprint */
	const char *engine;
	Interval	elapsed;
	int64		rows[IDEM_LEDGER_COUNTS];	/* as in IdemLedgerEntry */
} IdemLedgerRecord;

extern const IdemLedger *idem_ledger_open(Oid function);
extern const IdemLedger *idem_ledger_open_in(Oid namespace_oid);
extern bool idem_ledger_find(const IdemLedger *ledger, const IdemBatchKey *key,
							 const char *options, bool lock, IdemLedgerEntry *entry);
extern bool idem_ledger_try_lock(const IdemLedger *ledger, const IdemBatchKey *key);
extern bool idem_ledger_is_hidden(const IdemLedger *ledger, const IdemBatchKey *key);
extern void idem_ledger_begin_record(IdemLedgerRecord *record, const char *options, Datum metadata,
									 bool metadata_null);
extern bool idem_ledger_insert(const IdemLedger *ledger, const IdemBatchKey *key,
							   const IdemLedgerRecord *record);
extern void idem_ledger_revise(const IdemLedger *ledger, const IdemBatchKey *key,
							   const char *action, const IdemLedgerRecord *record);
extern bool idem_ledger_overtaken(const IdemLedger *ledger, Oid target, const int32 *turn_class);
extern List *idem_ledger_pipelines(const IdemLedger *ledger, const IdemBatchKey *key,
								   const TimestampTz *applied_since);
extern int64 idem_ledger_forget(const IdemLedger *ledger, const IdemBatchKey *key,
								const TimestampTz *applied_since, const char *reason,
								bool dry_run);

#endif							/* IDEM_LEDGER_H */
