/*-------------------------------------------------------------------------
 *
 * attempt.h
 *	  Something that may have to be undone and done otherwise.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_ATTEMPT_H
#define IDEM_ATTEMPT_H

extern bool idem_attempt_run(bool (*attempt) (void *), void *arg);

#endif							/* IDEM_ATTEMPT_H */
