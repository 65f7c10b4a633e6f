"""What several test modules need."""

import pytest

pytest.register_assert_rewrite("helpers.chains", "helpers.hub_server", "helpers.task_rows")
