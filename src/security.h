/*-------------------------------------------------------------------------
 *
 * security.h
 *	  Switching to the owner of our own tables, and privilege checks.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SECURITY_H
#define IDEM_SECURITY_H

#include "utils/acl.h"

/* What idem_security_push() saved. */
typedef struct IdemIdentity
{
	Oid			userid;
	int			sec_context;
	int			guc_level;
} IdemIdentity;

extern void idem_security_push(IdemIdentity *saved, Oid userid);
extern void idem_security_pop(const IdemIdentity *saved);
extern int	idem_security_push_path(void);
extern void idem_security_pop_path(int guc_level);

extern Oid	idem_security_own_table(const char *name, Oid schema);

extern void idem_security_require_visible(Oid relid);
extern bool idem_security_may_read(Oid relid);
extern bool idem_security_may(Oid relid, AttrNumber attnum, AclMode mode);
extern void idem_security_require(Oid relid, AttrNumber attnum, AclMode mode);
extern void idem_security_require_owner(Oid relid);
extern void idem_security_require_write(Oid relid);

#endif							/* IDEM_SECURITY_H */
