SELECT status, summary
FROM idem_merge('staging_flights', 'flights', '{carrier,flight,origin,sched_dep}', :'batch',
                version_cols => '{updated_at}', audit_cols => '{_loaded_at}',
                metadata => jsonb_build_object('file', :'file'));
