{# Day by day; a day that is run again replaces what late rows have changed. #}
{{ config(
    incremental_strategy='microbatch',
    unique_key='order_id',
    indexes=[{'columns': ['order_id'], 'unique': true}],
    event_time='ordered_at',
    batch_size='day',
    begin='2026-11-18',
    lookback=1
) }}

select distinct on (order_id) order_id, ordered_at, amount
from {{ ref('raw_orders') }}
order by order_id, updated_at desc
