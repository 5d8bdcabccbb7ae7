/*-------------------------------------------------------------------------
 *
 * turn.h
 *	  Who may go on: locks on batches, and the turns of merges of one target.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_TURN_H
#define IDEM_TURN_H

extern bool idem_turn_lock_batch(Oid target, const char *pipeline, const char *batch_id,
								 Oid claimed_by, bool nowait, Oid owner);
extern void idem_turn_take(Oid target, bool commutes, int32 turn_class, Oid owner);

#endif							/* IDEM_TURN_H */
