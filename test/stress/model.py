"""What idem_merge(), idem_claim() and idem_forget() do, as docs/reference.md has it: a dict of rows by key, and a
dict of batches. Written from the documentation alone; the comments in quotation marks are its sentences.

A call returns an Outcome, or several where the documentation leaves it open. A call that is refused changes nothing.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

COUNTS = ("staged", "duplicate", "inserted", "updated", "deleted", "unchanged", "stale", "skipped")
# What a target refuses a row with.
SQLSTATES = {"check": "23514", "foreign key": "23503", "unique": "23505"}


@dataclass(frozen=True)
class Column:
    name: str
    kind: object
    role: str  # key, value, reference, version, audit or extra
    default: str = None


@dataclass(frozen=True)
class Call:
    """The arguments of idem_merge(). rows are dicts from column to number of the literal, None for NULL."""

    rows: tuple
    columns: tuple
    batch: str = None
    pipeline: str = ""
    version: tuple = ()
    audit: tuple = ()
    update: tuple = None
    exclude: tuple = ()
    mode: str = "upsert"
    on_duplicate: str = None
    on_stale: str = "skip"
    on_schema_change: str = "error"
    on_replay: str = "skip"
    on_mismatch: str = "error"
    dry_run: bool = False

    @property
    def duplicates(self):
        return self.on_duplicate or ("latest" if self.version else "error")

    @property
    def options(self):
        """ "the options that change the result" """
        return (self.version, self.audit, self.update, self.exclude, self.mode, self.duplicates, self.on_stale)


@dataclass(frozen=True)
class Entry:
    """A row of the ledger."""

    operation: str
    revision: int
    fingerprint: object
    counts: tuple = None
    options: tuple = None


@dataclass(frozen=True)
class Outcome:
    """What a call returns: an error is one of sqlstates; otherwise the other fields hold."""

    sqlstates: frozenset = frozenset()
    status: str = None
    batch: object = None
    revision: int = None
    counts: tuple = None
    fingerprint: object = None


def refused(*sqlstates):
    return Outcome(sqlstates=frozenset(sqlstates))


class Refused(Exception):
    """An error on the way through a batch."""

    def __init__(self, sqlstates):
        super().__init__(sqlstates)
        self.sqlstates = sqlstates


@dataclass
class State:
    """Of the database. rows: by key, values by column; keyless: those that have none. Two facts can be unknown (None):
    whether the target has any blocks, and how many rows the transaction has deleted from it; excused has how many these
    were when a batch was recorded in the same transaction."""

    columns: tuple
    rows: dict = field(default_factory=dict)
    keyless: list = field(default_factory=list)
    ledger: dict = field(default_factory=dict)
    audit: Counter = field(default_factory=Counter)
    log: Counter = field(default_factory=Counter)
    blocks: bool = False
    deleted: int = 0
    truncated: bool = False
    excused: dict = field(default_factory=dict)

    def copy(self):
        return replace(
            self,
            rows=dict(self.rows),
            keyless=list(self.keyless),
            ledger=dict(self.ledger),
            audit=Counter(self.audit),
            log=Counter(self.log),
            excused=dict(self.excused),
        )


class Model:
    """One target. feature says what is special about it: see histories.FEATURES."""

    def __init__(self, columns, extra, feature, nulls_are_keys):
        self.extra = extra
        self.feature = feature
        self.nulls_are_keys = nulls_are_keys
        # What a constraint says of rows.
        self.refusals = {SQLSTATES[feature]} if feature in SQLSTATES else set()
        self.keys = [column for column in columns if column.role == "key"]
        self.state = State(columns)
        # What ROLLBACK and ROLLBACK TO SAVEPOINT go back to.
        self.saved = []

    # Transactions

    def save(self):
        self.saved.append(self.state.copy())

    def release(self):
        self.saved.pop()
        if not self.saved:
            self.state.deleted, self.state.truncated, self.state.excused = 0, False, {}

    def roll_back(self):
        before, after = self.saved.pop(), self.state
        self.state = before
        # What was inserted and rolled back has left blocks behind, unless they
        # were those of a file that is gone with the rollback.
        if not before.blocks and after.blocks is not False:
            before.blocks = None

    # Statements of others

    def key_of(self, values):
        return tuple(column.kind.rank[values[column.name]] for column in self.keys)

    def delete(self, key):
        if self.state.rows.pop(key, None) is not None and self.saved and self.state.deleted is not None:
            self.state.deleted += 1

    def truncate(self):
        # With ROLLBACK the file comes back, with the blocks that it has by now.
        if self.state.blocks is not False and not self.state.truncated:
            for before in self.saved:
                before.blocks = before.blocks or None
        self.state.rows.clear()
        self.state.keyless.clear()
        self.state.blocks = False
        self.state.truncated = bool(self.saved)

    def update(self, key, column, value):
        if key in self.state.rows:
            self.write("UPDATE", key, {**self.state.rows[key], column: value})

    def change_key(self, key, values):
        """Gives a row another key, which no other row has."""
        if key not in self.state.rows or self.key_of(values) in self.state.rows:
            return
        row = self.state.rows.pop(key)
        self.write("UPDATE", self.key_of(values), {**row, **values})
        # "an UPDATE that moves a row to another partition counts as a deletion"
        if self.feature == "partitioned" and self.saved:
            self.state.deleted = None

    def insert_keyless(self, values):
        row = {column.name: column.default for column in self.state.columns} | values
        self.note("INSERT", row)
        self.state.keyless.append(row)

    def write(self, operation, key, row):
        self.note(operation, row)
        self.state.rows[key] = row

    def note(self, operation, row):
        """What comes with a row that is written."""
        if self.feature == "generated":
            row["g"] = None if row["ref"] is None else str(int(row["ref"]) + 1)
        if self.feature == "after trigger":
            self.state.log[operation] += 1
        if operation == "INSERT":
            self.state.blocks = True

    # idem_claim and idem_forget

    def claim(self, batch, pipeline, fingerprint):
        entry = self.state.ledger.get((pipeline, batch))
        if entry is None:
            self.record((pipeline, batch), Entry("claim", 1, fingerprint))
            return [Outcome(status=True)]
        # "II001 if the batch was claimed with another fingerprint, or was recorded by idem_merge"
        if (
            entry.operation != "claim"
            or None not in (fingerprint, entry.fingerprint)
            and fingerprint != entry.fingerprint
        ):
            return [refused("II001")]
        return self.unless_deleted((pipeline, batch), Outcome(status=False))

    def forget(self, batch, pipeline):
        gone = [known for known in self.state.ledger if batch in (None, known[1]) and pipeline in (None, known[0])]
        for known in gone:
            del self.state.ledger[known]
            self.state.audit["forget", *known] += 1
        return [Outcome(status=len(gone))]

    def record(self, known, entry):
        self.state.ledger[known] = entry
        self.state.excused[known] = self.state.deleted

    def unless_deleted(self, known, outcome):
        """ "Of a batch that the transaction has recorded itself, only later deletions count"; not so of TRUNCATE."""
        if self.state.truncated:
            return [refused("II004")]
        if self.state.deleted is None:
            return [outcome, refused("II004")]
        return [refused("II004") if self.state.deleted > self.state.excused.get(known, 0) else outcome]

    # idem_merge

    def merge(self, call):
        before = self.state.copy()
        try:
            return self.try_merge(call)
        except Refused as refusal:
            self.state = before
            # Something may have been inserted before the error.
            self.state.blocks = self.state.blocks or None
            return [refused(*refusal.sqlstates)]

    def try_merge(self, call):
        extra = [self.extra] if self.extra.name in call.columns and self.extra not in self.state.columns else []
        if extra and call.on_schema_change == "error":
            return [refused("42703")]
        merged = [column for column in self.state.columns if column.name in call.columns]
        if call.on_schema_change == "add_columns":
            merged += extra
        fingerprint = self.fingerprint(call, tuple(sorted({column.name for column in merged} - set(call.audit))))
        if call.dry_run:
            # "exact counts, nothing is written, claimed or recorded"
            counts, _ = self.classify(call, merged)
            return [Outcome(status="dry_run", batch=call.batch, counts=counts, fingerprint=fingerprint)]
        if call.batch is None and not call.rows:
            # "An empty staging relation without a batch id gives zero counts and no ledger row."
            return [Outcome(status="applied", counts=(0,) * len(COUNTS), fingerprint=fingerprint)]

        # "Without batch_id the id is content: and a hash of fingerprint, key and options."
        batch = ("content:", fingerprint, call.options) if call.batch is None else call.batch
        entry = self.state.ledger.get((call.pipeline, batch))
        if entry is not None:
            action = self.action(call, entry)
            if action == "mismatch":
                return [refused("II001")]
            if action == "replay":
                return self.replay(call, batch, entry, merged)
            self.state.audit[action, call.pipeline, batch] += 1
        counts = self.apply(call, merged, extra)
        revision = entry.revision + 1 if entry else 1
        self.record((call.pipeline, batch), Entry("merge", revision, fingerprint, counts, call.options))
        return [Outcome(frozenset(), "reapplied" if entry else "applied", batch, revision, counts, fingerprint)]

    def action(self, call, entry):
        """What a call for a known batch is: mismatch, replay, reapply, or apply of other content."""
        # "An id that idem_claim recorded is never a replay for idem_merge"
        if entry.operation != "merge":
            return "mismatch"
        columns, _ = entry.fingerprint
        if (
            # "known batch id with other content, key or options: [...] skip (staging is not read)"
            call.batch is not None
            and call.on_mismatch != "skip"
            and (
                entry.options != call.options
                # "Columns that staging has now and had not then do not matter; one that is missing now is a mismatch."
                or not set(columns) <= set(call.columns)
                or self.fingerprint(call, columns) != entry.fingerprint
            )
        ):
            return "apply" if call.on_mismatch == "apply" else "mismatch"
        return "reapply" if call.on_replay == "reapply" else "replay"

    def replay(self, call, batch, entry, merged):
        outcome = Outcome(frozenset(), "replayed", batch, entry.revision, entry.counts, entry.fingerprint)
        if call.on_replay == "error":
            outcome = refused("II002")
        if call.batch is None:
            # "Nothing to change: replayed, or II002 with on_replay => 'error'. Anything to change: II005"
            return [refused("II005") if self.classify(call, merged)[1] else outcome]
        # "into a target without any blocks, though it had rows when the batch was applied"
        counts = dict(zip(COUNTS, entry.counts))
        if any(counts[fate] for fate in ("inserted", "updated", "unchanged", "stale")):
            if self.state.blocks is False:
                return [refused("II004")]
            if self.state.blocks is None:
                return [outcome, refused("II004")]
        return self.unless_deleted((call.pipeline, batch), outcome)

    def fingerprint(self, call, columns):
        """ "the set of distinct rows [...] as staged": what the hash is made of"""
        kinds = {column.name: column.kind for column in [*self.state.columns, self.extra]}
        return columns, frozenset(
            tuple(None if row[name] is None else kinds[name].staged_text[row[name]] for name in columns)
            for row in call.rows
        )

    def apply(self, call, merged, extra):
        if call.on_schema_change == "add_columns" and extra:
            # "the new columns [...] are NULL in the rows that are there"
            self.state.columns += tuple(extra)
            for key, row in self.state.rows.items():
                self.state.rows[key] = {**row, self.extra.name: None}
            self.state.keyless = [{**row, self.extra.name: None} for row in self.state.keyless]
        counts, writes = self.classify(call, merged)
        counts = dict(zip(COUNTS, counts))
        sqlstates = set()
        for operation, key, row in writes:
            # "Triggers and constraints see the rows that will be stored."
            ref = row.get("ref")
            if ref == "3" and self.feature == "before trigger":
                counts["inserted" if operation == "INSERT" else "updated"] -= 1
                counts["skipped"] += 1
                continue
            if ref == "3" and self.feature in ("check", "foreign key"):
                sqlstates.add(SQLSTATES[self.feature])
            if self.feature == "unique" and any(
                ref is not None and ref == other["ref"] for of, other in self.state.rows.items() if of != key
            ):
                sqlstates.add(SQLSTATES[self.feature])
            self.write(operation, key, row)
        if sqlstates:
            raise Refused(sqlstates)
        return tuple(counts[count] for count in COUNTS)

    def classify(self, call, merged):
        """The counts of a batch, and its writes in key order: operation, key and the row as it will be stored."""
        kinds = {column.name: column.kind for column in merged}
        counts = Counter(staged=len(call.rows))
        writes = []
        by_key = self.survivors(call, merged)
        # "rows that another row of the same key replaced"
        counts["duplicate"] = len(call.rows) - len(by_key)

        # "only these change on a match, besides version and audit columns"
        changing = [
            column.name
            for column in merged
            if column.role != "key"
            and column.name not in call.exclude
            and (call.update is None or column.name in call.update or column.name in call.version + call.audit)
        ]
        stale = False
        for key in sorted(by_key):
            values = by_key[key]
            stored = self.state.rows.get(key)
            if stored is None:
                if call.mode == "update":
                    counts["skipped"] += 1
                    continue
                row = {column.name: column.default for column in self.state.columns} | values
                counts["inserted"] += 1
                writes.append(("INSERT", key, row))
                continue
            if call.mode == "insert":
                counts["skipped"] += 1
                continue
            # "A staged row is stale if its version is lower than the stored one. [...] NULL is the lowest version."
            if call.on_stale != "apply" and version_of(call, kinds, values) < version_of(call, kinds, stored):
                counts["stale"] += 1
                stale = True
                continue
            # "Changed means: another image"; audit columns are "never a reason to write it". A dry run does not add the
            # columns that the target lacks, which would be NULL.
            if any(values[name] != stored.get(name) for name in changing if name not in call.audit):
                counts["updated"] += 1
                writes.append(("UPDATE", key, stored | {name: values[name] for name in changing}))
            else:
                counts["unchanged"] += 1
        if stale and call.on_stale == "error":
            raise Refused({"II003"})
        return tuple(counts[count] for count in COUNTS), writes

    def survivors(self, call, merged):
        """One row of values as stored for each key."""
        sqlstates = set()
        by_key = {}
        for staged in call.rows:
            values = {}
            for column in merged:
                fits, text = (True, None) if staged[column.name] is None else column.kind.stored[staged[column.name]]
                if fits:
                    values[column.name] = text
                else:
                    sqlstates.add(text)
            if len(values) < len(merged):
                continue
            # "NULL keys are 23502, unless the index is NULLS NOT DISTINCT"
            if not self.nulls_are_keys and any(values[column.name] is None for column in self.keys):
                sqlstates.add("23502")
                continue
            by_key.setdefault(self.key_of(values), []).append(values)

        kinds = {column.name: column.kind for column in merged}
        for key, candidates in by_key.items():
            # "Identical rows of one key collapse; audit columns do not count"
            def distinct(rows):
                return len({tuple(row[name] for name in kinds if name not in call.audit) for row in rows})

            if call.duplicates == "error" and distinct(candidates) > 1:
                sqlstates.add("21000")
            greatest = max(version_of(call, kinds, row) for row in candidates)
            candidates = [row for row in candidates if version_of(call, kinds, row) == greatest]
            if call.duplicates == "latest" and distinct(candidates) > 1:
                sqlstates.add("21000")
            # "then the greatest image wins"; "in the order of the target's columns"
            by_key[key] = max(candidates, key=lambda row: [kinds[name].image_rank[row[name]] for name in kinds])
        if sqlstates:
            if call.on_stale == "error":
                sqlstates.add("II003")
            raise Refused(sqlstates)
        return by_key


def version_of(call, kinds, row):
    """ "compared left to right, NULL lowest" """
    return [(row[name] is not None, row[name] and kinds[name].rank[row[name]]) for name in call.version]
