/*-------------------------------------------------------------------------
 *
 * relinfo.h
 *	  What was asked for, and what it means for these two relations.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEM_RELINFO_H
#define IDEM_RELINFO_H

#include "access/attnum.h"
#include "nodes/primnodes.h"
#include "storage/lockdefs.h"
#include "utils/relcache.h"

typedef enum IdemMode
{
	IDEM_MODE_UPSERT,
	IDEM_MODE_INSERT,
	IDEM_MODE_UPDATE
} IdemMode;

typedef enum IdemOnDuplicate
{
	IDEM_DUPLICATE_DEFAULT,		/* latest with version columns, else error */
	IDEM_DUPLICATE_ERROR,
	IDEM_DUPLICATE_LATEST,
	IDEM_DUPLICATE_ANY
} IdemOnDuplicate;

typedef enum IdemOnStale
{
	IDEM_STALE_SKIP,
	IDEM_STALE_ERROR,
	IDEM_STALE_APPLY
} IdemOnStale;

typedef enum IdemOnSchemaChange
{
	IDEM_SCHEMA_ERROR,
	IDEM_SCHEMA_IGNORE,
	IDEM_SCHEMA_ADD_COLUMNS
} IdemOnSchemaChange;

typedef enum IdemOnReplay
{
	IDEM_REPLAY_SKIP,
	IDEM_REPLAY_ERROR,
	IDEM_REPLAY_REAPPLY
} IdemOnReplay;

typedef enum IdemOnMismatch
{
	IDEM_MISMATCH_ERROR,
	IDEM_MISMATCH_SKIP,
	IDEM_MISMATCH_APPLY
} IdemOnMismatch;

/* The arguments of idem_merge(), checked as far as they can be by themselves. */
typedef struct IdemRequest
{
	Oid			staging;
	Oid			target;
	List	   *key_cols;		/* of char *; NIL: the primary key */
	char	   *batch_id;		/* NULL: derived */
	char	   *pipeline;
	List	   *version_cols;
	List	   *audit_cols;
	bool		has_update_cols;
	List	   *update_cols;
	List	   *exclude_cols;
	IdemMode	mode;
	IdemOnDuplicate on_duplicate;
	IdemOnStale on_stale;
	IdemOnSchemaChange on_schema_change;
	IdemOnReplay on_replay;
	IdemOnMismatch on_mismatch;
	bool		nowait;
	bool		exclusive;
	bool		dry_run;
	Datum		metadata;
	bool		metadata_null;
	char	   *target_predicate;	/* NULL: none */
} IdemRequest;

/* The target's alias in IdemMergeInfo.target_predicate. */
#define IDEM_EXPECTED_ALIAS	"e"

/* A column that staging and target share. */
typedef struct IdemColumn
{
	char	   *name;
	AttrNumber	staged_attnum;
	Oid			staged_type;
	int32		staged_typmod;
	Oid			staged_collation;
	AttrNumber	target_attnum;	/* 0: to be added */
	Oid			type;			/* in the target */
	int32		typmod;
	Oid			collation;
	bool		is_generated;	/* by the target; only a key, in mode update */
	bool		is_key;
	bool		is_version;
	bool		is_audit;
	bool		is_set;			/* written to a matched row that differs */
	bool		is_compared;	/* a difference here makes a row differ */
	bool		is_kept;		/* proposed with the stored value for a
								 * matched row */
} IdemColumn;

/* A column of the key, in the order of its index. */
typedef struct IdemKeyColumn
{
	int			column;			/* position in IdemMergeInfo.columns */
	Oid			opclass;
	Oid			opcintype;
	Oid			collation;
	Oid			equal_operator;
	Oid			sort_operator;	/* < or, in a descending index, > */
	bool		nulls_first;
	bool		nullable;
} IdemKeyColumn;

typedef struct IdemVersionColumn
{
	int			column;
	Oid			greater_operator;
	Oid			compare_function;
	Oid			collation;
} IdemVersionColumn;

/* A column that the target has and staging lacks. */
typedef struct IdemLackingColumn
{
	char	   *name;
	AttrNumber	attnum;
	Oid			type;
	bool		has_default;	/* anything but a plain NULL */
} IdemLackingColumn;

/* All that a merge needs to know of its relations. */
typedef struct IdemMergeInfo
{
	const IdemRequest *request;
	Oid			staging;
	Oid			target;
	char		staging_kind;	/* as pg_class.relkind */
	char		target_kind;
	char	   *staging_name;	/* qualified and quoted */
	char	   *target_name;
	char	   *target_predicate;	/* as SQL, of IDEM_EXPECTED_ALIAS; NULL:
									 * none */
	Oid			target_type;	/* row type */

	IdemColumn *columns;		/* in the order of the target's columns */
	int			ncolumns;
	IdemKeyColumn *keys;
	int			nkeys;
	IdemVersionColumn *versions;
	int			nversions;
	IdemLackingColumn *lacking;
	int			nlacking;
	bool		uses_defaults;	/* new rows may get one of their defaults */
	List	   *generated;		/* staged columns that the target generates,
								 * of char * */
	List	   *added;			/* positions of columns that are to be added */

	Oid			index;			/* of the key */
	char	   *index_name;		/* qualified */
	bool		nulls_not_distinct;
	AttrNumber	witness;		/* column of the target that tells by not
								 * being NULL that there is a stored row */
	IdemOnDuplicate on_duplicate;	/* never the default */
	bool		sets_anything;	/* a match can be a reason to write */
	bool		keeps_stored;	/* proposes stored values for some columns */
	bool		has_row_triggers;	/* BEFORE ROW ones */
	bool		overrides_identity;
	bool		commutes;		/* with merges of the same turn class (I4) */
	int32		turn_class;
	char	   *options;		/* those that decide the result, as JSON */
} IdemMergeInfo;

extern void idem_relinfo_precheck(const IdemRequest *request);
extern bool idem_relinfo_differs(const IdemRequest *request);
extern IdemMergeInfo *idem_relinfo_resolve(const IdemRequest *request);
extern void idem_relinfo_require_privileges(const IdemMergeInfo *info);
extern void idem_relinfo_report(const IdemMergeInfo *info);
extern int	idem_relinfo_find_column(const IdemMergeInfo *info, const char *name);
extern bool idem_relinfo_has_name(List *names, const char *name);
extern char *idem_relinfo_quoted_list(List *names);
extern List *idem_relinfo_columns(Oid relid, List *names, bool missing_ok);
extern void idem_relinfo_column_types(Oid relid, List *names, Oid *types);

#endif							/* IDEM_RELINFO_H */
