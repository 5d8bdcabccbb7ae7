-- A new target with the rows of :base, such that nothing of what made it is left
-- to do. The order of the rows is that of :base.
SET client_min_messages = warning;
SET synchronize_seqscans = off;
DROP TABLE IF EXISTS target;
CREATE TABLE target AS SELECT * FROM :base;
ALTER TABLE target ADD PRIMARY KEY (id);
\if :indexes
CREATE INDEX target_account ON target (account);
CREATE INDEX target_updated_at ON target (updated_at);
\endif
VACUUM (FREEZE, ANALYZE) target;
