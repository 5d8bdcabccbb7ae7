/*-------------------------------------------------------------------------
 *
 * engine_native.h
 *	  Classify and apply a batch by the table access method.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ENGINE_NATIVE_H
#define IDEM_ENGINE_NATIVE_H

#include "rowfuncs.h"
#include "source.h"

extern const char *idem_engine_native_refusal(const IdemMergeInfo *info);
extern const char *idem_engine_native_disadvantage(const IdemMergeInfo *info);
extern void idem_engine_native_note_skipped(const IdemMergeInfo *info);
extern bool idem_engine_native_apply(IdemSource *source, const IdemMergeInfo *info,
									 IdemCounts *counts, char **fingerprint);

#endif							/* IDEM_ENGINE_NATIVE_H */
