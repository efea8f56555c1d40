"""The pages say what the tools say."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click

from libslo.config import OPTION_KEYS

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


def test_an_option_of_the_configuration_is_the_same_in_every_tool() -> None:
    """What toolkit.yaml sets by the name of a parameter is one option, wherever it is: no tool has another option of that name."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    found: dict[str, set[str]] = {}
    for tool in scripts:
        commands = [importlib.import_module(f"slotools.{tool}").command]
        for command in commands:
            commands += command.commands.values() if isinstance(command, click.Group) else []
            for parameter in command.params:
                found.setdefault(parameter.name or "", set()).add(parameter.opts[0])
    assert found.keys() >= OPTION_KEYS.keys()
    assert {name: options for name, options in found.items() if name in OPTION_KEYS and len(options) > 1} == {}


def test_make_lists_its_targets() -> None:
    """A bare `make` lists the two commands of the README and exits 0."""
    done = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True)
    assert re.search(r"^demo\s+\S", done.stdout, re.M)
    assert re.search(r"^test\s+\S", done.stdout, re.M)
