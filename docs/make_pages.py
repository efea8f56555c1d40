"""Write docs/tools/<tool>.md from what every tool's --help says; with --check, only say which page is out of step."""

from __future__ import annotations

import importlib
import inspect
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent


def page(tool: str) -> str:
    """The page of one tool: its module's docstring, then the real --help."""
    module = importlib.import_module(f"slotools.{tool}")
    about = inspect.getdoc(module) or ""
    return f"# {tool}\n\n{about}\n" + "".join(_help(module.command, tool, path) for path in _paths(module.command))


def _paths(command: click.Command) -> Iterator[list[str]]:
    """The command itself, then its commands, theirs after each."""
    yield []
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from ([name, *path] for path in _paths(each))


def _help(command: click.Command, tool: str, path: list[str]) -> str:
    text = CliRunner().invoke(command, [*path, "--help"], prog_name=tool, terminal_width=100, color=False).output.rstrip()
    return f"\n```text\n$ {' '.join([tool, *path])} --help\n{text}\n```\n"


def pages() -> dict[Path, str]:
    """What every page should hold."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return {ROOT / "docs" / "tools" / f"{tool}.md": page(tool) for tool in scripts}


def main() -> int:
    """Write the pages, or check them."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of step with --help\n  try: make docs", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pages()[path])
    print(f"{len(stale)} of {len(pages())} pages written", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
