-- Collations in which other strings are equal: the key is what its index says.
-- (merge_icu_1.out: where PostgreSQL was built without ICU.)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
CREATE SCHEMA merge_icu;
SET search_path = merge_icu, public;
SELECT count(*) = 0 AS missing FROM pg_collation WHERE collname = 'und-x-icu' \gset
\if :missing
DROP SCHEMA merge_icu CASCADE;
\quit
\endif
RESET client_min_messages;
CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE t (k text COLLATE nocase PRIMARY KEY, v text);
CREATE TABLE s (k text, v text);
INSERT INTO s VALUES ('Ann', 'a'), ('bob', 'b');
SELECT summary FROM idem_merge('s', 't', '{k}', '1');
TRUNCATE s;
INSERT INTO s VALUES ('ANN', 'a'), ('BOB', 'B'), ('cid', 'c');
SELECT summary FROM idem_merge('s', 't', '{k}', '2', dry_run => true);
SELECT summary FROM idem_merge('s', 't', '{k}', '2');
SELECT k, v FROM t ORDER BY k COLLATE "C";
-- Staged rows that are one key only in the target's collation.
INSERT INTO s VALUES ('Cid', 'c');
\set VERBOSITY terse
SELECT summary FROM idem_merge('s', 't', '{k}', '3');
\set VERBOSITY default
SELECT summary FROM idem_merge('s', 't', '{k}', '3', on_duplicate => 'any');
SELECT k, v FROM t ORDER BY k COLLATE "C";
SELECT summary FROM idem_merge('s', 't', '{k}', '4', on_duplicate => 'any', mode => 'update');
SELECT summary FROM idem_merge('s', 't', '{k}', '5', on_duplicate => 'any', mode => 'insert');
-- The other way round: staging's collation takes strings for equal that the
-- target's does not.
CREATE TABLE exact (k text PRIMARY KEY, v text COLLATE nocase);
CREATE TABLE exact_s (k text COLLATE nocase, v text COLLATE nocase);
INSERT INTO exact_s VALUES ('ann', 'x'), ('ANN', 'x'), ('Ann', 'x');
SELECT summary FROM idem_merge('exact_s', 'exact', '{k}', '1');
UPDATE exact_s SET v = 'X' WHERE k COLLATE "C" = 'ann';
SELECT summary FROM idem_merge('exact_s', 'exact', '{k}', '2');
SELECT k, v FROM exact ORDER BY k COLLATE "C";
-- An index of another collation than the column's: the index decides.
CREATE TABLE other (k text NOT NULL, v text);
CREATE UNIQUE INDEX ON other (k COLLATE nocase);
SELECT summary FROM idem_merge('exact_s', 'other', '{k}', '1', on_duplicate => 'any');
SELECT count(*) FROM other;
TRUNCATE s;
INSERT INTO s VALUES ('aNN', 'other value');
SELECT summary FROM idem_merge('s', 'other', '{k}', '2');
SELECT v FROM other;
-- A version is compared in the target column's collation.
CREATE TABLE ver (k int PRIMARY KEY, v text, ver text COLLATE nocase);
CREATE TABLE ver_s (k int, v text, ver text COLLATE "C");
INSERT INTO ver VALUES (1, 'stored', 'a'), (2, 'stored', 'B'), (3, 'stored', 'a');
INSERT INTO ver_s VALUES (1, 'staged', 'B'), (2, 'staged', 'a'), (3, 'staged', 'A');
SELECT summary FROM idem_merge('ver_s', 'ver', '{k}', '1', version_cols => '{ver}');
SELECT k, v, ver FROM ver ORDER BY k;
TRUNCATE ver, ver_s;
INSERT INTO ver_s VALUES (1, 'first', 'a'), (1, 'second', 'B'), (2, 'third', 'A'), (2, 'fourth', 'b');
SELECT summary FROM idem_merge('ver_s', 'ver', '{k}', '2', version_cols => '{ver}');
SELECT k, v, ver FROM ver ORDER BY k;
SET client_min_messages = warning;
DROP SCHEMA merge_icu CASCADE;
