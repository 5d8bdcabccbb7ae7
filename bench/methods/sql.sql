SET idempotent_ingest.engine = sql;
\ir auto.sql
