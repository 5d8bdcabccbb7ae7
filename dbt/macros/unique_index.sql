{#
  idem_merge() needs a unique index on the key. dbt creates it from the config
  indexes when it creates the table; it is created here where that was forgotten.
  (dbt does not call the strategy when it creates the table.)
#}
{% macro require_unique_index(target, key) %}
  {%- set exists = idempotent_ingest.unique_index_exists(target, key) -%}
  {%- if not run_query("select " ~ exists).rows[0][0] -%}
    {%- do idempotent_ingest.create_unique_index(target, key, exists) -%}
  {%- endif -%}
{% endmacro %}


{# An expression. #}
{% macro unique_index_exists(target, key) %}
  {%- set expression -%}
    exists (
      select from pg_catalog.pg_index i
      where i.indrelid = {{ idempotent_ingest.literal(target) }}::pg_catalog.regclass
        and i.indisunique and i.indisvalid and i.indimmediate and not i.indisexclusion
        and i.indpred is null and i.indexprs is null
        and (select pg_catalog.array_agg(a.attname::text order by a.attname collate "C")
             from pg_catalog.pg_attribute a
             where a.attrelid = i.indrelid
               and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
            = (select pg_catalog.array_agg(k order by k collate "C")
               from pg_catalog.unnest(array[{% for name in key %}{{ idempotent_ingest.literal(name) }}{{ ', ' if not loop.last }}{% endfor %}]::text[]) k))
  {%- endset -%}
  {{ return(expression) }}
{% endmacro %}


{% macro create_unique_index(target, key, exists) %}
  {%- set quoted = [] -%}
  {%- for name in key -%}
    {%- do quoted.append(adapter.quote(name | replace('"', '""'))) -%}
  {%- endfor -%}
  {%- set columns = quoted | join(', ') -%}
  {%- set limit = var('idem_create_index_below', '1 GB') -%}
  {%- set query -%}
    select s.bytes > pg_catalog.pg_size_bytes({{ idempotent_ingest.literal(limit) }}), pg_catalog.pg_size_pretty(s.bytes), s.partitioned
    from (select coalesce(pg_catalog.sum(pg_catalog.pg_table_size(t.relid)), pg_catalog.pg_table_size(c.oid))::bigint as bytes,
                 c.relkind = 'p' as partitioned
          from pg_catalog.pg_class c left join lateral pg_catalog.pg_partition_tree(c.oid) t on true
          where c.oid = {{ idempotent_ingest.literal(target) }}::pg_catalog.regclass
          group by c.oid, c.relkind) s
  {%- endset -%}
  {%- set size = run_query(query).rows[0] -%}
  {%- if size[0] -%}
    {%- do exceptions.raise_compiler_error(
        target ~ " has no unique index on its key, and is too large (" ~ size[1] ~ ", limit " ~ limit ~ ") to create it now. Run:\n"
        ~ "create unique index " ~ ("" if size[2] else "concurrently ") ~ "on " ~ target ~ " (" ~ columns ~ ")") -%}
  {%- endif -%}
  {%- set faults -%}
    select {{ columns }}, count(*) from {{ target }} group by {{ columns }} having count(*) > 1 or {{ quoted | join(' is null or ') }} is null
  {%- endset -%}
  {%- if run_query("select exists (" ~ faults ~ ")").rows[0][0] -%}
    {%- do exceptions.raise_compiler_error(
        target ~ " has rows without a key, or several with the same one. This query lists them:\n" ~ faults) -%}
  {%- endif -%}
  {%- do log("creating the unique index that " ~ target ~ " lacks on (" ~ columns ~ ")", info=true) -%}
  {#- CREATE INDEX takes a weaker lock, and the merge after it another: two runs would
      each wait for the other. This lock is stronger than both, and only one of them
      gets it; the other one then finds the index. In one statement, which is a
      transaction with autocommit in the profile. -#}
  {%- set block -%}
    begin
      lock table {{ target }} in share row exclusive mode;
      if not {{ exists }} then
        create unique index on {{ target }} ({{ columns }});
      end if;
    end
  {%- endset -%}
  {%- do run_query("do " ~ idempotent_ingest.literal(block)) -%}
{% endmacro %}
