#!/usr/bin/env python3
"""Apply the messages of a Kafka topic to the table accounts, each of them once.

    pip install 'psycopg[binary]' confluent-kafka
    psql -f tables.sql
    python consume.py --brokers localhost:9092 --topic payments

Kafka delivers at least once: after a crash or a rebalance a message comes again, and a
consumer that was thought dead can wake up and go on with what it has. Here an effect that
is no upsert is applied exactly once all the same. The messages are deposits and interest,
{"account": 7, "deposit": "12.50"} or {"account": 7, "interest": "1.5"} (percent): applied
twice, left out or in another order, they come to another balance.

A partition is a pipeline of the ledger. The claim for a batch and the effect of its
messages commit together; metadata has the offset at which the batch ends. A consumer
starts at the highest end in the ledger. The batch id is the offset at which the batch
*begins*: from there only one batch can be recorded. So if two consumers believe that they
own a partition, one of them is told false by idem_claim(), whatever the sizes of their
batches; it looks into the ledger and goes on from where the other one has got to. Kafka is
told the offsets too, for those who watch the lag, but is never asked for them.

For an upsert, call idem_merge() in place of idem_claim(), with the same batch id and
pipeline, and on_mismatch => 'skip'; status 'replayed' is what false is here.

A consumer that hangs in the middle of a transaction holds its claim, and its successor
waits. So: ALTER ROLE ... SET idle_in_transaction_session_timeout = '10s'.
"""

import argparse
import json
import random
import signal
import sys
import time

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

ATTEMPTS = 10

# Serialization failure, deadlock, lock not available, and sessions that the server has
# ended. Class 08 is added below. With all others, a second attempt fails like the first.
RETRY = {"40001", "40P01", "55P03", "25P03", "57P01", "57P02", "57P03", "57P05"}


def may_pass(error):
    """Tell whether the same transaction may succeed if it is run again."""
    if error.sqlstate is None:  # no connection, or it was lost: the server said nothing
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate in RETRY or error.sqlstate.startswith("08")


class Database:
    """A connection that is made anew if it was lost."""

    def __init__(self):
        self.conn = None

    def transaction(self, work, *args):
        """Return work(conn, ...), in a transaction; once more after an error that may pass."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if self.conn is None or self.conn.closed:
                    self.conn = psycopg.connect(autocommit=True)
                with self.conn.transaction():
                    return work(self.conn, *args)
            except psycopg.Error as error:
                if attempt == ATTEMPTS or not may_pass(error):
                    raise
                print(f"attempt {attempt}: {error}", file=sys.stderr)
                time.sleep(random.uniform(0, min(0.1 * 2**attempt, 30)))


def read_position(conn, pipeline):
    """Return the offset of the first message that was not applied yet."""
    return conn.execute(
        """
        SELECT coalesce(max((metadata ->> 'end')::bigint), 0)
        FROM idem_batches
        WHERE target = 'accounts'::regclass AND pipeline = %s
        """,
        [pipeline],
    ).fetchone()[0]


def apply_batch(conn, pipeline, position, end, messages):
    """Apply messages from position up to end, or return False: that was done already."""
    claimed = conn.execute(
        "SELECT idem_claim(%s, 'accounts', pipeline => %s, metadata => jsonb_build_object('end', %s::bigint))",
        [str(position), pipeline, end],
    ).fetchone()[0]
    if claimed:
        for message in messages:
            apply_message(conn, json.loads(message.value()))
    return claimed


def apply_message(conn, message):
    """The effect of a message: whatever can be said in SQL."""
    if "deposit" in message:
        conn.execute(
            """
            INSERT INTO accounts VALUES (%(account)s, %(deposit)s::numeric)
            ON CONFLICT (account) DO UPDATE SET balance = accounts.balance + excluded.balance
            """,
            message,
        )
    else:
        conn.execute(
            """
            UPDATE accounts SET balance = round(balance * (1 + %(interest)s::numeric / 100), 2)
            WHERE account = %(account)s
            """,
            message,
        )


def consume(args):
    database = Database()
    positions = {}  # of the partitions that were assigned: where the next batch begins
    stopped = []
    for number in signal.SIGTERM, signal.SIGINT:
        signal.signal(number, lambda *_: stopped.append(True))

    def pipeline(partition):
        return f"{args.topic}/{partition}"

    def start(kafka, partitions):
        for partition in partitions:
            position = database.transaction(read_position, pipeline(partition.partition))
            print(f"{pipeline(partition.partition)}: from message {position}", file=sys.stderr)
            positions[partition.partition] = position
            partition.offset = position or OFFSET_BEGINNING
        kafka.assign(partitions)

    kafka = Consumer(
        {
            "bootstrap.servers": args.brokers,
            "group.id": args.group,
            "enable.auto.commit": False,
            # If Kafka has deleted messages that were not applied yet, do not jump over them.
            "auto.offset.reset": "error",
        }
        | dict(setting.split("=", 1) for setting in args.X)
    )
    if args.partition:
        start(kafka, [TopicPartition(args.topic, partition) for partition in args.partition])
    else:
        kafka.subscribe([args.topic], on_assign=start)

    while not stopped:
        batches = {}
        for message in kafka.consume(args.batch_size, timeout=0.2):
            if message.error():
                raise KafkaException(message.error())
            batches.setdefault(message.partition(), []).append(message)
        for partition, messages in batches.items():
            position = positions[partition]
            messages = [message for message in messages if message.offset() >= position]
            if not messages:
                continue
            end = messages[-1].offset() + 1
            if database.transaction(apply_batch, pipeline(partition), position, end, messages):
                positions[partition] = end
                kafka.commit(offsets=[TopicPartition(args.topic, partition, end)])
            else:
                # By a consumer that took over, or by ourselves, if the answer to COMMIT was lost.
                positions[partition] = database.transaction(read_position, pipeline(partition))
                kafka.seek(TopicPartition(args.topic, partition, positions[partition]))
    kafka.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--brokers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", default="accounts")
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("-X", action="append", default=[], metavar="PROPERTY=VALUE", help="for the client, as in kcat")
    parser.add_argument("--partition", type=int, action="append", help="without a group: take this one, and no other")
    consume(parser.parse_args())


if __name__ == "__main__":
    main()
