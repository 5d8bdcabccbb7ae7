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

int			idem_guc_engine = IDEM_ENGINE_AUTO;

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
	MarkGUCPrefixReserved("idempotent_ingest");
}
