-- A limit: no index is kept up to date while rows come.
BEGIN;
ALTER TABLE target DROP CONSTRAINT target_pkey;
\if :indexes
DROP INDEX target_account, target_updated_at;
\endif
COPY target FROM :'copy_file';
ALTER TABLE target ADD PRIMARY KEY (id);
\if :indexes
CREATE INDEX target_account ON target (account);
CREATE INDEX target_updated_at ON target (updated_at);
\endif
COMMIT;
