"""Assertions of the shared module show their values."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.chaos.launches")
