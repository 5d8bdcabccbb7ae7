/*-------------------------------------------------------------------------
 *
 * predicate.h
 *	  The caller's condition on rows of the target.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_PREDICATE_H
#define IDEM_PREDICATE_H

#include "utils/relcache.h"

extern char *idem_predicate_write(Relation target, const char *predicate, const char *alias);

#endif							/* IDEM_PREDICATE_H */
