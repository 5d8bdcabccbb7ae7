-- Ours, as it comes.
SELECT summary, engine FROM idem_merge('staging', 'target', '{id}', 'batch' :options) \gset
