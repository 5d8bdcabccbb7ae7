-- The tables of the examples.
CREATE EXTENSION IF NOT EXISTS idempotent_ingest;

-- load_csv.py, load_csv.sh, airflow_dag.py
CREATE TABLE orders (
    order_id   bigint PRIMARY KEY,
    customer   text NOT NULL,
    amount     numeric(10,2) NOT NULL,
    updated_at timestamptz NOT NULL
);

-- consume.py
CREATE TABLE accounts (
    account bigint PRIMARY KEY,
    balance numeric NOT NULL
);
