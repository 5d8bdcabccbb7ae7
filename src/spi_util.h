/*-------------------------------------------------------------------------
 *
 * spi_util.h
 *	  The only way to run SQL in this extension.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_SPI_UTIL_H
#define IDEM_SPI_UTIL_H

#include "executor/spi.h"
#include "nodes/params.h"
#include "utils/tuplestore.h"

#define IDEM_SPI_MAX_ARGS	32

/* A statement's arguments, filled with idem_spi_arg(). */
typedef struct IdemSpiArgs
{
	int			count;
	Oid			types[IDEM_SPI_MAX_ARGS];
	Datum		values[IDEM_SPI_MAX_ARGS];
	char		nulls[IDEM_SPI_MAX_ARGS];
} IdemSpiArgs;

extern void idem_spi_arg(IdemSpiArgs *args, Oid type, Datum value, bool isnull);
extern void idem_spi_arg_text(IdemSpiArgs *args, const char *value);

extern void idem_spi_connect(void);
extern void idem_spi_connect_nonatomic(void);
extern void idem_spi_commit(void);
extern void idem_spi_finish(void);
extern SPIPlanPtr idem_spi_prepare(const char *sql, int nargs, Oid *types,
								   int cursor_options, bool keep);
extern void idem_spi_plan(SPIPlanPtr plan, bool kept, bool by_index);
extern bool idem_spi_plan_is_valid(SPIPlanPtr plan);
extern void idem_spi_free_plan(SPIPlanPtr plan);
extern void idem_spi_require_meaning(SPIPlanPtr plan, Oid read, Oid written, Oid schema);
extern uint64 idem_spi_run_plan(SPIPlanPtr plan, ParamListInfo params, bool read_only);
extern uint64 idem_spi_execute(const char *sql, Oid relid, IdemSpiArgs *args, bool read_only);
extern uint64 idem_spi_execute_cached(const char *sql, Oid relid, IdemSpiArgs *args,
									  bool read_only);
extern uint64 idem_spi_execute_latest(const char *sql, Oid relid, IdemSpiArgs *args);
extern void idem_spi_execute_utility(const char *sql);
extern Datum idem_spi_value(int row, int column, MemoryContext context, bool *isnull);
extern char *idem_spi_text(int row, int column, MemoryContext context);
extern SPIPlanPtr idem_spi_prepare_read(const char *sql, Oid relid);
extern void idem_spi_read(SPIPlanPtr plan, Oid relid, DestReceiver *dest);
extern Tuplestorestate *idem_spi_fill_tuplestore(const char *sql, Oid relid, bool read_only,
												 TupleDesc *tupdesc);
extern void idem_spi_register(const char *name, Tuplestorestate *store, TupleDesc tupdesc);

#endif							/* IDEM_SPI_UTIL_H */
