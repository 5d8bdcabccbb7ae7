-- xml, which has no equality: a value like others, compared by its image.
-- (merge_xml_1.out: where PostgreSQL was built without libxml.)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;
CREATE SCHEMA merge_xml;
SET search_path = merge_xml, public;
SELECT setting !~ 'with-libxml' AND setting !~ 'libxml=enabled' AS missing FROM pg_config WHERE name = 'CONFIGURE' \gset
\if :missing
DROP SCHEMA merge_xml CASCADE;
\quit
\endif
RESET client_min_messages;
CREATE TABLE t (k int PRIMARY KEY, x xml, xs xml[]);
CREATE TABLE s (k int, x xml, xs xml[]);
INSERT INTO s VALUES (1, '<a/>', '{<b/>,NULL}'), (2, '<a></a>', NULL), (3, NULL, '{}');
SELECT summary FROM idem_merge('s', 't', '{k}', '1');
SELECT summary FROM idem_merge('s', 't', '{k}', '2');
-- Equal as XML, and a change all the same.
UPDATE s SET x = '<a />' WHERE k = 1;
INSERT INTO s VALUES (2, '<a></a>', NULL);
SELECT summary FROM idem_merge('s', 't', '{k}', '3');
INSERT INTO s VALUES (2, '<a/>', NULL);
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('s', 't', '{k}', '4');
\set VERBOSITY default
SELECT summary FROM idem_merge('s', 't', '{k}', '4', on_duplicate => 'any', dry_run => true);
-- No order, so no version; no btree operator class, so no key.
\set VERBOSITY sqlstate
SELECT summary FROM idem_merge('s', 't', '{k}', '5', version_cols => '{x}');
SELECT summary FROM idem_merge('s', 't', '{x}', '5');
\set VERBOSITY default
SELECT k, x, xs FROM t ORDER BY k;
SET client_min_messages = warning;
DROP SCHEMA merge_xml CASCADE;
