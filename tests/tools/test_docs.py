"""The pages say what the tools say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_pages_hold_the_real_help() -> None:
    """docs/tools/*.md is what `make docs` would write now."""
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "make_pages.py"), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere() -> None:
    """Every relative link of README and docs names a file or folder that exists."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_make_lists_its_targets() -> None:
    """A bare `make` lists the two commands of the README and exits 0."""
    done = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True)
    assert re.search(r"^demo\s+\S", done.stdout, re.M)
    assert re.search(r"^test\s+\S", done.stdout, re.M)
