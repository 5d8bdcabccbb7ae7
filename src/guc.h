/*-------------------------------------------------------------------------
 *
 * guc.h
 *	  Settings.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_GUC_H
#define IDEM_GUC_H

typedef enum IdemEngine
{
	IDEM_ENGINE_AUTO,
	IDEM_ENGINE_NATIVE,
	IDEM_ENGINE_SQL
} IdemEngine;

extern int	idem_guc_engine;
extern int	idem_guc_job_retention;
extern int	idem_guc_job_retry_delay;
extern int	idem_guc_key_retention;
extern int	idem_guc_maintenance_delay;
extern int	idem_guc_max_workers;
extern int	idem_guc_naptime;
extern int	idem_guc_retention;
extern bool idem_guc_worker;

extern void idem_guc_define(void);

#endif							/* IDEM_GUC_H */
