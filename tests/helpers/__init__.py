"""Helpers that several test modules share."""

import pytest

pytest.register_assert_rewrite("helpers.chains", "helpers.hub_server", "helpers.task_rows")
