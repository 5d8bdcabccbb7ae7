/*-------------------------------------------------------------------------
 *
 * rowhash.c
 *	  Images of values: equality, order, and the fingerprint of a set of rows.
 *
 * The image of a value is what it is made of, not what its type's operators
 * think of it: 1.0 and 1.00 differ, and json, xml and point have images though
 * they have no =. Core's *<> compares images too, but takes the bytes inside
 * composites and arrays as they happen to be stored (compressed or not, with a
 * null bitmap or without). Here a value has one image however it is stored:
 * its "content", a string of bytes made by descending into arrays, ranges and
 * composites.
 *
 * Fingerprint, version 1
 * ----------------------
 * A row is the concatenation, over its columns ordered by name (bytewise), of
 *		0x00				for NULL,
 *		0x01 length content	up to 256 bytes of content,
 *		0x02 length digest	for longer ones: XXH3_128bits(content),
 * lengths being 8 bytes. Its hash is XXH3_128bits_withSeed(row, seed), where
 * seed is XXH3_64bits of the column names, each with a terminating zero. The
 * two halves of the hashes of all distinct rows are added, modulo 2^64 each,
 * and XXH3_128bits_withSeed(sums and number of distinct rows, seed) is the
 * fingerprint. So neither the order of the rows nor their repetition matters.
 * Numbers are little-endian.
 *
 * Content:
 *	 by-value types		the value, cut to the length of its type
 *	 enums				the label
 *	 reg* types			the text form, with the schema unless that is pg_catalog or
 *						the session's pg_temp
 *	 name				up to the first zero
 *	 arrays				number of dimensions, sizes and lower bounds, then elements
 *	 ranges				flags, then the finite bounds
 *	 multiranges		number of ranges, then these
 *	 composites			number of columns, then these (dropped ones left out)
 *	 all others			the bytes of the value, decompressed and without header
 * where elements, bounds and columns are 0x00 for NULL or 0x01 length content.
 *
 * Distinct rows are told apart by their hashes: a table of them is kept as far
 * as memory allows, the rest goes through a tuplesort.
 *
 * None of this resists somebody who constructs collisions on purpose.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/tupmacs.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/multirangetypes.h"
#include "utils/rangetypes.h"
#include "utils/syscache.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#include "compat.h"
#include "rowhash.h"
#include "security.h"

/* Longer contents enter a row as a digest, so that rows stay short. */
#define MAX_INLINE_CONTENT	256

/* Kind, length and content of each column; and the sums at the end. */
#define MAX_ROW_SIZE(ncolumns) \
	((Size) ((ncolumns) + 1) * (1 + sizeof(uint64) + MAX_INLINE_CONTENT))

#define INITIAL_SLOTS		1024
#define MAX_PENDING			16

typedef enum ImageKind
{
	IMAGE_BYVAL,
	IMAGE_FIXED,
	IMAGE_NAME,
	IMAGE_CSTRING,
	IMAGE_VARLENA,
	IMAGE_ENUM,
	IMAGE_REG,
	IMAGE_ARRAY,
	IMAGE_RANGE,
	IMAGE_MULTIRANGE,
	IMAGE_COMPOSITE
} ImageKind;

struct IdemImageType
{
	Oid			typid;			/* never a domain */
	ImageKind	kind;
	int16		typlen;
	bool		typbyval;
	bool		nested;			/* one content can have several byte forms */
	IdemImageType *element;		/* of an array, range or multirange */
	TypeCacheEntry *range;		/* of a range or multirange: the range type */
	FmgrInfo	output;			/* of a reg* type */
	TupleDesc	tupdesc;		/* of a composite */
	IdemImageType **columns;	/* of a composite; NULL where dropped */
};

struct IdemFingerprint
{
	MemoryContext context;
	int			ncolumns;
	int		   *positions;		/* covered columns, by name, as argument
								 * positions */
	IdemImageType **types;		/* their types, in the same order */
	uint64		seed;
	char	   *row;			/* room for the longest row */
	StringInfoData content;
	XXH128_hash_t *slots;		/* distinct hashes; all zero means free */
	uint64		nslots;			/* a power of two */
	uint64		nused;
	Size		memory;			/* that the table and the overflow may take */
	XXH128_hash_t pending[MAX_PENDING]; /* not looked up yet */
	int			npending;
	uint64		ndistinct;
	uint64		sum_low;
	uint64		sum_high;
	Tuplesortstate *overflow;	/* hashes that are not in the table */
};

static void append_content(IdemImageType *type, Datum value, StringInfo buf);

/*
 * Describe a type for the functions below. The result lives in the current
 * memory context and must not outlive the locks that keep the type as it is.
 */
IdemImageType *
idem_rowhash_type(Oid typid)
{
	IdemImageType *type = palloc0(sizeof(IdemImageType));

	check_stack_depth();
	type->typid = getBaseType(typid);
	get_typlenbyval(type->typid, &type->typlen, &type->typbyval);
	switch (type->typid)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGTYPEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGNAMESPACEOID:
		case REGROLEOID:
		case REGCOLLATIONOID:
#ifdef REGDATABASEOID
		case REGDATABASEOID:
#endif
			{
				Oid			output;
				bool		isvarlena;

				type->kind = IMAGE_REG;
				getTypeOutputInfo(type->typid, &output, &isvarlena);
				fmgr_info(output, &type->output);
				return type;
			}
		case NAMEOID:
			type->kind = IMAGE_NAME;
			return type;
		default:
			break;
	}
	if (type_is_enum(type->typid))
		type->kind = IMAGE_ENUM;
	else if (type_is_range(type->typid) || type_is_multirange(type->typid))
	{
		bool		multi = type_is_multirange(type->typid);

		type->kind = multi ? IMAGE_MULTIRANGE : IMAGE_RANGE;
		type->range = lookup_type_cache(multi ? get_multirange_range(type->typid) : type->typid,
										TYPECACHE_RANGE_INFO);
		type->element = idem_rowhash_type(type->range->rngelemtype->type_id);
		type->nested = type->element->nested;
	}
	else if (type_is_rowtype(type->typid) && type->typid != RECORDOID)
	{
		type->kind = IMAGE_COMPOSITE;
		type->nested = true;
		type->tupdesc = lookup_rowtype_tupdesc_copy(type->typid, -1);
		type->columns = palloc0(sizeof(IdemImageType *) * type->tupdesc->natts);
		for (int i = 0; i < type->tupdesc->natts; i++)
		{
			Form_pg_attribute att = TupleDescAttr(type->tupdesc, i);

			if (!att->attisdropped)
				type->columns[i] = idem_rowhash_type(att->atttypid);
		}
	}
	else if (type_is_array(type->typid) && type->typlen == -1 &&
			 OidIsValid(get_element_type(type->typid)))
	{
		type->kind = IMAGE_ARRAY;
		type->nested = true;
		type->element = idem_rowhash_type(get_element_type(type->typid));
	}
	else if (type->typbyval)
		type->kind = IMAGE_BYVAL;
	else if (type->typlen > 0)
		type->kind = IMAGE_FIXED;
	else if (type->typlen == -1)
		type->kind = IMAGE_VARLENA;
	else
		type->kind = IMAGE_CSTRING;
	return type;
}

static inline void
append_uint64(StringInfo buf, uint64 value)
{
#ifdef WORDS_BIGENDIAN
	value = pg_bswap64(value);
#endif
	appendBinaryStringInfo(buf, (char *) &value, sizeof(value));
}

/* The bits of a by-value datum that its type uses. */
static inline uint64
cut_byval(Datum value, int16 typlen)
{
	switch (typlen)
	{
		case 1:
			return (uint8) value;
		case 2:
			return (uint16) value;
		case 4:
			return (uint32) value;
		default:
			return (uint64) value;
	}
}

/* Append an element, bound or column: NULL, or length and content. */
static void
append_part(IdemImageType *type, Datum value, bool isnull, StringInfo buf)
{
	int			start;
	uint64		len;

	appendStringInfoCharMacro(buf, isnull ? 0 : 1);
	if (isnull)
		return;
	start = buf->len;
	append_uint64(buf, 0);
	append_content(type, value, buf);
	len = buf->len - start - sizeof(uint64);
#ifdef WORDS_BIGENDIAN
	len = pg_bswap64(len);
#endif
	memcpy(buf->data + start, &len, sizeof(len));
}

static void
append_array(IdemImageType *type, Datum value, StringInfo buf)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	ArrayIterator iterator;
	Datum		element;
	bool		isnull;

	append_uint64(buf, ARR_NDIM(array));
	for (int i = 0; i < ARR_NDIM(array); i++)
	{
		append_uint64(buf, ARR_DIMS(array)[i]);
		append_uint64(buf, (uint64) (int64) ARR_LBOUND(array)[i]);
	}
	iterator = array_create_iterator(array, 0, NULL);
	while (array_iterate(iterator, &element, &isnull))
	{
		CHECK_FOR_INTERRUPTS();
		append_part(type->element, element, isnull, buf);
	}
	array_free_iterator(iterator);
	if ((Pointer) array != DatumGetPointer(value))
		pfree(array);
}

static void
append_range(IdemImageType *type, const RangeType *range, StringInfo buf)
{
	RangeBound	lower;
	RangeBound	upper;
	bool		empty;
	uint64		flags;

	range_deserialize(type->range, range, &lower, &upper, &empty);
	flags = empty ? 1 :
		(lower.infinite ? 2 : 0) | (upper.infinite ? 4 : 0) |
		(lower.inclusive ? 8 : 0) | (upper.inclusive ? 16 : 0);
	append_uint64(buf, flags);
	if (!empty && !lower.infinite)
		append_part(type->element, lower.val, false, buf);
	if (!empty && !upper.infinite)
		append_part(type->element, upper.val, false, buf);
}

static void
append_composite(IdemImageType *type, Datum value, StringInfo buf)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	int			natts = type->tupdesc->natts;
	Datum	   *values = palloc(sizeof(Datum) * natts);
	bool	   *nulls = palloc(sizeof(bool) * natts);
	HeapTupleData tuple;
	int			live = 0;

	check_stack_depth();
	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	heap_deform_tuple(&tuple, type->tupdesc, values, nulls);
	for (int i = 0; i < natts; i++)
		live += type->columns[i] != NULL;
	append_uint64(buf, live);
	for (int i = 0; i < natts; i++)
		if (type->columns[i] != NULL)
			append_part(type->columns[i], values[i], nulls[i], buf);
	pfree(values);
	pfree(nulls);
	if ((Pointer) header != DatumGetPointer(value))
		pfree(header);
}

/* The label of an enum value; the result is palloc'd. */
static char *
enum_label(Oid value)
{
	HeapTuple	tuple = SearchSysCache1(ENUMOID, ObjectIdGetDatum(value));
	char	   *label;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for enum value %u", value);
	label = pstrdup(NameStr(((Form_pg_enum) GETSTRUCT(tuple))->enumlabel));
	ReleaseSysCache(tuple);
	return label;
}

/* Append the content of a value that is not NULL. */
static void
append_content(IdemImageType *type, Datum value, StringInfo buf)
{
	switch (type->kind)
	{
		case IMAGE_BYVAL:
			{
				uint64		bits = cut_byval(value, type->typlen);

#ifdef WORDS_BIGENDIAN
				bits = pg_bswap64(bits);
#endif
				appendBinaryStringInfo(buf, (char *) &bits, type->typlen);
				break;
			}
		case IMAGE_FIXED:
			appendBinaryStringInfo(buf, DatumGetPointer(value), type->typlen);
			break;
		case IMAGE_NAME:
			appendStringInfoString(buf, NameStr(*DatumGetName(value)));
			break;
		case IMAGE_CSTRING:
			appendStringInfoString(buf, DatumGetCString(value));
			break;
		case IMAGE_VARLENA:
			{
				struct varlena *packed = PG_DETOAST_DATUM_PACKED(value);

				appendBinaryStringInfo(buf, VARDATA_ANY(packed), VARSIZE_ANY_EXHDR(packed));
				if ((Pointer) packed != DatumGetPointer(value))
					pfree(packed);
				break;
			}
		case IMAGE_ENUM:
			{
				char	   *label = enum_label(DatumGetObjectId(value));

				appendStringInfoString(buf, label);
				pfree(label);
				break;
			}
		case IMAGE_REG:
			{
				int			guc_level = idem_security_push_path();

				appendStringInfoString(buf, OutputFunctionCall(&type->output, value));
				idem_security_pop_path(guc_level);
				break;
			}
		case IMAGE_ARRAY:
			append_array(type, value, buf);
			break;
		case IMAGE_RANGE:
			append_range(type, DatumGetRangeTypeP(value), buf);
			break;
		case IMAGE_MULTIRANGE:
			{
				MultirangeType *multirange = DatumGetMultirangeTypeP(value);
				RangeType **ranges;
				int32		count;

				multirange_deserialize(type->range, multirange, &count, &ranges);
				append_uint64(buf, count);
				for (int i = 0; i < count; i++)
					append_range(type, ranges[i], buf);
				break;
			}
		case IMAGE_COMPOSITE:
			append_composite(type, value, buf);
			break;
	}
}

/* How datums of the type are passed and how long they are, as in pg_type. */
bool
idem_rowhash_is_byval(const IdemImageType *type)
{
	return type->typbyval;
}

int16
idem_rowhash_typlen(const IdemImageType *type)
{
	return type->typlen;
}

/* Do two varlenas hold the same bytes, however they are stored? */
static bool
varlena_equal(Datum a, Datum b)
{
	struct varlena *pa;
	struct varlena *pb;
	bool		equal;

	if (toast_raw_datum_size(a) != toast_raw_datum_size(b))
		return false;
	pa = PG_DETOAST_DATUM_PACKED(a);
	pb = PG_DETOAST_DATUM_PACKED(b);
	equal = memcmp(VARDATA_ANY(pa), VARDATA_ANY(pb), VARSIZE_ANY_EXHDR(pa)) == 0;
	if ((Pointer) pa != DatumGetPointer(a))
		pfree(pa);
	if ((Pointer) pb != DatumGetPointer(b))
		pfree(pb);
	return equal;
}

/* Have two values of one type the same image? */
bool
idem_rowhash_equal(IdemImageType *type, Datum a, bool a_null, Datum b, bool b_null)
{
	bool		equal;

	if (a_null || b_null)
		return a_null && b_null;
	if (type->typbyval)
		return cut_byval(a, type->typlen) == cut_byval(b, type->typlen);
	if (type->typlen == -1)
		equal = varlena_equal(a, b);
	else if (type->typlen > 0)
		equal = memcmp(DatumGetPointer(a), DatumGetPointer(b), type->typlen) == 0;
	else
		equal = strcmp(DatumGetCString(a), DatumGetCString(b)) == 0;
	if (!equal && type->nested)
	{
		StringInfoData content_a;
		StringInfoData content_b;

		initStringInfo(&content_a);
		initStringInfo(&content_b);
		append_content(type, a, &content_a);
		append_content(type, b, &content_b);
		equal = content_a.len == content_b.len &&
			memcmp(content_a.data, content_b.data, content_a.len) == 0;
		pfree(content_a.data);
		pfree(content_b.data);
	}
	return equal;
}

/*
 * A 64-bit hash of a value and a seed, the same for all values that
 * idem_rowhash_equal() calls equal. Not for types with parts (arrays, ranges,
 * composites), which can have one image in several byte forms; and for use
 * within one server only.
 */
uint64
idem_rowhash_value(IdemImageType *type, Datum value, bool isnull, uint64 seed)
{
	struct varlena *packed;
	uint64		hash;

	Assert(!type->nested);
	if (isnull)
		return seed * UINT64CONST(0x9E3779B97F4A7C15) + 1;
	if (type->typbyval)
	{
		/* The finalizer of MurmurHash3. */
		hash = cut_byval(value, type->typlen) ^ seed;
		hash = (hash ^ (hash >> 33)) * UINT64CONST(0xFF51AFD7ED558CCD);
		hash = (hash ^ (hash >> 33)) * UINT64CONST(0xC4CEB9FE1A85EC53);
		return hash ^ (hash >> 33);
	}
	if (type->typlen > 0)
		return XXH3_64bits_withSeed(DatumGetPointer(value), type->typlen, seed);
	if (type->typlen == -2)
		return XXH3_64bits_withSeed(DatumGetCString(value), strlen(DatumGetCString(value)), seed);
	packed = PG_DETOAST_DATUM_PACKED(value);
	hash = XXH3_64bits_withSeed(VARDATA_ANY(packed), VARSIZE_ANY_EXHDR(packed), seed);
	if ((Pointer) packed != DatumGetPointer(value))
		pfree(packed);
	return hash;
}

/*
 * Append a value to a sort key, such that bytewise comparison of the keys of
 * two rows gives the order that record_image_ops gives the rows: by-value types
 * as unsigned numbers, others bytewise with the shorter first, NULL last. Only
 * inside arrays, ranges and composites, whose bytes depend on how they are stored, the
 * order is that of the content.
 */
void
idem_rowhash_order(IdemImageType *type, Datum value, bool isnull, StringInfo key)
{
	appendStringInfoCharMacro(key, isnull ? 1 : 0);
	if (isnull)
		return;
	if (type->typbyval)
	{
		uint64		bits = pg_hton64(cut_byval(value, type->typlen));

		appendBinaryStringInfo(key, (char *) &bits, sizeof(bits));
	}
	else
	{
		StringInfoData content;

		/*
		 * Zero bytes are escaped, so that a terminator can tell where it
		 * ends.
		 */
		initStringInfo(&content);
		append_content(type, value, &content);
		for (int i = 0; i < content.len; i++)
		{
			appendStringInfoCharMacro(key, content.data[i]);
			if (content.data[i] == '\0')
				appendStringInfoCharMacro(key, '\377');
		}
		appendStringInfoCharMacro(key, '\0');
		appendStringInfoCharMacro(key, '\0');
		pfree(content.data);
	}
}

/* Take a record of ncolumns columns apart; the values point into it. */
void
idem_rowhash_deform(Datum record, int ncolumns, Datum *values, bool *nulls)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(record);
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header),
												 HeapTupleHeaderGetTypMod(header));
	HeapTupleData tuple;

	if (tupdesc->natts != ncolumns)
		elog(ERROR, "record has %d columns, expected %d", tupdesc->natts, ncolumns);
	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	heap_deform_tuple(&tuple, tupdesc, values, nulls);
	ReleaseTupleDesc(tupdesc);
}

typedef struct NamedPosition
{
	const char *name;
	int			position;
} NamedPosition;

static int
compare_names(const void *a, const void *b)
{
	return strcmp(((const NamedPosition *) a)->name, ((const NamedPosition *) b)->name);
}

/*
 * Begin a fingerprint over rows of ncolumns columns, of which those that are
 * covered count (NULL: all), in so many bytes of memory. It lives in the current
 * memory context.
 */
IdemFingerprint *
idem_rowhash_begin(int ncolumns, char **names, Oid *types, const bool *covered, Size memory)
{
	IdemFingerprint *fingerprint = palloc0(sizeof(IdemFingerprint));
	NamedPosition *order = palloc(sizeof(NamedPosition) * Max(ncolumns, 1));
	StringInfoData all_names;
	int			count = 0;

	for (int i = 0; i < ncolumns; i++)
		if (covered == NULL || covered[i])
		{
			order[count].name = names[i];
			order[count++].position = i;
		}
	qsort(order, count, sizeof(NamedPosition), compare_names);

	fingerprint->context = CurrentMemoryContext;
	fingerprint->memory = memory;
	fingerprint->ncolumns = count;
	fingerprint->positions = palloc(sizeof(int) * Max(count, 1));
	fingerprint->types = palloc(sizeof(IdemImageType *) * Max(count, 1));
	initStringInfo(&all_names);
	for (int i = 0; i < count; i++)
	{
		fingerprint->positions[i] = order[i].position;
		fingerprint->types[i] = idem_rowhash_type(types[order[i].position]);
		appendBinaryStringInfo(&all_names, order[i].name, strlen(order[i].name) + 1);
	}
	fingerprint->seed = XXH3_64bits(all_names.data, all_names.len);
	fingerprint->row = palloc(MAX_ROW_SIZE(count));
	initStringInfo(&fingerprint->content);
	fingerprint->nslots = INITIAL_SLOTS;
	fingerprint->slots = palloc0(INITIAL_SLOTS * sizeof(XXH128_hash_t));
	return fingerprint;
}

static inline char *
put_uint64(char *next, uint64 value)
{
#ifdef WORDS_BIGENDIAN
	value = pg_bswap64(value);
#endif
	memcpy(next, &value, sizeof(value));
	return next + sizeof(value);
}

/*
 * Write a column of the row that is being hashed, and return where the next one
 * goes. Most values are short and need no detour by a second buffer.
 */
static inline char *
put_column(IdemFingerprint *fingerprint, IdemImageType *type, Datum value, char *next)
{
	struct varlena *packed = NULL;
	const char *data;
	uint64		len;

	if (type->kind == IMAGE_BYVAL)
	{
		*next++ = 1;
		next = put_uint64(next, type->typlen);
		(void) put_uint64(next, cut_byval(value, type->typlen));
		return next + type->typlen;
	}
	if (type->kind == IMAGE_VARLENA)
	{
		packed = PG_DETOAST_DATUM_PACKED(value);
		data = VARDATA_ANY(packed);
		len = VARSIZE_ANY_EXHDR(packed);
	}
	else
	{
		resetStringInfo(&fingerprint->content);
		append_content(type, value, &fingerprint->content);
		data = fingerprint->content.data;
		len = fingerprint->content.len;
	}
	*next++ = len > MAX_INLINE_CONTENT ? 2 : 1;
	next = put_uint64(next, len);
	if (len > MAX_INLINE_CONTENT)
	{
		XXH128_hash_t digest = XXH3_128bits(data, len);

		next = put_uint64(next, digest.low64);
		next = put_uint64(next, digest.high64);
	}
	else
	{
		memcpy(next, data, len);
		next += len;
	}
	if (packed && (Pointer) packed != DatumGetPointer(value))
		pfree(packed);
	return next;
}

static inline bool
is_free(XXH128_hash_t hash)
{
	return hash.low64 == 0 && hash.high64 == 0;
}

/* The slot that holds the hash, or the free one where it belongs. */
static inline XXH128_hash_t *
find_slot(XXH128_hash_t *slots, uint64 nslots, XXH128_hash_t hash)
{
	uint64		i = hash.low64 & (nslots - 1);

	while (!is_free(slots[i]) &&
		   (slots[i].low64 != hash.low64 || slots[i].high64 != hash.high64))
		i = (i + 1) & (nslots - 1);
	return &slots[i];
}

/* Double the table, or start to overflow where that would take too much. */
static void
grow(IdemFingerprint *fingerprint)
{
	uint64		nslots = fingerprint->nslots * 2;
	Size		size = nslots * sizeof(XXH128_hash_t);
	XXH128_hash_t *slots;

	/* While it is copied, the old table is there too; later, the overflow. */
	if (size + size / 2 > fingerprint->memory)
	{
		fingerprint->overflow =
			tuplesort_begin_datum(UUIDOID,
								  lookup_type_cache(UUIDOID, TYPECACHE_LT_OPR)->lt_opr,
								  InvalidOid, false, Max(fingerprint->memory / 3 / 1024, 64),
								  NULL, TUPLESORT_NONE);
		return;
	}
	slots = MemoryContextAllocExtended(fingerprint->context, size,
									   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (uint64 i = 0; i < fingerprint->nslots; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (!is_free(fingerprint->slots[i]))
			*find_slot(slots, nslots, fingerprint->slots[i]) = fingerprint->slots[i];
	}
	pfree(fingerprint->slots);
	fingerprint->slots = slots;
	fingerprint->nslots = nslots;
}

static inline void
add_distinct(IdemFingerprint *fingerprint, XXH128_hash_t hash)
{
	fingerprint->ndistinct++;
	fingerprint->sum_low += hash.low64;
	fingerprint->sum_high += hash.high64;
}

/* Put the hashes that wait into the table. */
static void
flush_pending(IdemFingerprint *fingerprint)
{
	for (int i = 0; i < fingerprint->npending; i++)
	{
		XXH128_hash_t hash = fingerprint->pending[i];
		XXH128_hash_t *slot = find_slot(fingerprint->slots, fingerprint->nslots, hash);

		if (!is_free(*slot))
			continue;
		if (fingerprint->overflow == NULL && fingerprint->nused >= fingerprint->nslots / 4 * 3)
		{
			MemoryContext old_context = MemoryContextSwitchTo(fingerprint->context);

			grow(fingerprint);
			MemoryContextSwitchTo(old_context);
			slot = find_slot(fingerprint->slots, fingerprint->nslots, hash);
		}
		if (fingerprint->overflow)
		{
			pg_uuid_t	uuid;

			StaticAssertStmt(sizeof(uuid) == sizeof(hash), "a hash is as long as a uuid");
			memcpy(&uuid, &hash, sizeof(uuid));
			tuplesort_putdatum(fingerprint->overflow, UUIDPGetDatum(&uuid), false);
			continue;
		}
		*slot = hash;
		fingerprint->nused++;
		add_distinct(fingerprint, hash);
	}
	fingerprint->npending = 0;
}

/* Add a row, given all its columns, covered or not. */
void
idem_rowhash_add(IdemFingerprint *fingerprint, const Datum *values, const bool *nulls)
{
	char	   *next = fingerprint->row;
	XXH128_hash_t hash;

	for (int i = 0; i < fingerprint->ncolumns; i++)
	{
		int			position = fingerprint->positions[i];

		if (nulls[position])
			*next++ = 0;
		else
			next = put_column(fingerprint, fingerprint->types[i], values[position], next);
	}
	hash = XXH3_128bits_withSeed(fingerprint->row, next - fingerprint->row, fingerprint->seed);
	if (is_free(hash))
		hash.low64 = 1;

	/* The table is larger than a cache: let memory come while we go on. */
#ifdef __GNUC__
	__builtin_prefetch(&fingerprint->slots[hash.low64 & (fingerprint->nslots - 1)]);
#endif
	fingerprint->pending[fingerprint->npending++] = hash;
	if (fingerprint->npending == MAX_PENDING)
		flush_pending(fingerprint);
}

/* A hash in text form, palloc'd in the current memory context. */
static char *
hash_text(XXH128_hash_t hash)
{
	return psprintf("%016llx%016llx", (unsigned long long) hash.high64,
					(unsigned long long) hash.low64);
}

/* The fingerprint of the rows added, palloc'd; nothing can be added any more. */
char *
idem_rowhash_finish(IdemFingerprint *fingerprint)
{
	char	   *next;

	flush_pending(fingerprint);
	if (fingerprint->overflow)
	{
		XXH128_hash_t last = {0, 0};
		Datum		value;
		bool		isnull;

		tuplesort_performsort(fingerprint->overflow);
		while (tuplesort_getdatum_compat(fingerprint->overflow, &value, &isnull))
		{
			XXH128_hash_t hash;

			CHECK_FOR_INTERRUPTS();
			memcpy(&hash, DatumGetUUIDP(value), sizeof(hash));
			if (hash.low64 != last.low64 || hash.high64 != last.high64)
				add_distinct(fingerprint, hash);
			last = hash;
			pfree(DatumGetPointer(value));
		}
		tuplesort_end(fingerprint->overflow);
		fingerprint->overflow = NULL;
	}
	pfree(fingerprint->slots);
	fingerprint->slots = NULL;
	next = put_uint64(fingerprint->row, fingerprint->sum_low);
	next = put_uint64(next, fingerprint->sum_high);
	next = put_uint64(next, fingerprint->ndistinct);
	return hash_text(XXH3_128bits_withSeed(fingerprint->row, next - fingerprint->row,
										   fingerprint->seed));
}

/* The hash of two strings, in the form of a fingerprint, palloc'd. */
char *
idem_rowhash_text(const char *a, const char *b)
{
	StringInfoData both;

	initStringInfo(&both);
	appendBinaryStringInfo(&both, a, strlen(a) + 1);
	appendBinaryStringInfo(&both, b, strlen(b) + 1);
	return hash_text(XXH3_128bits(both.data, both.len));
}

/* A 64-bit hash of a string. */
uint64
idem_rowhash_number(const char *text)
{
	return XXH3_64bits(text, strlen(text));
}
