"""``python -m docs.generator [--check]``: write what is generated, or say what is stale.

Owns: which page comes from where, and the marks around a generated part of a written page:
``<!-- generated: name -->`` up to ``<!-- end -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from docs.generator import api, commands, errors, lifecycle, parity, pictures, settings, states

DOCS = Path(__file__).resolve().parents[1]

PAGES: dict[str, Callable[[], str]] = {
    "reference/api.md": api.page,
    "reference/settings.md": settings.page,
    "reference/commands.md": commands.page,
    "reference/errors.md": errors.page,
    "reference/lifecycle-events.md": lifecycle.page,
}
"""Whole pages, by their path below ``docs``."""

PICTURES: dict[str, Callable[[], str]] = {
    "pictures/agent_loop.svg": lambda: pictures.live("agent_loop", "review", pictures.REVIEWED, "running"),
    "pictures/order.svg": lambda: pictures.live("order", "fulfil", pictures.UNDONE, "rolling_back"),
}
"""Pictures, by their path below ``docs``."""

PARTS: dict[str, Callable[[], str]] = {
    "states": states.diagram,
    "statuses": states.table,
    "diagram approval": lambda: pictures.mermaid("approval", "purchase"),
    "diagram agent_loop": lambda: pictures.mermaid("agent_loop", "review"),
    "diagram nightly_report": lambda: pictures.mermaid("nightly_report", "nightly_report"),
    "diagram order": lambda: pictures.mermaid("order", "fulfil"),
    "promises": parity.table,
    "unshown": parity.missing,
    "text agent_loop": lambda: pictures.text("agent_loop", "review"),
}
"""Parts of written pages, by the name in their mark."""

_PART = re.compile(r"(<!-- generated: (?P<name>[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTE = "<!-- Written by `make docs` from the code; change it there. -->\n\n"


def wanted() -> Iterator[tuple[Path, str]]:
    """Every page that holds something generated, with the text it should have."""
    for name, write in PAGES.items():
        yield DOCS / name, NOTE + write().strip() + "\n"
    for name, write in PICTURES.items():
        yield DOCS / name, write()
    for path in sorted(DOCS.rglob("*.md")):
        if str(path.relative_to(DOCS)) not in PAGES:
            yield path, filled(path.read_text(encoding="utf-8"))


def filled(text: str) -> str:
    """A written page with its generated parts as they should be. Raises ``KeyError`` for a mark nobody knows."""
    return _PART.sub(lambda found: f"{found[1]}{PARTS[found['name']]().strip()}\n{found[3]}", text)


def stale() -> list[str]:
    """The pages that are not as the code has it, by their path below ``docs``."""
    return [
        str(path.relative_to(DOCS))
        for path, text in wanted()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str]) -> int:
    """Write the pages; with ``--check`` only say which are stale. Returns the exit status."""
    found = stale()
    if "--check" in arguments:
        click.echo("\n".join(f"stale: docs/{name}" for name in found) or "docs are as the code has it")
        return 1 if found else 0
    for path, text in wanted():
        if str(path.relative_to(DOCS)) in found:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            click.echo(f"wrote docs/{path.relative_to(DOCS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
