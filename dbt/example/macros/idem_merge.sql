{# dbt looks for the macro of a strategy in the project itself, not in its packages. #}
{% macro get_incremental_idem_merge_sql(arg_dict) %}
  {{ return(idempotent_ingest.get_incremental_idem_merge_sql(arg_dict)) }}
{% endmacro %}
