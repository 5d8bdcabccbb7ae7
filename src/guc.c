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
#include "shmem.h"

#define MINUTES_PER_DAY			(24 * 60)

/* A thousand years: no time stamp minus it is out of range. */
#define MAX_RETENTION			(365000 * MINUTES_PER_DAY)

int			idem_guc_engine = IDEM_ENGINE_AUTO;
int			idem_guc_job_retention = 7 * MINUTES_PER_DAY;
int			idem_guc_job_retry_delay = 1000;
int			idem_guc_key_retention = 0;
int			idem_guc_maintenance_delay = 20;
int			idem_guc_max_workers = 4;
int			idem_guc_naptime = 60;
int			idem_guc_retention = 90 * MINUTES_PER_DAY;
bool		idem_guc_worker = true;

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

	/*
	 * Retentions are counted in minutes, for milliseconds or seconds do not
	 * hold years.
	 */
	DefineCustomIntVariable("idempotent_ingest.job_retention",
							"Sets how long queued merges are kept after they have ended.",
							"0 means for ever. If it is specified without units, it is taken as minutes.",
							&idem_guc_job_retention,
							7 * MINUTES_PER_DAY, 0, MAX_RETENTION,
							PGC_SIGHUP,
							GUC_UNIT_MIN,
							NULL, NULL, NULL);
	DefineCustomIntVariable("idempotent_ingest.job_retry_delay",
							"Sets the time before the second attempt at a queued merge.",
							"It is doubled for each later attempt, up to an hour, and a random part of it, "
							"up to half, is taken off.",
							&idem_guc_job_retry_delay,
							1000, 0, 60 * 60 * 1000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);
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
							"A step deals with some 120 batches. 0 means none, which leaves "
							"less of the disk to merges that run meanwhile.",
							&idem_guc_maintenance_delay,
							20, 0, 60 * 1000,
							PGC_SUSET,
							GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("idempotent_ingest.max_workers",
							"Sets the maximum number of queued merges that run at a time, in all databases.",
							"Each of them, and each database that has the extension, takes one of max_worker_processes.",
							&idem_guc_max_workers,
							4, 0, IDEM_MAX_JOB_PROCESSES,
							PGC_SIGHUP,
							0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("idempotent_ingest.naptime",
							"Sets the time between two rounds of the launcher, and of each database's worker.",
							"What they are told of, they do at once.",
							&idem_guc_naptime,
							60, 1, MINUTES_PER_DAY * 60,
							PGC_SIGHUP,
							GUC_UNIT_S,
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
	DefineCustomBoolVariable("idempotent_ingest.worker",
							 "Runs a worker in each database that has the extension.",
							 "The library must be in shared_preload_libraries.",
							 &idem_guc_worker,
							 true,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);
	MarkGUCPrefixReserved("idempotent_ingest");
}
