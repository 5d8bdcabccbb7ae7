/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Differences between PostgreSQL majors; the only file that looks at
 *	  PG_VERSION_NUM.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_COMPAT_H
#define IDEM_COMPAT_H

#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "utils/acl.h"
#include "utils/rel.h"
#include "utils/tuplesort.h"

#if PG_VERSION_NUM < 150000
#error "idempotent_ingest needs PostgreSQL 15 or later"
#endif

/* 16 replaced the per-catalog functions by one for all. */
static inline AclResult
namespace_aclcheck_compat(Oid namespace_oid, Oid role, AclMode mode)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(NamespaceRelationId, namespace_oid, role, mode);
#else
	return pg_namespace_aclcheck(namespace_oid, role, mode);
#endif
}

static inline bool
class_ownercheck_compat(Oid relid, Oid role)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(RelationRelationId, relid, role);
#else
	return pg_class_ownercheck(relid, role);
#endif
}

/* 16 lets the caller choose whether to copy, 15 always does: here the caller frees. */
static inline bool
tuplesort_getdatum_compat(Tuplesortstate *state, Datum *value, bool *isnull)
{
#if PG_VERSION_NUM >= 160000
	return tuplesort_getdatum(state, true, true, value, isnull, NULL);
#else
	return tuplesort_getdatum(state, true, value, isnull, NULL);
#endif
}

#if PG_VERSION_NUM >= 160000
#define IDEM_RELATION_HAS_NEW_STORAGE(rel) \
	((rel)->rd_newRelfilelocatorSubid != InvalidSubTransactionId)
#else
#define IDEM_RELATION_HAS_NEW_STORAGE(rel) \
	((rel)->rd_newRelfilenodeSubid != InvalidSubTransactionId)
#endif

#endif							/* IDEM_COMPAT_H */
