"""The golden corpus: workflows and their graphs, side by side in Markdown.

Owns: reading and writing ``golden/*.md``. A shape is a heading (the name of the workflow), Python blocks (the first is
the module ``flows``, others say which module they are) and a JSON block, in which a step's empty body and default
configuration are left out. ``python -m tests.unit.diagrams.shapes`` writes the graphs anew: read the difference.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.diagrams.parser import parse
from orchestrator.diagrams.parsing.sources import Source

GOLDEN = Path(__file__).parent / "golden"
DEFAULT = {"retries": {"limit": 5, "delay": "10 seconds", "backoff": "exponential"}, "timeout": "10 minutes"}
WIDTH = 118

_SHAPE = re.compile(r"^## (\w+)\n(.*?)^```json\n(.*?)^```$", re.M | re.S)
_BLOCK = re.compile(r"^```python ?([\w.]*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Shape:
    name: str
    modules: dict[str, str]
    expected: Any

    def graph(self) -> dict[str, Any]:
        def find(name: str) -> Source | None:
            if name in self.modules:
                package = any(other.startswith(f"{name}.") for other in self.modules)
                return Source(name, self.modules[name], package)
            return None

        home = next(iter(self.modules))
        return parse(Source(home, self.modules[home]), self.name, find=find)


def shapes() -> list[Shape]:
    """Every shape, in the order of the files."""
    found = []
    for path in sorted(GOLDEN.glob("*.md")):
        for name, blocks, expected in _SHAPE.findall(path.read_text(encoding="utf-8")):
            modules = {module or "flows": source for module, source in _BLOCK.findall(blocks)}
            found.append(Shape(name, modules, json.loads(expected or "null")))
    return found


def shortened(document: Any) -> Any:
    """A graph as it stands in the corpus."""
    if isinstance(document, list):
        return [shortened(each) for each in document]
    if not isinstance(document, dict):
        return document
    short = {key: shortened(value) for key, value in document.items()}
    if short.get("type") == "step_do":
        if short["config"] == DEFAULT:
            del short["config"]
        if short["nodes"] == []:
            del short["nodes"]
    return short


def written(value: Any, margin: str = "") -> str:
    """JSON that people can read: what fits stands on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(margin) + len(flat) <= WIDTH or not isinstance(value, (list, dict)) or not value:
        return flat
    inner = margin + "  "
    if isinstance(value, list):
        lines = [written(each, inner) for each in value]
        opening, closing = "[]"
    else:
        lines = [f"{json.dumps(key)}: {written(each, inner)}" for key, each in value.items()]
        opening, closing = "{}"
    return f"{opening}\n{inner}" + f",\n{inner}".join(lines) + f"\n{margin}{closing}"


def rewrite() -> None:
    """Write the graphs of all shapes anew."""
    known = {shape.name: shape for shape in shapes()}
    for path in sorted(GOLDEN.glob("*.md")):

        def anew(match: re.Match[str]) -> str:
            graph = written(shortened(known[match[1]].graph()["workflow"]))
            return f"## {match[1]}\n{match[2]}```json\n{graph}\n```"

        path.write_text(_SHAPE.sub(anew, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    rewrite()
