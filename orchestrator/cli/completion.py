"""``orchestrator completion``: what makes a shell complete our commands.

Owns: the command. Does not own the scripts, which are click's, nor what is completed (``addressed``).
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_ORCHESTRATOR_COMPLETE"
"""What the script sets when it asks; click derives it from the program's name."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL; load it from the shell's start-up file.

    bash: `eval "$(orchestrator completion bash)"` in ~/.bashrc; zsh the same in ~/.zshrc; fish: `orchestrator
    completion fish | source` in ~/.config/fish/config.fish. Names of workflows are completed from
    ORCHESTRATOR_WORKFLOWS.
    """
    of_shell = get_completion_class(shell)
    if of_shell is None:
        raise click.UsageError(f"click has no completion for {shell}")
    root = ctx.find_root()
    click.echo(of_shell(root.command, {}, root.info_name or "orchestrator", VARIABLE).source())
