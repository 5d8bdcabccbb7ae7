"""consume.py, with the client of Confluent and the broker that librdkafka has for tests.

Deposits and interest do not commute: whatever is applied twice, left out or in another
order shows in a balance.
"""

import json
import signal
import sys
from decimal import ROUND_HALF_UP, Decimal

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from conftest import EXAMPLES, wait_until

PARTITIONS = 4  # of a topic that is made by its first use


class Topic:
    def __init__(self, ordeal, rng):
        self.ordeal = ordeal
        self.rng = rng
        self.name = "payments"
        self.logs = {partition: [] for partition in range(PARTITIONS)}
        # It runs in a thread of this process, and listens to any client.
        self.producer = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        (broker,) = self.producer.list_topics(self.name, timeout=60).brokers.values()
        self.brokers = f"{broker.host}:{broker.port}"

    def send(self, partition, count):
        for _ in range(count):
            message = {"account": 10 * partition + self.rng.randint(1, 3)}
            if self.rng.random() < 0.5:
                message["deposit"] = f"{self.rng.randint(1, 99999) / 100:.2f}"
            else:
                message["interest"] = f"{self.rng.randint(1, 200) / 100:.2f}"
            self.logs[partition].append(message)
            self.producer.produce(self.name, json.dumps(message), partition=partition)
        self.producer.flush()

    def mislead(self, group="accounts"):
        """Tell the broker offsets that are wrong, on both sides."""
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": group})
        consumer.commit(
            offsets=[TopicPartition(self.name, p, self.rng.randint(0, 1000)) for p in self.logs], asynchronous=False
        )
        consumer.close()

    def start(self, *options, **stop):
        """Start a consumer, with batches of another size than before."""
        return self.ordeal.start(
            sys.executable,
            EXAMPLES / "consume.py",
            f"--brokers={self.brokers}",
            f"--topic={self.name}",
            f"--batch-size={self.rng.randint(1, 12)}",
            *options,
            **stop,
        )

    def positions(self):
        return {
            int(pipeline.split("/")[1]): end
            for pipeline, end in self.ordeal.query(
                "SELECT pipeline, max((metadata ->> 'end')::bigint) FROM idem_batches GROUP BY pipeline"
            )
        }

    def drained(self):
        return self.positions() == {partition: len(log) for partition, log in self.logs.items() if log}

    def check(self, complete=True):
        """Compare the balances with what the messages come to, up to the positions in the ledger.

        One statement sees both as they are at one moment, whoever is still at work.
        """
        ((batches, balances),) = self.ordeal.query(
            """
            SELECT (SELECT json_agg(array[split_part(pipeline, '/', 2), batch_id, metadata ->> 'end']) FROM idem_batches),
                   (SELECT json_object_agg(account, balance::text) FROM accounts)
            """
        )
        positions = dict.fromkeys(self.logs, 0)
        for partition, start, end in sorted([*map(int, batch)] for batch in batches or []):
            assert start == positions[partition] < end, "each batch begins where the one before it ends"
            positions[partition] = end
        if complete:
            assert positions == {partition: len(log) for partition, log in self.logs.items()}
        truth = {}
        for partition, log in self.logs.items():
            for message in log[: positions[partition]]:
                account = str(message["account"])
                if "deposit" in message:
                    truth[account] = truth.get(account, 0) + Decimal(message["deposit"])
                elif account in truth:
                    balance = truth[account] * (1 + Decimal(message["interest"]) / 100)
                    truth[account] = balance.quantize(Decimal("0.01"), ROUND_HALF_UP)
        assert {account: Decimal(balance) for account, balance in (balances or {}).items()} == truth


@pytest.fixture
def topic(ordeal, rng):
    return Topic(ordeal, rng)


def terminate(process):
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_killed(topic, ordeal, rng, kills):
    topic.mislead()
    topic.send(0, 30)
    process = topic.start("--partition=0")
    wait_until(topic.drained, "all messages are applied")
    terminate(process)
    topic.check()
    messages = ordeal.proxy.messages

    while ordeal.kills < kills:
        topic.send(0, 30)
        while not topic.drained():
            process = topic.start(
                "--partition=0", stopped_after=rng.randint(1, messages), stop=lambda process: process.kill()
            )
            wait_until(lambda: process.poll() is not None or topic.drained(), "it is killed, or is done")
            ordeal.proxy.after(0, None)
            if process.poll() is None:
                process.terminate()
            status = process.wait(60)
            assert status in (0, -signal.SIGKILL)
            ordeal.kills += status != 0
            topic.check(complete=False)
        topic.check()


def test_answers_lost(topic, ordeal, losses):
    ordeal.lose_answers()
    process = topic.start("--partition=0")
    while ordeal.proxy.dropped < losses:
        topic.send(0, 30)
        wait_until(topic.drained, "all messages are applied")
        topic.check()
    terminate(process)


def test_idle(topic, ordeal):
    """The server ends sessions that are idle; the consumer makes another one when there is something to do."""
    ordeal.conn.execute("ALTER DATABASE examples SET idle_session_timeout = '500ms'")
    process = topic.start("--partition=0")
    for _ in range(2):
        topic.send(0, 30)
        wait_until(topic.drained, "all messages are applied")
        sessions = "SELECT FROM pg_stat_activity WHERE datname = 'examples' AND pid <> pg_backend_pid()"
        wait_until(lambda: not ordeal.query(sessions), "the session is ended")
    terminate(process)
    topic.check()
    assert "idle-session timeout" in ordeal.output()


def test_zombies(topic, ordeal, rng, kills):
    """A consumer hangs, another one takes its partition over, and the first one wakes up."""
    ordeal.conn.execute("ALTER DATABASE examples SET idle_in_transaction_session_timeout = '1s'")
    topic.send(0, 30)
    process = topic.start("--partition=0")
    wait_until(topic.drained, "all messages are applied")
    terminate(process)
    messages = ordeal.proxy.messages

    hung = 0
    while hung < max(1, kills // 5):
        topic.send(0, 30)
        zombie = topic.start(
            "--partition=0",
            stopped_after=rng.randint(1, messages),
            stop=lambda process: process.send_signal(signal.SIGSTOP),
        )
        wait_until(lambda: stopped(zombie) or topic.drained(), "it hangs, or is done")
        ordeal.proxy.after(0, None)
        hung += not topic.drained()  # if it had something to do
        successor = topic.start("--partition=0")
        topic.send(0, 10)
        wait_until(topic.drained, "all messages are applied")
        topic.check()
        zombie.send_signal(signal.SIGCONT)
        for _ in range(5):
            topic.send(0, 10)
            wait_until(topic.drained, "all messages are applied")
        terminate(zombie)
        terminate(successor)
        topic.check()


def stopped(process):
    with open(f"/proc/{process.pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] == "T"


def test_group(topic, ordeal):
    """The partitions of a group are handed from one to the other, and the broker's offsets are wrong."""
    topic.mislead()
    for partition in topic.logs:
        topic.send(partition, 20)
    # The broker notices members that come and go when the session of another one ends.
    quick = "-Xsession.timeout.ms=6000", "-Xheartbeat.interval.ms=500"
    first = topic.start(*quick)
    wait_until(topic.drained, "the first one applies all messages")
    second = topic.start(*quick)
    wait_until(lambda: ordeal.output().count(": from message ") == 2 * PARTITIONS, "the partitions are shared out anew")
    for partition in topic.logs:
        topic.send(partition, 20)
    wait_until(topic.drained, "both apply all messages")
    terminate(first)
    for partition in topic.logs:
        topic.send(partition, 20)
    wait_until(topic.drained, "the second one applies all messages")
    terminate(second)
    topic.check()
