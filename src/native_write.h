/*-------------------------------------------------------------------------
 *
 * native_write.h
 *	  Rows into the target through the table access method.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_NATIVE_WRITE_H
#define IDEM_NATIVE_WRITE_H

#include "relinfo.h"
#include "storage/itemptr.h"
#include "utils/rel.h"
#include "utils/snapshot.h"

typedef struct IdemDefaults IdemDefaults;
typedef struct IdemWriter IdemWriter;

extern bool idem_writer_may_fill(const IdemMergeInfo *info, Relation target);
extern IdemDefaults *idem_writer_compile_defaults(const IdemMergeInfo *info, Relation target);
extern IdemWriter *idem_writer_begin(const IdemMergeInfo *info, Relation target,
									 const IdemDefaults *defaults, Snapshot snapshot,
									 bool indexes_later);
extern bool idem_writer_insert_whole(IdemWriter *writer, HeapTuple row);
extern bool idem_writer_insert(IdemWriter *writer, const Datum *values, const bool *nulls);
extern bool idem_writer_update(IdemWriter *writer, ItemPointer tid,
							   const Datum *values, const bool *nulls);
extern bool idem_writer_flush(IdemWriter *writer);
extern void idem_writer_finish(IdemWriter *writer);
extern void idem_writer_free(IdemWriter *writer);

#endif							/* IDEM_NATIVE_WRITE_H */
