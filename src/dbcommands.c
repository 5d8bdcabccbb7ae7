/*-------------------------------------------------------------------------
 *
 * dbcommands.c
 *	  What commands of users mean for our processes.
 *
 * DROP DATABASE, ALTER DATABASE ... RENAME and SET TABLESPACE, and CREATE
 * DATABASE ... TEMPLATE want nobody else in the database: our processes leave it
 * first, and none starts before the command has ended. What a job does there is
 * rolled back, and is attempted again if there still is a database.
 *
 * The workers hear of commands by which a database may have got the extension,
 * or lost it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "dbcommands.h"
#include "shmem.h"

/*
 * How long a command waits for our processes, and how often it looks. PostgreSQL
 * itself waits five seconds more.
 */
#define WAIT_MILLISECONDS	5000
#define POLL_MILLISECONDS	10

static ProcessUtility_hook_type earlier_hook;

/* The value of an option, NULL if it is not given. */
static char *
option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *element = lfirst_node(DefElem, lc);

		if (strcmp(element->defname, name) == 0 && element->arg)
			return defGetString(element);
	}
	return NULL;
}

/* May the current role create and rename databases? */
static bool
may_create_databases(void)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	bool		may = superuser();

	if (HeapTupleIsValid(tuple))
	{
		may |= ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return may;
}

/* The database that a command wants to have for itself, or InvalidOid. */
static Oid
wanted_database(Node *command, bool in_block)
{
	const char *name = NULL;
	const char *new_name = NULL;
	Oid			database;

	if (IsA(command, DropdbStmt))
		name = ((DropdbStmt *) command)->dbname;
	else if (IsA(command, CreatedbStmt))
	{
		name = option(((CreatedbStmt *) command)->options, "template");
		if (name == NULL)
			name = "template1";
		new_name = ((CreatedbStmt *) command)->dbname;
	}
	else if (IsA(command, AlterDatabaseStmt))
	{
		if (option(((AlterDatabaseStmt *) command)->options, "tablespace"))
			name = ((AlterDatabaseStmt *) command)->dbname;
	}
	else if (IsA(command, RenameStmt) && ((RenameStmt *) command)->renameType == OBJECT_DATABASE)
	{
		name = ((RenameStmt *) command)->subname;
		new_name = ((RenameStmt *) command)->newname;
	}
	if (name == NULL)
		return InvalidOid;
	database = get_database_oid(name, true);

	/*
	 * A command that will fail must not stop our processes: that of somebody
	 * who may not run it, in a transaction block, for a name that is taken,
	 * and all but a copy of the session's own database.
	 */
	if (!OidIsValid(database) ||
		(in_block && !IsA(command, RenameStmt)) ||
		(new_name && (OidIsValid(get_database_oid(new_name, true)) || !may_create_databases())) ||
		(database == MyDatabaseId && !IsA(command, CreatedbStmt)) ||
		!database_ownercheck_compat(database, GetUserId()))
		return InvalidOid;
	return database;
}

/* Have our processes leave a database; for a limited time. */
static void
wait_for_processes(Oid database)
{
	TimestampTz start = GetCurrentTimestamp();

	while (idem_shmem_terminate(database) > 0 &&
		   !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), WAIT_MILLISECONDS))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 POLL_MILLISECONDS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
unblock(int code, Datum arg)
{
	idem_shmem_unblock(false);
}

/* Who has to do with what a command does; as for idem_shmem_wake_at_commit(). */
static int
concerned(Node *command)
{
	switch (nodeTag(command))
	{
		case T_CreatedbStmt:
		case T_DropdbStmt:
		case T_AlterDatabaseStmt:
			return IDEM_WAKE_DATABASES;
		case T_CreateExtensionStmt:
		case T_AlterExtensionStmt:
			/* Ours, or one that brings ours along. */
			return IDEM_WAKE_WORKER | IDEM_WAKE_EXTENSION;
		case T_DropStmt:
			if (((DropStmt *) command)->removeType == OBJECT_EXTENSION ||
				((DropStmt *) command)->removeType == OBJECT_SCHEMA)
				return IDEM_WAKE_WORKER;
			return 0;
		case T_DropOwnedStmt:
			return IDEM_WAKE_WORKER;
		default:
			return 0;
	}
}

static void
process_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *environment, DestReceiver *dest, QueryCompletion *completion)
{
	ProcessUtility_hook_type next = earlier_hook ? earlier_hook : standard_ProcessUtility;

	/* When the command has run, its parse tree may be gone. */
	int			whom = concerned(pstmt->utilityStmt);
	Oid			database = wanted_database(pstmt->utilityStmt,
										   IsInTransactionBlock(context == PROCESS_UTILITY_TOPLEVEL));

	if (OidIsValid(database) && idem_shmem_block(database))
	{
		PG_ENSURE_ERROR_CLEANUP(unblock, (Datum) 0);
		{
			wait_for_processes(database);
			next(pstmt, query, read_only_tree, context, params, environment, dest, completion);
		}
		PG_END_ENSURE_ERROR_CLEANUP(unblock, (Datum) 0);
		idem_shmem_unblock(true);
	}
	else
		next(pstmt, query, read_only_tree, context, params, environment, dest, completion);
	if (whom != 0)
		idem_shmem_wake_at_commit(whom);
}

/* To be called while libraries are preloaded. */
void
idem_dbcommands_init(void)
{
	earlier_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
