/*-------------------------------------------------------------------------
 *
 * native_number.h
 *	  Keys that are one number.
 *
 * Such a key is hashed by a function that can be undone: a hash stands for one
 * key, and the key can be had from it, without a look at the row. A NULL has the
 * hash of some number: who looks up a stored row has to see that it is none.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_NATIVE_NUMBER_H
#define IDEM_NATIVE_NUMBER_H

#include "relinfo.h"

extern int	idem_number_length(const IdemMergeInfo *info);

static inline int64
idem_number_from_datum(Datum value, int length)
{
	return length == sizeof(int16) ? DatumGetInt16(value) :
		length == sizeof(int32) ? DatumGetInt32(value) : DatumGetInt64(value);
}

static inline Datum
idem_number_to_datum(int64 number, int length)
{
	return length == sizeof(int16) ? Int16GetDatum((int16) number) :
		length == sizeof(int32) ? Int32GetDatum((int32) number) : Int64GetDatum(number);
}

/* The last steps of splitmix64: each of them can be undone. */
static inline uint64
idem_number_hash(int64 number)
{
	uint64		hash = (uint64) number;

	hash = (hash ^ (hash >> 30)) * UINT64CONST(0xbf58476d1ce4e5b9);
	hash = (hash ^ (hash >> 27)) * UINT64CONST(0x94d049bb133111eb);
	return hash ^ (hash >> 31);
}

static inline int64
idem_number_from_hash(uint64 hash)
{
	hash = (hash ^ (hash >> 31) ^ (hash >> 62)) * UINT64CONST(0x319642b2d24d8ec3);
	hash = (hash ^ (hash >> 27) ^ (hash >> 54)) * UINT64CONST(0x96de1b173f119089);
	return (int64) (hash ^ (hash >> 30) ^ (hash >> 60));
}

#endif							/* IDEM_NATIVE_NUMBER_H */
