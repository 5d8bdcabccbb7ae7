-- For who knows that all rows are new.
INSERT INTO target SELECT * FROM :source AS s ORDER BY id;
