/*-------------------------------------------------------------------------
 *
 * guc.c
 *	  Settings, in alphabetical order.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "utils/guc.h"

#include "guc.h"
#include "shmem.h"

int			idem_guc_engine = IDEM_ENGINE_AUTO;
int			idem_guc_job_retention = 7 * 24 * 60;
int			idem_guc_job_retry_delay = 1000;
int			idem_guc_max_workers = 4;
int			idem_guc_naptime = 60;
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
	DefineCustomIntVariable("idempotent_ingest.job_retention",
							"How long queued merges are kept after they have ended.",
							"0 keeps them for ever.",
							&idem_guc_job_retention,
							7 * 24 * 60, 0, INT_MAX,
							PGC_SIGHUP,
							GUC_UNIT_MIN,
							NULL, NULL, NULL);
	DefineCustomIntVariable("idempotent_ingest.job_retry_delay",
							"Time before the second attempt at a queued merge.",
							"It is doubled for each later attempt, up to an hour, and a random part of it, "
							"up to half, is taken off.",
							&idem_guc_job_retry_delay,
							1000, 0, 60 * 60 * 1000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("idempotent_ingest.max_workers",
							"Maximum number of queued merges that run at a time, in all databases.",
							"Each of them, and each database that has the extension, takes one of max_worker_processes.",
							&idem_guc_max_workers,
							4, 0, IDEM_MAX_JOB_PROCESSES,
							PGC_SIGHUP,
							0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("idempotent_ingest.naptime",
							"Time between two rounds of the launcher, and of each database's worker.",
							"What they are told of, they do at once.",
							&idem_guc_naptime,
							60, 1, 24 * 60 * 60,
							PGC_SIGHUP,
							GUC_UNIT_S,
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
