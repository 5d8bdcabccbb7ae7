-- citext: a key that ignores case, and values whose case matters.
-- (merge_citext_1.out: where the contrib module is not installed.)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
CREATE SCHEMA merge_citext;
SET search_path = merge_citext, public;
SELECT count(*) = 0 AS missing FROM pg_available_extensions WHERE name = 'citext' \gset
\if :missing
DROP SCHEMA merge_citext CASCADE;
\quit
\endif
CREATE SCHEMA elsewhere_citext;
CREATE EXTENSION citext SCHEMA elsewhere_citext;
RESET client_min_messages;
-- The type's operators are not in the search_path.
CREATE TABLE t (email elsewhere_citext.citext PRIMARY KEY, v elsewhere_citext.citext);
CREATE TABLE s (email text, v text);
INSERT INTO s VALUES ('Ann@x.org', 'a'), ('bob@x.org', 'b');
SELECT summary FROM idem_merge('s', 't', '{email}', '1');
-- The key stays as it is stored; a value that differs in case is a change.
TRUNCATE s;
INSERT INTO s VALUES ('ANN@X.ORG', 'a'), ('BOB@X.ORG', 'B');
SELECT summary FROM idem_merge('s', 't', '{email}', '2', dry_run => true);
SELECT summary FROM idem_merge('s', 't', '{email}', '2');
SELECT email::text, v::text FROM t ORDER BY email::text COLLATE "C";
-- Keys that differ in case are one key; the rows are identical only in the eyes
-- of citext.
TRUNCATE s;
INSERT INTO s VALUES ('eve@x.org', 'e'), ('EVE@x.org', 'e');
\set VERBOSITY terse
SELECT summary FROM idem_merge('s', 't', '{email}', '3');
\set VERBOSITY default
SELECT summary FROM idem_merge('s', 't', '{email}', '3', on_duplicate => 'any');
SELECT email::text FROM t WHERE v::text = 'e';
-- A staging table with the same type is paired without any cast.
CREATE TABLE s2 (v elsewhere_citext.citext, email elsewhere_citext.citext);
INSERT INTO s2 VALUES ('a', 'ann@x.org'), ('b', 'BOB@x.org'), ('f', 'fay@x.org');
SELECT summary FROM idem_merge('s2', 't', '{email}', '4');
SELECT summary FROM idem_merge('s2', 't', '{email}', '5', mode => 'update');
SELECT summary FROM idem_merge('s2', 't', '{email}', '6', mode => 'insert');
SELECT email::text, v::text FROM t ORDER BY email::text COLLATE "C";
-- As a version, citext orders without case: 'B' is later than 'a', and 'a' is
-- as late as 'A'.
CREATE TABLE ver (k int PRIMARY KEY, v text, ver elsewhere_citext.citext);
CREATE TABLE ver_s (k int, v text, ver elsewhere_citext.citext);
INSERT INTO ver VALUES (1, 'stored', 'a'), (2, 'stored', 'B'), (3, 'stored', 'a');
INSERT INTO ver_s VALUES (1, 'staged', 'B'), (2, 'staged', 'a'), (3, 'staged', 'A');
SELECT summary FROM idem_merge('ver_s', 'ver', '{k}', '1', version_cols => '{ver}');
SELECT k, v, ver::text FROM ver ORDER BY k;
SET client_min_messages = warning;
DROP SCHEMA merge_citext, elsewhere_citext CASCADE;
