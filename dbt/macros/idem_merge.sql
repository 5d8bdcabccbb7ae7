{#
  The incremental strategy idem_merge: a batch of a model is merged by
  idem_merge(), which writes the rows that differ, and those only.

  A model is computed from what its sources have now. Without a batch_id, the same
  rows once more are therefore no retry of an earlier run: they are compared with
  the table again, which costs no write where nothing differs.

  With --empty and --sample the increment is not the batch, which must not be known
  then: it would be refused, or skipped, when all of it comes.
#}
{% macro get_incremental_idem_merge_sql(arg_dict) %}
  {%- set batch_id = idempotent_ingest.own_config('batch_id') -%}
  {%- if batch_id is none or invocation_args_dict.get('empty') or invocation_args_dict.get('sample') -%}
    {%- set options = {'on_replay': 'reapply'} -%}
  {%- else -%}
    {%- set rendered = render(batch_id | string) | trim -%}
    {%- if rendered in ['', 'None'] -%}
      {%- do exceptions.raise_compiler_error("the config batch_id of " ~ this ~ " comes to nothing: " ~ batch_id) -%}
    {%- endif -%}
    {%- set options = {'batch_id': rendered,
                       'on_mismatch': idempotent_ingest.own_config('on_mismatch', 'error')} -%}
  {%- endif -%}
  {{ return(idempotent_ingest.merge_sql(arg_dict, options)) }}
{% endmacro %}


{#
  The strategy microbatch, for projects that have this package in the search
  order of dispatch. The interval is the batch: dbt runs one again for late rows
  (lookback), and then it has other content; or because the table was changed or
  got a column, and then the ledger knows all of its content.
#}
{% macro postgres__get_incremental_microbatch_sql(arg_dict) %}
  {{ return(idempotent_ingest.merge_sql(arg_dict, {
      'batch_id': model.batch.event_time_start.isoformat() ~ '/' ~ model.batch.event_time_end.isoformat(),
      'on_mismatch': 'apply',
      'on_replay': 'reapply'
  })) }}
{% endmacro %}


{# The statement that merges the batch, and what has to be done before. #}
{% macro merge_sql(arg_dict, options) %}
  {%- set target = arg_dict['target_relation'] -%}
  {%- set staging = arg_dict['temp_relation'] -%}
  {%- set columns = arg_dict['dest_columns'] | map(attribute='name') | list -%}
  {%- set key = idempotent_ingest.column_names('unique_key', arg_dict['unique_key'], columns) -%}
  {%- if not key -%}
    {%- do exceptions.raise_compiler_error("the strategy idem_merge needs the config unique_key") -%}
  {%- endif -%}
  {%- do idempotent_ingest.require_columns(staging, columns) -%}
  {%- do idempotent_ingest.require_unique_index(target, key) -%}

  {%- set lists = {'key_cols': key} -%}
  {%- for argument, name in [('version_cols', 'version_cols'), ('audit_cols', 'audit_cols'),
                             ('update_cols', 'merge_update_columns'), ('exclude_cols', 'merge_exclude_columns')] -%}
    {%- if idempotent_ingest.own_config(name) -%}
      {%- set names = idempotent_ingest.column_names(name, idempotent_ingest.own_config(name), columns) -%}
      {#- dbt lets its lists name the key, which has nothing to update. -#}
      {%- do lists.update({argument: names | reject('in', key) | list if name.startswith('merge_') else names}) -%}
    {%- endif -%}
  {%- endfor -%}

  {%- set texts = {'pipeline': idempotent_ingest.own_config('source', 'dbt')} -%}
  {%- do texts.update(options) -%}
  {%- if idempotent_ingest.own_config('on_duplicate') -%}
    {%- do texts.update({'on_duplicate': idempotent_ingest.own_config('on_duplicate')}) -%}
  {%- endif -%}
  {%- if arg_dict['incremental_predicates'] -%}
    {%- do texts.update({'target_predicate': idempotent_ingest.target_predicate(arg_dict['incremental_predicates'])}) -%}
  {%- endif -%}

  {%- set call -%}
    {{ idempotent_ingest.extension_schema() }}.idem_merge(
      {{ idempotent_ingest.literal(staging) }}::pg_catalog.regclass,
      {{ idempotent_ingest.literal(target) }}::pg_catalog.regclass,
      {%- for argument, names in lists.items() %}
      {{ argument }} => array[{% for name in names %}{{ idempotent_ingest.literal(name) }}{{ ', ' if not loop.last }}{% endfor %}]::text[],
      {%- endfor %}
      {%- for argument, value in texts.items() %}
      {{ argument }} => {{ idempotent_ingest.literal(value) }},
      {%- endfor %}
      on_schema_change => 'ignore', -- dbt has seen to that
      metadata => {{ idempotent_ingest.literal(tojson({'model': model.unique_id, 'invocation_id': invocation_id})) }}
  {%- endset -%}

  {%- if var('idem_assert_idempotent', false) -%}
    {{ return(idempotent_ingest.assert_idempotent(call ~ ',\n      dry_run => true)')) }}
  {%- endif -%}

  {#- After the statement, and in its transaction; with autocommit in the profile it has none, but the same session. -#}
  {%- do post_hooks.append({'sql': '{{ idempotent_ingest.report() }}', 'transaction': true, 'index': 0}) -%}
  {{ return("select pg_catalog.set_config('idem_dbt.result', pg_catalog.to_jsonb(m)::text, false)\nfrom " ~ call ~ ') as m') }}
{% endmacro %}


{# The result becomes dbt's own: the log line of the model, and its adapter_response. A replay has written nothing. #}
{% macro report() %}
  {%- set result = fromjson(run_query("select pg_catalog.current_setting('idem_dbt.result')").columns[0].values()[0]) -%}
  {%- do store_raw_result('main', message=result['summary'], code=result['status'],
                          rows_affected=0 if result['status'] == 'replayed'
                                        else result['rows_inserted'] + result['rows_updated']) -%}
{% endmacro %}


{# Compare the batch with the table, in place of merging it. #}
{% macro assert_idempotent(call) %}
  {%- set result = run_query("select m.summary, m.rows_inserted + m.rows_updated from " ~ call ~ " as m").rows[0] -%}
  {%- if result[1] > 0 -%}
    {%- do exceptions.raise_compiler_error(this ~ " is not idempotent: to run it again now would change rows ("
                                           ~ result[0] ~ ")") -%}
  {%- endif -%}
  {{ return("select " ~ idempotent_ingest.literal(result[0])) }}
{% endmacro %}
