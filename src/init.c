/*-------------------------------------------------------------------------
 *
 * init.c
 *	  What happens when the library is loaded.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "dbcommands.h"
#include "guc.h"
#include "launcher.h"
#include "shmem.h"
#include "stats.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	idem_guc_define();

	/* Everything else is for servers that preload us; pg_upgrade wants none. */
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	idem_stats_init();
	idem_shmem_init();
	idem_dbcommands_init();
	idem_launcher_register();
}
