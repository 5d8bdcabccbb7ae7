/*-------------------------------------------------------------------------
 *
 * launcher.h
 *	  Starts a worker in each database that has the extension.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_LAUNCHER_H
#define IDEM_LAUNCHER_H

extern void idem_launcher_register(void);
extern PGDLLEXPORT void idem_launcher_main(Datum arg);

#endif							/* IDEM_LAUNCHER_H */
