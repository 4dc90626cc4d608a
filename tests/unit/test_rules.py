"""Every rule of the protocols between the parts has a test that names it.

A test names its rule at the beginning of its docstring: ``protocols §9: …``.
"""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
SECTIONS = (*range(1, 8), 9, *range(11, 15), *range(16, 19), 20)


def named() -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for section in re.findall(r"protocols §(\d+)", ast.get_docstring(node) or ""):
                    found.setdefault(int(section), []).append(f"{path.relative_to(TESTS)}::{node.name}")
    return found


def test_every_section_of_the_protocols_is_named() -> None:
    tests = named()
    assert [section for section in SECTIONS if section not in tests] == []
