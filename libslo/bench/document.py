"""A small document: headings, paragraphs, tables and figures, as Markdown and as one HTML page that needs nothing else. Pure."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Block", "Figure", "Heading", "Paragraph", "Table", "as_html", "as_markdown"]


@dataclass(frozen=True)
class Heading:
    """A section's heading."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """One paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table of texts; all but the first `left` columns are numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


@dataclass(frozen=True)
class Figure:
    """A drawing and what it shows; Markdown leaves it out."""

    svg: str
    caption: str


Block = Heading | Paragraph | Table | Figure

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1c1f; background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.6rem }} h2 {{ font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d7dbe0 }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }}
th, td {{ padding: .2rem .7rem; border-bottom: 1px solid #e5e7eb; text-align: right; white-space: nowrap }}
th {{ background: #f3f4f6 }} .left {{ text-align: left; white-space: normal }}
figure {{ margin: 1.2rem 0 }} svg {{ max-width: 100%; height: auto; background: #fff }} figcaption {{ color: #4b5563; font-size: .9rem }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def as_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The document without its figures, and without sections of figures only."""
    texts = [block for block in blocks if not isinstance(block, Figure)]
    told = [block for i, block in enumerate(texts) if not isinstance(block, Heading) or not _is_heading(texts[i + 1 : i + 2])]
    return "\n".join([f"# {title}", "", *(line for block in told for line in _markdown(block))]).rstrip() + "\n"


def _is_heading(blocks: Sequence[Block]) -> bool:
    """Whether the next block opens another section: what was above it had figures only."""
    return bool(blocks) and isinstance(blocks[0], Heading)


def _markdown(block: Block) -> Iterator[str]:
    if isinstance(block, Heading):
        yield from (f"## {block.text}", "")
    elif isinstance(block, Paragraph):
        yield from (block.text, "")
    elif isinstance(block, Table):
        rule = ["---"] * block.left + ["---:"] * (len(block.header) - block.left)
        for row in (block.header, rule, *block.rows):
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        yield ""


def as_html(title: str, blocks: Sequence[Block]) -> str:
    """The whole document."""
    return _PAGE.format(title=html.escape(title), body="\n".join(map(_html, blocks)))


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{html.escape(block.text)}</h2>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Figure):
        return f"<figure>\n{block.svg}\n<figcaption>{html.escape(block.caption)}</figcaption>\n</figure>"
    head = _row("th", block.header, block.left)
    return (
        f"<table>\n<thead>{head}</thead>\n<tbody>\n" + "\n".join(_row("td", row, block.left) for row in block.rows) + "\n</tbody>\n</table>"
    )


def _row(tag: str, cells: Sequence[str], left: int) -> str:
    opened = [f'<{tag} class="left">'] * left + [f"<{tag}>"] * (len(cells) - left)
    texts = (f"{start}{html.escape(cell)}</{tag}>" for start, cell in zip(opened, cells, strict=True))
    return f"<tr>{''.join(texts)}</tr>"
