{# From configs of a model to arguments of idem_merge(). #}

{#
  A config that dbt does not know. Newer versions want it in meta, where others keep
  a source or an owner: ours are under a name of their own there.
#}
{% macro own_config(name, default=none) %}
  {%- set value = config.get(name) -%}
  {%- set meta = (config.get('meta') or {}).get('idem_merge') or {} -%}
  {{ return(value if value is not none else meta.get(name, default)) }}
{% endmacro %}


{% macro literal(value) %}
  {{ return("'" ~ (value | string | replace("'", "''")) ~ "'") }}
{% endmacro %}


{#
  The columns that a config names, one or a list, as the table has them: as in
  SQL, a name without double quotes is found in lower case as well.
#}
{% macro column_names(config_name, names, columns) %}
  {%- set found = [] -%}
  {%- for name in ([names] if names is string else (names or [])) if name | trim -%}
    {%- set name = name | trim -%}
    {%- if name[0] == '"' and name[-1] == '"' -%}
      {%- set candidates = [name[1:-1] | replace('""', '"')] -%}
    {%- else -%}
      {%- set candidates = [name, name | lower] -%}
    {%- endif -%}
    {%- set column = candidates | select('in', columns) | first -%}
    {%- if not column -%}
      {%- do exceptions.raise_compiler_error(config_name ~ " names the column " ~ name ~ ", which " ~ this ~ " does not have") -%}
    {%- endif -%}
    {%- if column not in found -%}
      {%- do found.append(column) -%}
    {%- endif -%}
  {%- endfor -%}
  {{ return(found) }}
{% endmacro %}


{# idem_merge() would leave alone a column that the model has no more; with dbt that is an error, unless on_schema_change says more. #}
{% macro require_columns(staging, columns) %}
  {%- set staged = adapter.get_columns_in_relation(staging) | map(attribute='name') | list -%}
  {%- set missing = columns | reject('in', staged) | list -%}
  {%- if missing -%}
    {%- do exceptions.raise_compiler_error("the model does not return these columns of " ~ this ~ ": " ~ missing | join(', ')
                                           ~ ". Set on_schema_change, or run it with --full-refresh") -%}
  {%- endif -%}
{% endmacro %}


{# incremental_predicates, as a condition on the target alone. #}
{% macro target_predicate(predicates) %}
  {%- set conditions = [] -%}
  {%- for predicate in ([predicates] if predicates is string else predicates) -%}
    {%- if modules.re.search('(?i)\\bDBT_INTERNAL_SOURCE\\b', predicate) -%}
      {%- do exceptions.raise_compiler_error("incremental_predicates can name columns of DBT_INTERNAL_DEST only: " ~ predicate) -%}
    {%- endif -%}
    {%- do conditions.append('(' ~ modules.re.sub('(?i)\\bDBT_INTERNAL_DEST\\s*\\.\\s*', '', predicate) ~ ')') -%}
  {%- endfor -%}
  {{ return(conditions | join(' and ')) }}
{% endmacro %}


{# The schema of the extension, quoted: nothing is assumed about search_path. #}
{% macro extension_schema() %}
  {%- set found = run_query("select pg_catalog.quote_ident(n.nspname) from pg_catalog.pg_extension e
                             join pg_catalog.pg_namespace n on n.oid = e.extnamespace
                             where e.extname = 'idempotent_ingest'").columns[0].values() -%}
  {%- if not found -%}
    {%- do exceptions.raise_compiler_error("the extension is missing in this database: CREATE EXTENSION idempotent_ingest") -%}
  {%- endif -%}
  {{ return(found[0]) }}
{% endmacro %}
