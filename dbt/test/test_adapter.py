"""The tests of incremental models that dbt publishes for adapters, with our strategy.

A test that cannot pass says why. These are strict: one that passes all the same
is a failure.
"""

import pytest
from dbt.tests.adapter.basic.test_incremental import BaseIncremental, BaseIncrementalNotSchemaChange
from dbt.tests.adapter.constraints.test_constraints import BaseIncrementalConstraintsRollback
from dbt.tests.adapter.grants.test_incremental_grants import BaseIncrementalGrants
from dbt.tests.adapter.incremental import test_incremental_merge_exclude_columns as exclude_columns
from dbt.tests.adapter.incremental.test_incremental_merge_exclude_columns import BaseMergeExcludeColumns
from dbt.tests.adapter.incremental.test_incremental_microbatch import BaseMicrobatch
from dbt.tests.adapter.incremental.test_incremental_on_schema_change import BaseIncrementalOnSchemaChange
from dbt.tests.adapter.incremental.test_incremental_predicates import BaseIncrementalPredicates
from dbt.tests.adapter.incremental.test_incremental_unique_id import BaseIncrementalUniqueKey

from conftest import Project


def cannot(reason, function):
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)(function)


NO_KEY = "appends, without unique_key: there is nothing to merge by"
TWICE = "the table has two rows with one key, so that it cannot have the unique index"


class TestUniqueKey(Project, BaseIncrementalUniqueKey):
    # The seed has a row without city: a unique index of dbt's allows it.
    configs = {
        name: {"+indexes": [{"columns": ["state", "county", "city"], "unique": True}]}
        for name in ("trinary_unique_key_list", "nontyped_trinary_unique_key_list")
    }

    test__empty_unique_key_list = cannot(NO_KEY, BaseIncrementalUniqueKey.test__empty_unique_key_list)
    test__no_unique_keys = cannot(NO_KEY, BaseIncrementalUniqueKey.test__no_unique_keys)
    test__empty_str_unique_key = cannot(NO_KEY, BaseIncrementalUniqueKey.test__empty_str_unique_key)
    test__one_unique_key = cannot(TWICE, BaseIncrementalUniqueKey.test__one_unique_key)
    test__unary_unique_key_list = cannot(TWICE, BaseIncrementalUniqueKey.test__unary_unique_key_list)
    test__duplicated_unary_unique_key_list = cannot(
        TWICE, BaseIncrementalUniqueKey.test__duplicated_unary_unique_key_list)


class TestOnSchemaChange(Project, BaseIncrementalOnSchemaChange):
    pass


class TestMergeExcludeColumns(Project, BaseMergeExcludeColumns):
    @pytest.fixture(scope="class")
    def models(self):
        model = exclude_columns.models__merge_exclude_columns_sql
        assert "incremental_strategy='merge'" in model
        return {"merge_exclude_columns.sql": model.replace("incremental_strategy='merge'", "incremental_strategy='idem_merge'")}


class TestPredicates(Project, BaseIncrementalPredicates):
    configs = {"+incremental_predicates": ["id != 2"]}

    test__incremental_predicates = cannot(
        "expects a second row of the key that the predicate hides; ours finds the first one and updates it",
        BaseIncrementalPredicates.test__incremental_predicates)


class TestMicrobatch(Project, BaseMicrobatch):
    pass


class TestIncremental(Project, BaseIncremental):
    configs = {"+unique_key": "id"}

    @pytest.fixture(scope="class")
    def project_config_update(self):
        return {"models": {"test": {"+incremental_strategy": "idem_merge", **self.configs}}}


class TestNotSchemaChange(Project, BaseIncrementalNotSchemaChange):
    pass


class TestGrants(Project, BaseIncrementalGrants):
    configs = {"+unique_key": "fun"}


class TestConstraintsRollback(Project, BaseIncrementalConstraintsRollback):
    # Not id, whose constraint is to be violated: that would be a key without value.
    configs = {"+unique_key": "color"}
