"""Shared by all tests: the record builders of tests/libslo/builders.py are importable everywhere, hypothesis is quick and repeatable."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "libslo"))

settings.register_profile(
    "repo", deadline=None, max_examples=60, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repo")
