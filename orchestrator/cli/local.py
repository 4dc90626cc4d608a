"""``orchestrator dev`` and ``orchestrator demo``: everything on this machine.

Owns: the commands, and what ``dev`` tells. Does not own what runs (``dev``, ``demo``).
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.answers import Document, print_json
from orchestrator.errors import OrchestratorError, ServiceUnavailable

if TYPE_CHECKING:
    from orchestrator.dev.up import Stack

_EXPORTED = ("ORCHESTRATOR_DATABASE_URL", "ORCHESTRATOR_REDIS_URL", "ORCHESTRATOR_WORKFLOWS")


@click.command()
@click.option(
    "--root", type=click.Path(file_okay=False, path_type=Path), default=Path(".local"), show_default=True,
    help="Folder of the data and the logs.",
)  # fmt: skip
@click.option("--workers", type=click.IntRange(min=0), default=1, show_default=True, help="Worker processes.")
@click.option("--flower/--no-flower", default=True, help="Start Flower, if it is installed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document when all is up.")
def dev(root: Path, workers: int, flower: bool, as_json: bool) -> int:
    """Start Postgres, Valkey, a worker and Flower on this machine, and keep them up until Ctrl-C.

    A second one in the same folder shares the servers of the first. The workers serve ORCHESTRATOR_WORKFLOWS, or
    the demo's.
    """
    from orchestrator.dev import up

    plan = up.Plan(root=root.absolute(), environ=os.environ, workers=workers, flower=flower)
    if not as_json:
        click.echo("Starting …")
    is_up = False
    try:
        with up.running(plan) as stack:
            is_up = True
            if as_json:
                print_json(_document(stack))
            else:
                _tell(stack, flower)
            stack.watch(lambda text: click.echo(text, err=True))
            raise ServiceUnavailable(
                "The servers have stopped: the process that started them ended, or they failed."
            )
    except KeyboardInterrupt:
        if not is_up:
            raise
        click.echo("Everything is stopped.", err=True)
        return 0
    except OrchestratorError as error:
        if as_json and not is_up:
            print_json({"error": {"code": error.code, "message": str(error)}})
        raise


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document at the end.")
def demo(as_json: bool) -> int:
    """Play four bank transfers on throwaway servers: success, retries, rollback, and a worker killed in mid-step."""
    from orchestrator.demo.__main__ import main

    return main(as_json=as_json)


def _document(stack: Stack) -> Document:
    pair = stack.servers
    return {
        "database_url": stack.environ["ORCHESTRATOR_DATABASE_URL"],
        "redis_url": stack.environ["ORCHESTRATOR_REDIS_URL"],
        "workflows": stack.environ["ORCHESTRATOR_WORKFLOWS"],
        "attached": not pair.owned,
        "data": str(pair.home),
        "revision": {"before": stack.revisions[0], "after": stack.revisions[1]},
        "flower_url": stack.flower_url,
        "programs": [{"name": p.name, "pid": p.pid, "log": str(p.log)} for p in stack.programs],
    }


def _tell(stack: Stack, flower_wanted: bool) -> None:
    document, environ = _document(stack), stack.environ
    shared = ", started by another process" if document["attached"] else ""
    before, after = stack.revisions
    lines = [
        f"Postgres  {environ['ORCHESTRATOR_DATABASE_URL']}{shared}",
        f"          revision {after}" + ("" if before == after else f", migrated from {before or 'nothing'}"),
        f"Valkey    {environ['ORCHESTRATOR_REDIS_URL']}{shared}",
        f"Data      {document['data']}",
    ]
    lines += [f"Worker    {w.name}, pid {w.pid}, log {_near(w.log)}" for w in stack.workers]
    lines += [f"          serves {environ['ORCHESTRATOR_WORKFLOWS']}"] if stack.workers else []
    if stack.flower is not None:
        lines.append(f"Flower    {stack.flower_url}, pid {stack.flower.pid}, log {_near(stack.flower.log)}")
    elif flower_wanted:
        lines.append("Flower    is not installed: pip install 'orchestrator-celery[flower]'")
    lines += ["", "For another terminal:"]
    lines += [f"  export {name}={shlex.quote(environ[name])}" for name in _EXPORTED]
    if environ["ORCHESTRATOR_WORKFLOWS"] == "orchestrator.demo.workflows":
        order = '{"source": "alice", "target": "bob", "amount": 2500}'
        lines += [
            "",
            "Then try:",
            f"  orchestrator workflows trigger transfer '{order}' --id first",
            '  orchestrator instances send-event transfer first --type approval --payload \'{"by": "me"}\'',
            "  orchestrator instances describe transfer first",
        ]
    click.echo("\n".join([*lines, "", "Ctrl-C stops everything."]))


def _near(path: Path) -> str:
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
