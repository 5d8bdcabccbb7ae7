-- What a fingerprint cannot do without, and a merge does anyway: reading staging.
SELECT FROM (SELECT * FROM staging OFFSET 0) s WHERE updated_at IS NULL \g /dev/null
