/*-------------------------------------------------------------------------
 *
 * dbcommands.h
 *	  What commands of users mean for our processes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_DBCOMMANDS_H
#define IDEM_DBCOMMANDS_H

extern void idem_dbcommands_init(void);

#endif							/* IDEM_DBCOMMANDS_H */
