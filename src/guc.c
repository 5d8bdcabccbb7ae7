/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  Settings, in alphabetical order.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/guc.h"

#include "guc.h"

#define MINUTES_PER_DAY			(24 * 60)

/* A thousand years: no time stamp minus it is out of range. */
#define MAX_RETENTION			(365000 * MINUTES_PER_DAY)

int			idem_guc_engine = IDEM_ENGINE_AUTO;
int			idem_guc_key_retention = 0;
int			idem_guc_maintenance_delay = 20;
int			idem_guc_retention = 90 * MINUTES_PER_DAY;

static const struct config_enum_entry engine_options[] = {
	{"auto", IDEM_ENGINE_AUTO, false},
	{"native", IDEM_ENGINE_NATIVE, false},
	{"sql", IDEM_ENGINE_SQL, false},
	{NULL, 0, false}
};

void
idem_guc_define(void)
{
	DefineCustomEnumVariable("idempotent_ingest.engine",
							 "Chooses how idem_merge() applies batches.",
							 "\"auto\" chooses by cost. \"native\" and \"sql\" force one engine; "
							 "where the native engine cannot serve a target, \"native\" is an error, "
							 "and where it meets concurrent changes, the sql engine takes over.",
							 &idem_guc_engine,
							 IDEM_ENGINE_AUTO,
							 engine_options,
							 PGC_USERSET,
							 0,
							 NULL, NULL, NULL);

	/* Counted in minutes, for milliseconds or seconds do not hold years. */
	DefineCustomIntVariable("idempotent_ingest.key_retention",
							"Sets how long a batch is recognised after it was applied.",
							"Then it is new again. 0 means for ever. If it is specified without "
							"units, it is taken as minutes.",
							&idem_guc_key_retention,
							0, 0, MAX_RETENTION,
							PGC_SUSET,
							GUC_UNIT_MIN,
							NULL, NULL, NULL);
	DefineCustomIntVariable("idempotent_ingest.maintenance_delay",
							"Sets the time between two steps of maintenance.",
							"A step deals with some 500 batches. 0 means none, which leaves "
							"less of the disk to merges that run meanwhile.",
							&idem_guc_maintenance_delay,
							20, 0, 60 * 1000,
							PGC_SUSET,
							GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("idempotent_ingest.retention",
							"Sets how long the details of a batch are kept after it was applied.",
							"Then it has expired, and is still recognised. 0 means for ever. If it "
							"is specified without units, it is taken as minutes.",
							&idem_guc_retention,
							90 * MINUTES_PER_DAY, 0, MAX_RETENTION,
							PGC_SUSET,
							GUC_UNIT_MIN,
							NULL, NULL, NULL);
	MarkGUCPrefixReserved("idempotent_ingest");
}
