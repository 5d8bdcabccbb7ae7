/*-------------------------------------------------------------------------
 *
 * rowhash.h
 *	  Images of values: equality, order, and the fingerprint of a set of rows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ROWHASH_H
#define IDEM_ROWHASH_H

#include "lib/stringinfo.h"

typedef struct IdemImageType IdemImageType;
typedef struct IdemFingerprint IdemFingerprint;

extern IdemImageType *idem_rowhash_type(Oid typid);
extern bool idem_rowhash_is_byval(const IdemImageType *type);
extern int16 idem_rowhash_typlen(const IdemImageType *type);
extern bool idem_rowhash_equal(IdemImageType *type, Datum a, bool a_null, Datum b, bool b_null);
extern uint64 idem_rowhash_value(IdemImageType *type, Datum value, bool isnull, uint64 seed);
extern void idem_rowhash_order(IdemImageType *type, Datum value, bool isnull, StringInfo key);

extern void idem_rowhash_deform(Datum record, int ncolumns, Datum *values, bool *nulls);

extern IdemFingerprint *idem_rowhash_begin(int ncolumns, char **names, Oid *types,
										   const bool *covered, Size memory);
extern void idem_rowhash_add(IdemFingerprint *fingerprint, const Datum *values,
							 const bool *nulls);
extern char *idem_rowhash_finish(IdemFingerprint *fingerprint);
extern char *idem_rowhash_text(const char *a, const char *b);
extern uint64 idem_rowhash_number(const char *text);

#endif							/* IDEM_ROWHASH_H */
