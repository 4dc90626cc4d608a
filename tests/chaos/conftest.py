"""Marks every test here, and says at the end of a soak what was done."""

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import FIGURES, SOAK

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.chaos)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not FIGURES.runs or not SOAK:
        return
    terminalreporter.section("chaos")
    for line in FIGURES.lines():
        terminalreporter.write_line(line)
