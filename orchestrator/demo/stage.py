"""What people see of the demo: a table per act that fills while it is played, then the ledger and the checks.

Owns: how it looks, on a terminal and off one. Does not own what is shown (``play``) or judged (``checks``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.client.records import StepRecord
from orchestrator.demo.acts import Act
from orchestrator.demo.checks import Check
from orchestrator.demo.ledger import Account

_STYLES = {"done": "green", "failed": "red", "pending": "yellow", "running": "cyan", "waiting": "magenta"}
_MARKS = {True: ("✓", "green"), False: ("✗", "bold red"), None: ("–", "yellow")}

Ran = Mapping[str, Sequence[str]]
"""By key of the step, the workers its bodies ran in."""


class Stage:
    """Writes to ``console``: tables that change on a terminal, a line per change elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._told: dict[str, str] = {}

    def say(self, text: str, style: str = "") -> None:
        """One line."""
        self._console.print(text, style=style or None, soft_wrap=True, markup=False)

    @contextmanager
    def act(self, number: int, act: Act, id: str) -> Iterator[None]:
        """Announce an act; within the block :meth:`show` shows its steps."""
        order = act.order
        self.say("")
        self.say(f"{number}. {act.title}", "bold")
        self.say(f"   {order.source} → {order.target}, {_money(order.amount)}   instance {id}", "dim")
        self._told = {}
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=10) as self._live:
            yield
        self._live = None

    def show(self, steps: Sequence[StepRecord], ran: Ran) -> None:
        """The steps as they stand now."""
        if self._live is not None:
            self._live.update(_table(steps, ran))
            return
        for step in steps:
            line = "  ".join(
                str(cell).ljust(width) for cell, width in zip(_cells(step, ran), (28, 9, 10, 0), strict=True)
            )
            if self._told.get(step.key) != line:
                self._told[step.key] = line
                self.say(f"   {line.rstrip()}")

    def ledger(self, before: Mapping[Account, int], after: Mapping[Account, int]) -> None:
        """Every account before and after."""
        table = Table(title="The ledger", title_justify="left", title_style="bold")
        table.add_column("account")
        for column in ("before", "after", "change"):
            table.add_column(column, justify="right")
        for (bank, holder), balance in after.items():
            opened = before.get((bank, holder), 0)
            table.add_row(
                f"{holder} at {bank}", _money(opened), _money(balance), f"{(balance - opened) / 100:+,.2f}"
            )
        total, now = sum(before.values()), sum(after.values())
        table.add_section()
        table.add_row("sum", _money(total), _money(now), f"{(now - total) / 100:+,.2f}", style="bold")
        self.say("")
        self._console.print(table)

    def checks(self, checks: Sequence[Check]) -> None:
        """Every check with its mark; what was found instead, where it failed."""
        self.say("")
        for check in checks:
            mark, style = _MARKS[check.ok]
            line = Text.assemble((mark, style), " ", check.text)
            if check.ok is not True and check.detail:
                line.append(f" ({check.detail})", "yellow" if check.ok is None else "red")
            self._console.print(line, soft_wrap=True)


def _table(steps: Sequence[StepRecord], ran: Ran) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 3))
    for column in ("step", "attempts", "status", "ran in"):
        table.add_column(column, header_style="dim")
    for step in steps:
        name, attempts, status, workers = _cells(step, ran)
        table.add_row(name, attempts, Text(status, _STYLES.get(step.status, "")), workers)
    return table


def _cells(step: StepRecord, ran: Ran) -> tuple[str, str, str, str]:
    name = f"undo {step.name}" if step.kind == "rollback" else step.name
    lost = [a.error.name for a in step.attempts if a.error is not None]
    note = f"{' → '.join(ran.get(step.key, ()))}" + (f"   {', '.join(lost)}" if lost else "")
    return name, str(len(step.attempts) or ""), step.status, note


def _money(cents: int) -> str:
    return f"{cents / 100:,.2f}"
