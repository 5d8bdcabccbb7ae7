"""What dbt/README.md promises, in small projects and by the real dbt."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dbt.tests.util import run_dbt, run_dbt_and_capture

from conftest import PACKAGE, Project, connect


def write(project, model, text):
    Path(project.project_root, "models", model + ".sql").write_text(text)


def run(project, *args, passes=True):
    """Runs all models, or what the arguments say; returns the results."""
    return run_dbt(["run", *args], expect_pass=passes).results


def message(results):
    return results[0].message


def response(results):
    return results[0].adapter_response


def rows(project, query):
    return project.run_sql(query.replace("@", f"{project.test_schema}."), fetch="all")


def value(project, query):
    return rows(project, query)[0][0]


def batches(project, model="m"):
    return rows(project, f"""
        select batch_id, revision, rows_inserted, rows_updated, rows_unchanged from public.idem_batches
        where target = '@{model}'::regclass order by applied_at""")


def images(project, model="m"):
    """Where the rows are: it changes for each row that is written."""
    return rows(project, f"select ctid, xmin from @{model} order by 1")


def until(condition):
    """Waits for a condition; one that is not true after three minutes never will be."""
    given_up = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < given_up
        time.sleep(0.05)


def start_dbt(project, *args):
    """dbt as a process of its own."""
    dbt = Path(sys.executable).with_name("dbt")
    log = open(Path(project.project_root, f"run{time.monotonic_ns()}.log"), "w+")
    return subprocess.Popen(
        [dbt, "--log-path", log.name + ".d", "run", "--target-path", log.name + ".t", *args,
         "--profiles-dir", project.profiles_dir],
        cwd=project.project_root, stdout=log, stderr=subprocess.STDOUT)


def waiting(project):
    """How many of dbt's sessions wait for a lock."""
    return value(project, "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'dbt'")


MODEL = """
{{ config(materialized='incremental', unique_key='id', indexes=[{'columns': ['id'], 'unique': true}]%s) }}
select id, v, n from %s
"""


class Source(Project):
    """A model m of a table src."""

    configs_of_model = ""

    @pytest.fixture(scope="class")
    def models(self):
        return {"m.sql": MODEL % (self.configs_of_model, "{{ target.schema }}.src")}

    @pytest.fixture(autouse=True)
    def source(self, project, install):
        project.run_sql(f"""
            drop table if exists {project.test_schema}.m, {project.test_schema}.src;
            create table {project.test_schema}.src (id int, v text, n int);
            insert into {project.test_schema}.src select i, 'v' || i, i from generate_series(1, 10) i""")


class TestMerge(Source):
    def test_only_what_differs_is_written(self, project):
        assert message(run(project)) == "SELECT 10"
        before = images(project)

        # the same content, as the first batch and again
        results, log = run_dbt_and_capture(["run"])
        assert response(results) == {
            "_message": "applied: 10 staged, 10 unchanged", "code": "applied", "rows_affected": 0}
        assert "applied: 10 staged, 10 unchanged" in log
        assert message(run(project)) == "reapplied: 10 staged, 10 unchanged"
        assert images(project) == before

        project.run_sql(f"update {project.test_schema}.src set v = 'new' where id = 3;"
                        f"insert into {project.test_schema}.src values (11, 'v11', 11)")
        assert response(run(project)) == {
            "_message": "applied: 11 staged, 1 inserted, 1 updated, 9 unchanged", "code": "applied", "rows_affected": 2}
        assert len(set(images(project)) & set(before)) == 9

        # back to an earlier state: the ledger knows its content, and it is merged all the same
        project.run_sql(f"update {project.test_schema}.src set v = 'v3' where id = 3; delete from {project.test_schema}.src where id = 11")
        assert message(run(project)) == "reapplied: 10 staged, 1 updated, 9 unchanged"
        assert value(project, "select v from @m where id = 3") == "v3"

    def test_full_refresh(self, project):
        run(project)
        run(project)
        project.run_sql(f"delete from {project.test_schema}.src where id > 5")
        assert message(run(project, "--full-refresh")) == "SELECT 5"
        assert value(project, "select count(*) from @m") == 5
        assert message(run(project)) == "applied: 5 staged, 5 unchanged"

    def test_who_has_done_it(self, project):
        run(project)
        run(project)
        batch, pipeline, model, invocation = rows(project, """
            select batch_id, pipeline, metadata ->> 'model', metadata ->> 'invocation_id' from public.idem_batches
            where target = '@m'::regclass""")[0]
        assert batch.startswith("content:")
        assert pipeline == "dbt"
        assert model == "model.test.m"
        assert len(invocation) == 36


class TestConfigs(Source):
    def merge(self, project, configs, change, passes=True, args=()):
        """The first run, a change of the source, and a second run."""
        write(project, "m", MODEL % (configs, "{{ target.schema }}.src"))
        run(project, *args)
        project.run_sql(change.replace("@", f"{project.test_schema}."))
        return message(run(project, *args, passes=passes))

    def test_merge_update_columns(self, project):
        assert "1 updated" in self.merge(project, ", merge_update_columns=['V', 'id']", "update @src set v = 'new', n = 0 where id = 1")
        assert rows(project, "select v, n from @m where id = 1") == [("new", 1)]

    def test_merge_exclude_columns(self, project):
        assert "1 updated" in self.merge(project, ", merge_exclude_columns=['v', 'id']", "update @src set v = 'new', n = 0 where id = 1")
        assert rows(project, "select v, n from @m where id = 1") == [("v1", 0)]

    def test_version_cols(self, project):
        said = self.merge(project, ", version_cols='n'", "update @src set v = 'new', n = n + case id when 1 then 1 else -1 end where id < 3")
        assert said == "applied: 10 staged, 1 updated, 8 unchanged, 1 stale"
        assert rows(project, "select v from @m where id < 3 order by id") == [("new",), ("v2",)]

    def test_configs_in_meta(self, project):
        configs = ", meta={'idem_merge': {'version_cols': 'n', 'source': 'shop'}, 'source': 'crm', 'batch_id': 'of another tool'}"
        said = self.merge(project, configs, "update @src set v = 'new', n = 0 where id = 1")
        assert said == "applied: 10 staged, 9 unchanged, 1 stale"
        pipeline, batch = rows(project, "select pipeline, batch_id from public.idem_batches where target = '@m'::regclass")[0]
        assert pipeline == "shop"
        assert batch.startswith("content:"), "what others have in meta is not ours"

    def test_on_duplicate(self, project):
        change = "insert into @src values (1, 'later', 2)"
        assert "staging has different rows for 1 key" in self.merge(project, "", change, passes=False)
        assert rows(project, "select v from @m where id = 1") == [("v1",)]
        write(project, "m", MODEL % (", on_duplicate='latest', version_cols=['n']", "{{ target.schema }}.src"))
        assert message(run(project)) == "applied: 11 staged, 1 duplicate, 1 updated, 9 unchanged"
        assert rows(project, "select v from @m where id = 1") == [("later",)]

    def test_audit_cols(self, project):
        said = self.merge(project, ", audit_cols=['n']", "update @src set n = 0; update @src set v = 'new' where id = 1")
        assert said == "applied: 10 staged, 1 updated, 9 unchanged"
        assert rows(project, "select id from @m where n = 0") == [(1,)]

    def test_batch_id(self, project):
        configs = ", batch_id=\"{{ 'load ' ~ var('day') }}\", source='shop'"
        monday = ("--vars", "day: monday")
        assert "1 updated" in self.merge(project, configs, "update @src set v = 'new' where id = 1", args=monday)
        # a retry
        retry = run(project, *monday)
        assert message(retry) == "replayed: 10 staged, 1 updated, 9 unchanged"
        assert response(retry)["rows_affected"] == 0
        # another content by the same name
        project.run_sql(f"update {project.test_schema}.src set v = 'newer' where id = 1")
        assert 'batch "load monday" was already applied with different content' in message(run(project, *monday, passes=False))
        assert message(run(project, "--vars", "day: tuesday")) == "applied: 10 staged, 1 updated, 9 unchanged"
        assert rows(project, "select batch_id, pipeline from public.idem_batches where target = '@m'::regclass order by applied_at") == [
            ("load monday", "shop"), ("load tuesday", "shop")]

    def test_batch_id_that_is_missing(self, project):
        write(project, "m", MODEL % ("", "{{ target.schema }}.src"))
        run(project)
        for batch_id in ("{{ var('day', none) }}", "{{ var('day', ' ') }}"):
            write(project, "m", MODEL % (f', batch_id="{batch_id}"', "{{ target.schema }}.src"))
            said = message(run(project, passes=False))
            assert "the config batch_id of" in said
            assert "comes to nothing" in said

    def test_on_mismatch(self, project):
        self.merge(project, ", batch_id='today', on_mismatch='apply'", "update @src set v = 'new' where id = 1")
        project.run_sql(f"update {project.test_schema}.src set v = 'newer' where id = 1")
        assert message(run(project)) == "reapplied: 10 staged, 1 updated, 9 unchanged"

    def test_columns_of_any_name(self, project):
        project.run_sql(f'alter table {project.test_schema}.src rename v to "Val""ue \'s"')
        write(project, "m", """
            {{ config(materialized='incremental', unique_key=['ID', '"Val""ue \\'s"'], merge_update_columns=['N'],
                      indexes=[{'columns': ['id', '"Val""ue \\'s"'], 'unique': true}]) }}
            select * from {{ target.schema }}.src""")
        run(project)
        project.run_sql(f"update {project.test_schema}.src set n = 0 where id = 1")
        assert message(run(project)) == "applied: 10 staged, 1 updated, 9 unchanged"

    def test_needs_a_key(self, project):
        write(project, "m", "{{ config(materialized='incremental') }} select * from {{ target.schema }}.src")
        run(project)
        assert "needs the config unique_key" in message(run(project, passes=False))
        write(project, "m", "{{ config(materialized='incremental', unique_key='id', version_cols='t') }} select * from {{ target.schema }}.src")
        assert "version_cols names the column t, which" in message(run(project, passes=False))

    def test_a_column_that_is_gone(self, project):
        write(project, "m", MODEL % ("", "{{ target.schema }}.src"))
        run(project)
        write(project, "m", (MODEL % ("", "{{ target.schema }}.src")).replace(", n from", " from"))
        assert "does not return these columns" in message(run(project, passes=False))
        write(project, "m", (MODEL % (", on_schema_change='append_new_columns'", "{{ target.schema }}.src")).replace(", n from", " from"))
        assert message(run(project)) == "applied: 10 staged, 10 unchanged"

    def test_assert_idempotent(self, project):
        verify = ("--vars", "idem_assert_idempotent: true")
        write(project, "m", MODEL % ("", "{{ target.schema }}.src"))
        run(project)
        run(project, *verify)
        before = images(project)
        write(project, "m", (MODEL % ("", "{{ target.schema }}.src")).replace(" n from", " n + (random() * 1000000)::int as n from"))
        assert "is not idempotent: to run it again now would change rows (dry_run: 10 staged, " in message(run(project, *verify, passes=False))
        assert images(project) == before
        assert batches(project) == []


class TestPartOfTheBatch(Source):
    """With --empty a model has no rows. That they are the batch is then neither recorded nor found out."""

    @pytest.fixture(scope="class")
    def models(self):
        return {"s.sql": "select * from {{ target.schema }}.src",
                "m.sql": MODEL % (", batch_id='today', on_mismatch='skip'", "{{ ref('s') }}")}

    def test_empty(self, project):
        run(project)
        assert message(run(project, "--empty", "--select", "m")) == "applied: 0 staged"
        assert batches(project) == []
        project.run_sql(f"update {project.test_schema}.src set v = 'new' where id = 1")
        assert message(run(project, "--select", "m")) == "applied: 10 staged, 1 updated, 9 unchanged"
        assert message(run(project, "--empty", "--select", "m")) == "applied: 0 staged"
        assert message(run(project, "--select", "m")) == "replayed: 10 staged, 1 updated, 9 unchanged"


class TestPredicates(Project):
    @pytest.fixture(scope="class")
    def models(self):
        return {"m.sql": """
            {{ config(materialized='incremental', unique_key=['day', 'id'],
                      incremental_predicates=["DBT_INTERNAL_DEST.day >= date '2026-11-01'", "dbt_internal_dest.id > 0"]) }}
            select day, id, v from {{ target.schema }}.src"""}

    def test_partitions_are_pruned(self, project):
        cursor = connect().cursor()
        cursor.execute("""
            create table @m (day date, id int, v text, primary key (day, id)) partition by range (day);
            create table @m_09 partition of @m for values from ('2026-09-01') to ('2026-10-01');
            create table @m_10 partition of @m for values from ('2026-10-01') to ('2026-11-01');
            create table @m_11 partition of @m for values from ('2026-11-01') to ('2026-12-01');
            insert into @m select date '2026-09-01' + i % 91, i, 'v' || i from generate_series(1, 9000) i;
            create table @src as select * from @m where day >= '2026-11-01';
            update @src set v = 'new' where id < 100;
            insert into @src values ('2026-09-01', 91, 'hidden');
            analyze @m, @src""".replace("@", f"{project.test_schema}."))
        cursor.execute("select pg_stat_force_next_flush()")
        cursor.execute("select pg_stat_reset()")
        updated = value(project, "select count(*) from @src where v in ('new', 'hidden')")
        said = message(run(project))
        assert said == f"applied: {value(project, 'select count(*) from @src')} staged, {updated} updated, " \
            f"{value(project, 'select count(*) from @src') - updated} unchanged"
        # what the predicate hides is found all the same
        assert rows(project, "select v from @m where day = '2026-09-01' and id = 91") == [("hidden",)]

        read = "select relname, seq_scan, idx_scan from pg_stat_user_tables where relid = '@m_{}'::regclass"
        until(lambda: sum(rows(project, read.format("11"))[0][1:]) > 0)
        assert rows(project, read.format("10")) == [("m_10", 0, 0)]
        # the one row, looked up and written
        name, whole, by_index = rows(project, read.format("09"))[0]
        assert (whole, by_index <= 3) == (0, True)

    def test_no_source(self, project):
        project.run_sql(f"drop table if exists {project.test_schema}.m")
        write(project, "m", """
            {{ config(materialized='incremental', unique_key='day',
                      incremental_predicates=["DBT_INTERNAL_SOURCE.v > DBT_INTERNAL_DEST.v"]) }}
            select current_date as day, 'x' as v""")
        run(project)
        assert "can name columns of DBT_INTERNAL_DEST only" in message(run(project, passes=False))


class TestIndex(Source):
    @pytest.fixture(scope="class")
    def models(self):
        return {"m.sql": "{{ config(materialized='incremental', unique_key='id') }} select id, v, n from {{ target.schema }}.src"}

    def indexes(self, project):
        return rows(project, "select pg_get_indexdef(indexrelid) from pg_index where indrelid = '@m'::regclass")

    def test_created_where_it_is_missing(self, project):
        run(project)
        assert self.indexes(project) == []
        assert message(run(project)) == "applied: 10 staged, 10 unchanged"
        assert self.indexes(project) == [(f"CREATE UNIQUE INDEX m_id_idx ON {project.test_schema}.m USING btree (id)",)]
        run(project)
        assert len(self.indexes(project)) == 1

    def test_not_on_a_large_table(self, project):
        run(project)
        said = message(run(project, "--vars", "idem_create_index_below: 1 kB", passes=False))
        assert "is too large" in said
        assert f'create unique index concurrently on "postgres"."{project.test_schema}"."m" ("id")' in said
        assert self.indexes(project) == []

    @pytest.mark.parametrize("fault", ["insert into @src values (1, 'again', 0)", "update @src set id = null where id = 1"])
    def test_faults_are_shown(self, project, fault):
        project.run_sql(fault.replace("@", f"{project.test_schema}."))
        run(project)
        said = message(run(project, passes=False))
        assert "has rows without a key, or several with the same one" in said
        # the query that the error ends with finds it
        query = said.split("lists them:\n")[1].split("> in macro")[0]
        assert len(project.run_sql(query, fetch="all")) == 1
        assert self.indexes(project) == []

    def test_two_runs_at_once(self, project):
        run(project)
        # Both find no index, and go on at the same time; then both have to wait for a row.
        for blocking in ("lock table @m in row exclusive mode", "select from @m where id = 5 for update"):
            project.run_sql(f"update {project.test_schema}.src set v = v || 'new'")
            blocker = connect()
            blocker.autocommit = False
            blocker.cursor().execute(blocking.replace("@", f"{project.test_schema}."))
            runs = [start_dbt(project), start_dbt(project)]
            until(lambda: waiting(project) == 2 or any(r.poll() is not None for r in runs))
            assert [r.poll() for r in runs] == [None, None]
            blocker.commit()
            assert [r.wait() for r in runs] == [0, 0]
            assert value(project, "select count(*) from @m m join @src s using (id, v, n)") == 10
        assert len(self.indexes(project)) == 1
        # Each content was merged by one run, and found by the other.
        assert [batch[1:] for batch in batches(project)] == [(2, 0, 0, 10), (2, 0, 0, 10)]


class TestMicrobatch(Project):
    @pytest.fixture(scope="class")
    def models(self):
        return {
            "visits.sql": "{{ config(materialized='view', event_time='at') }} select * from {{ target.schema }}.raw_visits",
            "m.sql": """
                {{ config(materialized='incremental', incremental_strategy='microbatch', unique_key='id', event_time='at',
                          batch_size='day', begin='2026-11-01', indexes=[{'columns': ['id'], 'unique': true}],
                          on_schema_change='append_new_columns') }}
                select * from {{ ref('visits') }}"""}

    @pytest.fixture(autouse=True)
    def source(self, project, install):
        project.run_sql(f"""
            drop table if exists {project.test_schema}.m, {project.test_schema}.raw_visits cascade;
            create table {project.test_schema}.raw_visits (id int, at timestamp, page text);
            insert into {project.test_schema}.raw_visits values (1, '2026-11-01 08:00', 'home'), (2, '2026-11-02 08:00', 'home')""")

    def test_late_rows(self, project):
        late = f"insert into {project.test_schema}.raw_visits values "
        first = ("--event-time-start", "2026-11-01", "--event-time-end", "2026-11-03")
        again = ("--event-time-start", "2026-11-02", "--event-time-end", "2026-11-03")
        run(project, *first)
        second = "2026-11-02T00:00:00+00:00/2026-11-03T00:00:00+00:00"
        # The first batch of a model creates the table, and is none of ours.
        assert batches(project) == [(second, 1, 1, 0, 0)]

        # late rows, three times: new ones, and one that was corrected
        project.run_sql(late + "(3, '2026-11-02 09:00', 'home')")
        run(project, *again)
        assert batches(project) == [(second, 2, 1, 0, 1)]
        project.run_sql(late + f"(4, '2026-11-02 10:00', 'home'); update {project.test_schema}.raw_visits set page = 'shop' where id = 2")
        run(project, *again)
        assert batches(project) == [(second, 3, 1, 1, 1)]
        project.run_sql(late + "(5, '2026-11-02 23:59', 'home'), (6, '2026-11-03 00:00', 'other day')")
        run(project, *again)
        assert batches(project) == [(second, 4, 1, 0, 3)]
        assert rows(project, "select id, page from @m order by id") == [
            (1, "home"), (2, "shop"), (3, "home"), (4, "home"), (5, "home")]

        # and once more without any: the interval is compared, and nothing is written
        before = images(project)
        run(project, *again)
        assert batches(project) == [(second, 5, 0, 0, 4)]
        assert images(project) == before

    # Who runs an interval again wants what its source has, whatever the ledger knows.
    days = ("--event-time-start", "2026-11-01", "--event-time-end", "2026-11-03")

    def test_rows_changed_by_hand(self, project):
        run(project, *self.days)
        run(project, *self.days)
        project.run_sql(f"delete from {project.test_schema}.m where id = 1; update {project.test_schema}.m set page = 'damaged'")
        run(project, *self.days)
        assert rows(project, "select id, page from @m order by id") == [(1, "home"), (2, "home")]

    def test_new_column(self, project):
        run(project, *self.days)
        run(project, *self.days)
        project.run_sql(f"alter table {project.test_schema}.raw_visits add device text default 'phone'")
        run(project, *self.days)
        assert rows(project, "select id, device from @m order by id") == [(1, "phone"), (2, "phone")]


class TestAutocommit(TestIndex):
    """With this in the profile, each statement is a transaction of its own."""

    @pytest.fixture(scope="class")
    def dbt_profile_target(self, dbt_profile_target):
        return {**dbt_profile_target, "autocommit": True}


class TestKill(Source):
    def test_kill_and_run_again(self, project):
        run(project)
        project.run_sql(f"update {project.test_schema}.src set v = 'new';"
                        f"insert into {project.test_schema}.src select i, 'v' || i, i from generate_series(11, 20) i")
        before = images(project)
        # The merge gets as far as row 5.
        blocker = connect()
        blocker.autocommit = False
        blocker.cursor().execute(f"select from {project.test_schema}.m where id = 5 for update")
        dbt = start_dbt(project)
        until(lambda: waiting(project) == 1 or dbt.poll() is not None)
        assert dbt.poll() is None
        dbt.kill()
        dbt.wait()
        blocker.rollback()
        until(lambda: value(project, "select count(*) from pg_stat_activity where application_name = 'dbt' and backend_xid is not null") == 0)
        assert images(project) == before
        assert batches(project) == []
        assert message(run(project)) == "applied: 20 staged, 10 inserted, 10 updated"
        assert message(run(project)) == "reapplied: 20 staged, 20 unchanged"


class TestOtherSchema(Source):
    """The extension in a schema that search_path does not have."""

    @pytest.fixture(scope="class")
    def dbt_profile_target(self, dbt_profile_target):
        cursor = connect().cursor()
        cursor.execute("drop database if exists idem_dbt_test")
        cursor.execute("create database idem_dbt_test")
        return {**dbt_profile_target, "dbname": "idem_dbt_test"}

    def test_extension_is_found(self, project):
        run(project)
        assert "the extension is missing in this database" in message(run(project, passes=False))
        project.run_sql('create schema "Idem Ext"; create extension idempotent_ingest schema "Idem Ext"')
        assert message(run(project)) == "applied: 10 staged, 10 unchanged"


class TestExample:
    def test_example(self, tmp_path):
        """The example project, as it is, by the command line."""
        shutil.copytree(PACKAGE, tmp_path / "dbt")

        def dbt(*args):
            command = subprocess.run([Path(sys.executable).with_name("dbt"), "--no-use-colors", *args],
                                     cwd=tmp_path / "dbt/example", capture_output=True, text=True)
            assert command.returncode == 0, command.stdout
            return command.stdout

        days = ("--event-time-start", "2026-11-18", "--event-time-end", "2026-11-21")
        dbt("deps")
        dbt("build", "--full-refresh", *days)
        said = dbt("build", *days)
        assert "[applied: 5 staged, 5 unchanged in " in said
        assert "[reapplied: 1 staged, 1 unchanged in " in said
        assert "Completed successfully" in dbt("run", "--vars", "idem_assert_idempotent: true", *days)
