-- Values of 100 MB: hashed, compared and stored without being turned into text,
-- and without a buffer that holds a row as a whole.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
RESET client_min_messages;
CREATE SCHEMA merge_large;
SET search_path = merge_large, public;

CREATE TABLE target (k int PRIMARY KEY, v text, b bytea, j jsonb);
CREATE TABLE staging (k int, v text, b bytea, j jsonb);
-- In staging one of them lies there as it is, in the target all are compressed.
ALTER TABLE staging ALTER v SET STORAGE EXTERNAL;
INSERT INTO staging
VALUES (1, repeat('x', 100 * 1024 * 1024), decode(repeat('ab', 60 * 1024 * 1024), 'hex'),
        jsonb_build_object('a', repeat('y', 50 * 1024 * 1024)));

SELECT summary FROM idem_merge('staging', 'target', batch_id => '1');
SELECT length(v), length(b), length(j ->> 'a') FROM target;
SELECT summary FROM idem_merge('staging', 'target', batch_id => '1');
-- Stored in another way, but the same content.
SELECT summary FROM idem_merge('staging', 'target', batch_id => '2');
-- The last byte of 100 MB differs.
UPDATE staging SET v = overlay(v PLACING 'z' FROM length(v));
SELECT summary FROM idem_merge('staging', 'target', batch_id => '3', dry_run => true);
SELECT summary FROM idem_merge('staging', 'target', batch_id => '3');
SELECT right(v, 2) FROM target;
-- Two rows that differ in that byte are told apart, and ordered by it.
INSERT INTO staging SELECT k, overlay(v PLACING 'a' FROM length(v)), b, j FROM staging;
\set VERBOSITY terse
SELECT summary FROM idem_merge('staging', 'target', batch_id => '4');
SELECT summary FROM idem_merge('staging', 'target', batch_id => '4', on_duplicate => 'any');

SET client_min_messages = warning;
DROP SCHEMA merge_large CASCADE;
