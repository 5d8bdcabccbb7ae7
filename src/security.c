/*-------------------------------------------------------------------------
 *
 * security.c
 *	  Switching to the owner of our own tables, and privilege checks.
 *
 * A merge runs as its caller from beginning to end. Only statements on the
 * ledger run as the ledger's owner, and nothing that another user defined runs
 * while they do: the search_path is pg_catalog for as long.
 *
 * An error need not be caught to undo a push: (sub)transaction abort restores
 * user, security context and settings.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "security.h"

/*
 * Become another role for statements on our own tables, with a search_path
 * that nobody can put anything into.
 */
void
idem_security_push(IdemIdentity *saved, Oid userid)
{
	GetUserIdAndSecContext(&saved->userid, &saved->sec_context);
	SetUserIdAndSecContext(userid, saved->sec_context | SECURITY_LOCAL_USERID_CHANGE);
	saved->guc_level = idem_security_push_path();
}

/* Undo idem_security_push(). */
void
idem_security_pop(const IdemIdentity *saved)
{
	idem_security_pop_path(saved->guc_level);
	SetUserIdAndSecContext(saved->userid, saved->sec_context);
}

/*
 * Set search_path to pg_catalog, with pg_temp behind it, which would be in front
 * if it were not named; and let names be quoted only where they must be: so that output functions write names in one way. Returns what
 * idem_security_pop_path() wants.
 */
int
idem_security_push_path(void)
{
	int			guc_level = NewGUCNestLevel();

	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (quote_all_identifiers)
		(void) set_config_option("quote_all_identifiers", "off",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	return guc_level;
}

/* Undo idem_security_push_path(). */
void
idem_security_pop_path(int guc_level)
{
	AtEOXact_GUC(true, guc_level);
}

/*
 * Find a table of ours in the extension's schema; InvalidOid if there is none. The
 * name is not enough: the objects of an earlier release lack some of the tables that
 * this library knows, and then whoever may create tables in that schema could put
 * his own in their place.
 */
Oid
idem_security_own_table(const char *name, Oid schema)
{
	Oid			relid = get_relname_relid(name, schema);
	Oid			extension = get_extension_oid("idempotent_ingest", true);

	if (!OidIsValid(relid) || !OidIsValid(extension) ||
		getExtensionOfObject(RelationRelationId, relid) != extension)
		return InvalidOid;
	return relid;
}

/*
 * Require what naming the relation in SQL requires: USAGE on its schema. A
 * regclass that was given as a number has not been through that check.
 */
void
idem_security_require_visible(Oid relid)
{
	Oid			namespace_oid = get_rel_namespace(relid);
	AclResult	result;

	if (!OidIsValid(namespace_oid))
		return;					/* dropped; whoever locks it says so */
	result = namespace_aclcheck_compat(namespace_oid, GetUserId(), ACL_USAGE);
	if (result != ACLCHECK_OK)
		aclcheck_error(result, OBJECT_SCHEMA, get_namespace_name(namespace_oid));
}

/*
 * May the current user do this to the column? With InvalidAttrNumber: to the
 * relation as a whole.
 */
bool
idem_security_may(Oid relid, AttrNumber attnum, AclMode mode)
{
	if (pg_class_aclcheck(relid, GetUserId(), mode) == ACLCHECK_OK)
		return true;
	return attnum != InvalidAttrNumber &&
		pg_attribute_aclcheck(relid, attnum, GetUserId(), mode) == ACLCHECK_OK;
}

/*
 * May the current user see something of a relation, which exists? As the view
 * idem_batches asks.
 */
bool
idem_security_may_read(Oid relid)
{
	return namespace_aclcheck_compat(get_rel_namespace(relid), GetUserId(),
									 ACL_USAGE) == ACLCHECK_OK &&
		(pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) == ACLCHECK_OK ||
		 pg_attribute_aclcheck_all(relid, GetUserId(), ACL_SELECT, ACLMASK_ANY) == ACLCHECK_OK);
}

/* As idem_security_may(), but the error of the executor if not. */
void
idem_security_require(Oid relid, AttrNumber attnum, AclMode mode)
{
	if (!idem_security_may(relid, attnum, mode))
		aclcheck_error(ACLCHECK_NO_PRIV,
					   get_relkind_objtype(get_rel_relkind(relid)),
					   get_rel_name(relid));
}

/* Require what ALTER TABLE requires. */
void
idem_security_require_owner(Oid relid)
{
	if (!class_ownercheck_compat(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER,
					   get_relkind_objtype(get_rel_relkind(relid)),
					   get_rel_name(relid));
}

/*
 * Require the right to write the table: what idem_claim() and idem_forget()
 * ask of those who speak about a table's batches.
 */
void
idem_security_require_write(Oid relid)
{
	idem_security_require_visible(relid);
	if (!idem_security_may(relid, InvalidAttrNumber, ACL_INSERT))
		idem_security_require(relid, InvalidAttrNumber, ACL_UPDATE);
}
