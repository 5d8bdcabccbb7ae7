/*-------------------------------------------------------------------------
 *
 * predicate.c
 *	  The caller's condition on rows of the target.
 *
 * It is parsed by itself and written anew, so that what goes into the generated
 * statement is one boolean expression with qualified columns, whatever the
 * text looks like, and so that errors point into the text that the caller knows.
 * Names in it are resolved as in any statement of the caller, once, and written
 * qualified.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "nodes/parsenodes.h"
#include "parser/parse_clause.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

#include "predicate.h"

/* Moves the position of an error from the statement of the caller to the predicate. */
static void
predicate_error_context(void *arg)
{
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(arg);
	}
	errcontext("argument \"target_predicate\"");
}

/* The parse tree of a text that is an expression and nothing else. */
static Node *
parse(const char *predicate)
{
	RawStmt    *raw = linitial_node(RawStmt, raw_parser(predicate, RAW_PARSE_PLPGSQL_EXPR));
	SelectStmt *select = castNode(SelectStmt, raw->stmt);

	/* The grammar takes all that can follow SELECT, as PL/pgSQL does. */
	if (list_length(select->targetList) != 1 ||
		linitial_node(ResTarget, select->targetList)->name ||
		select->distinctClause || select->fromClause || select->whereClause ||
		select->groupClause || select->havingClause || select->windowClause ||
		select->sortClause || select->limitOffset || select->limitCount ||
		select->lockingClause)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("\"target_predicate\" must be one expression"),
				 errhint("Write it as what could follow WHERE, for example \"day >= date '2026-11-01'\".")));
	return linitial_node(ResTarget, select->targetList)->val;
}

/*
 * A condition on the columns of a relation, as it can be written where the
 * relation goes by an alias. Palloc'd.
 */
char *
idem_predicate_write(Relation target, const char *predicate, const char *alias)
{
	ErrorContextCallback error_context;
	ParseState *pstate = make_parsestate(NULL);
	Node	   *expression;
	char	   *written;
	int			guc_level;

	error_context.callback = predicate_error_context;
	error_context.arg = unconstify(char *, predicate);
	error_context.previous = error_context_stack;
	error_context_stack = &error_context;

	expression = parse(predicate);
	pstate->p_sourcetext = predicate;
	addNSItemToQuery(pstate,
					 addRangeTableEntryForRelation(pstate, target, AccessShareLock,
												   NULL, false, true),
					 true, true, true);
	expression = transformWhereClause(pstate, expression, EXPR_KIND_WHERE, "target_predicate");
	free_parsestate(pstate);

	error_context_stack = error_context.previous;

	/* Names that search_path finds would be written without schema. */
	guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	written = deparse_expression(expression,
								 deparse_context_for(alias, RelationGetRelid(target)), true, false);
	AtEOXact_GUC(true, guc_level);
	return written;
}
