{# The latest state of each order, whatever the order in which the states arrive. #}
{{ config(
    unique_key='order_id',
    indexes=[{'columns': ['order_id'], 'unique': true}],
    version_cols=['updated_at'],
    audit_cols=['loaded_at']
) }}

{#- The first run is dbt's own CREATE TABLE, so that each key must be there once. #}
select distinct on (order_id) order_id, customer, amount, ordered_at, updated_at, now() as loaded_at
from {{ ref('raw_orders') }}
order by order_id, updated_at desc
