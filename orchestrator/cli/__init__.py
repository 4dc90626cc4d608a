"""The command line: ``orchestrator migrate | dev | demo | workflows … | instances … | schedules … | control … |
completion``.

Owns: the outermost frame, and what an error becomes: one line ``code: message``, and an exit status. Does not own
the commands (a file per group) nor how an answer is printed (``answers``). Heavy libraries are imported by the
commands that need them, when they run.

Exit status: 0 done, 1 refused, 2 usage, 3 a service is away, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from orchestrator.cli import completion, diagrams, instances, local, schedules, schema, steering, workflows
from orchestrator.cli.answers import code_of, printable
from orchestrator.cli.control import commands as control
from orchestrator.errors import OrchestratorError, ServiceUnavailable

REFUSED, USAGE, AWAY, INTERRUPTED = 1, 2, 3, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="orchestrator-celery", message="%(version)s")
def cli() -> None:
    """Durable workflows on Celery, Postgres and Redis.

    Where they are is read from ORCHESTRATOR_DATABASE_URL and ORCHESTRATOR_REDIS_URL, and which modules define
    workflows from ORCHESTRATOR_WORKFLOWS. `orchestrator dev` starts all that is needed on this machine.
    """


cli.add_command(schema.migrate)
cli.add_command(local.dev)
cli.add_command(local.demo)
cli.add_command(workflows.workflows)
workflows.workflows.add_command(diagrams.diagram)
cli.add_command(instances.instances)
instances.instances.add_command(diagrams.of_instance)
for _command in steering.COMMANDS:
    instances.instances.add_command(_command)
cli.add_command(schedules.schedules)
cli.add_command(control.control)
cli.add_command(completion.completion)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. ``arguments`` default to those of the process."""
    try:
        status = cli.main(args=arguments, prog_name="orchestrator", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (OrchestratorError, TimeoutError) as error:
        click.echo(f"{code_of(error)}: {printable(str(error))}", err=True)
        return AWAY if isinstance(error, ServiceUnavailable) else REFUSED
    return status if isinstance(status, int) else 0
