"""Files with orders, and what the table must have when some of them have been loaded."""

import csv
from datetime import datetime, timedelta, timezone

START = datetime(2026, 11, 20, tzinfo=timezone.utc)
FIELDS = ["order_id", "customer", "amount", "updated_at"]


def state(order_id, version):
    """An order as it was at some time. The same time, the same content."""
    amount = (order_id * 7919 + version * 104729) % 1000000
    return f"customer {order_id}", f"{amount // 100}.{amount % 100:02}", START + timedelta(seconds=version)


class Files:
    """Writes files, and keeps what is in them."""

    def __init__(self, rng):
        self.rng = rng
        self.orders = {}  # batch id: [(order_id, version)]

    def write(self, path, batch_id=None):
        """Write a file with some of 300 orders, late ones and repeated ones among them."""
        orders = [(self.rng.randint(1, 300), self.rng.randint(1, 10**6)) for _ in range(100)]
        orders += self.rng.sample(orders, 5)
        self.orders[batch_id or path.name] = orders
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(FIELDS)
            writer.writerows((order_id, *state(order_id, version)) for order_id, version in orders)
        return path

    def check(self, ordeal, complete=True):
        """Compare table and ledger with the files; without complete, with those that the ledger has.

        One statement sees both as they are at one moment, whoever is still at work.
        """
        ((batches, stored),) = ordeal.query(
            """
            SELECT (SELECT json_object_agg(batch_id, array[revision, rows_staged]) FROM idem_batches),
                   (SELECT json_object_agg(order_id, array[customer, amount::text,
                                                           extract(epoch FROM updated_at)::bigint::text]) FROM orders)
            """
        )
        batches = batches or {}
        assert batches == {batch: [1, len(orders)] for batch, orders in self.orders.items() if batch in batches}
        if complete:
            assert batches.keys() == self.orders.keys()
        newest = {}
        for batch in batches:
            for order_id, version in self.orders[batch]:
                newest[order_id] = max(version, newest.get(order_id, 0))
        truth = {}
        for order_id, version in newest.items():
            customer, amount, updated_at = state(order_id, version)
            truth[str(order_id)] = [customer, amount, str(int(updated_at.timestamp()))]
        assert (stored or {}) == truth
