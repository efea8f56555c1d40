"""Shared by all tests: the record builders of tests/libslo/ are importable everywhere, hypothesis is quick and repeatable."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# pytest puts this directory on the path, where its libslo/ and tools/ would be taken for the packages under test.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
sys.path.append(str(_HERE / "libslo"))

settings.register_profile(
    "repo", deadline=None, max_examples=60, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
# To look further: pytest --hypothesis-profile=deep
settings.register_profile("deep", settings.get_profile("repo"), max_examples=2000, derandomize=False)
settings.load_profile("repo")
