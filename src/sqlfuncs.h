/*-------------------------------------------------------------------------
 *
 * sqlfuncs.h
 *	  Arguments of the functions that people call.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SQLFUNCS_H
#define IDEM_SQLFUNCS_H

#include "fmgr.h"

#include "relinfo.h"

extern void idem_sqlfuncs_require_argument(FunctionCallInfo fcinfo, int argument,
										   const char *name, bool has_default);
extern void idem_sqlfuncs_get_request(FunctionCallInfo fcinfo, int nargs, int others,
									  IdemRequest *request);

#endif							/* IDEM_SQLFUNCS_H */
