SET idempotent_ingest.engine = native;
\ir auto.sql
