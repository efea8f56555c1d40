"""Real-kernel tests: skipped with a reason where there is no kernel for them, failed instead under SLO_REQUIRE_KERNEL=1."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from kernel_harness import Namespace, obstacle


@pytest.fixture(scope="session")
def kernel() -> None:
    """Asked for by every test that loads programs."""
    found = obstacle()
    if found and os.environ.get("SLO_REQUIRE_KERNEL") == "1":
        pytest.fail(f"SLO_REQUIRE_KERNEL=1, but: {found}")
    if found:
        pytest.skip(found)


@pytest.fixture
def namespace(kernel: None) -> Iterator[Namespace]:
    """One fresh network namespace."""
    made = Namespace()
    yield made
    made.close()
