/*-------------------------------------------------------------------------
 *
 * progress.c
 *	  What others can see of a merge that is running.
 *
 * It is reported as what it resembles most, a COPY into the target: so
 * pg_stat_progress_copy shows it, and idem_progress shows it with its phase, to
 * whom PostgreSQL shows the progress of commands, and nothing need be preloaded.
 *
 * An aborted transaction or subtransaction ends the report. So does the end of a
 * merge that a merge's trigger has run; then there is none until the next phase.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "progress.h"

/* Report the beginning of a phase. Its counts begin at zero. */
void
idem_progress_begin(Oid target, IdemPhase phase)
{
	static const int params[] = {PROGRESS_COPY_COMMAND, PROGRESS_COPY_TYPE,
	IDEM_PROGRESS_PHASE};
	int64		values[] = {PROGRESS_COPY_COMMAND_FROM, PROGRESS_COPY_TYPE_CALLBACK, phase};

	pgstat_progress_start_command(PROGRESS_COMMAND_COPY, target);
	pgstat_progress_update_multi_param(lengthof(params), params, values);
}

/* The merge has ended. */
void
idem_progress_end(void)
{
	pgstat_progress_end_command();
}
