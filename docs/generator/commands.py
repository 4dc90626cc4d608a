"""The command line: the help of every command, as click has it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from orchestrator.cli import cli

INTRODUCTION = """# Command line

Every command takes `--json` and then prints one JSON document; `instances subscribe` prints one JSON object per line.
`latest` stands for the newest instance wherever an ID is asked for.

| exit status | |
|---|---|
| 0 | done |
| 1 | refused: one line `code: message` on standard error (the code is that of the [error](errors.md)); with `--json` also a document `{"error": {"code", "message"}}` |
| 2 | the command was not understood |
| 3 | a service is away |
| 130 | interrupted |
"""  # noqa: E501
WIDTH = 100
HELP = ["-h", "--help"]
"""As ``orchestrator.cli.main`` has it; click keeps what a command was asked with first."""


def page() -> str:
    """The page of the commands."""
    return "\n".join(
        [INTRODUCTION, *_described(cli, click.Context(cli, info_name="orchestrator", help_option_names=HELP))]
    )


def _described(command: click.Command, ctx: click.Context) -> Iterator[str]:
    ctx.terminal_width = ctx.max_content_width = WIDTH
    yield f"## {ctx.command_path}\n\n```text\n{command.get_help(ctx)}\n```\n"
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            inner = command.commands[name]
            yield from _described(inner, click.Context(inner, info_name=name, parent=ctx))
