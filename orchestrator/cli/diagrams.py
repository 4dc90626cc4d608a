"""``orchestrator workflows diagram`` and ``orchestrator instances diagram``: what a workflow looks like, and how far an
instance has come in it.

Owns: the commands, and showing a picture in the browser. Does not own the pictures (``diagrams``), nor which graph an
instance is laid over (``monitoring.documents``).
"""

from __future__ import annotations

import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from orchestrator.cli import addressed
from orchestrator.cli.answers import Document, code_of, print_json, printable
from orchestrator.errors import OrchestratorError, UnknownWorkflow

FORMATS = ("text", "svg", "mermaid", "json")


def _options(command: Any) -> Any:
    """The options of both commands."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        click.option("--open", "show", is_flag=True, help="Show the SVG in a browser."),
        click.option("--format", "form", type=click.Choice(FORMATS), help="What to print; text by default."),
    ):
        command = option(command)
    return command


@click.command()
@addressed.workflow_argument
@_options
def diagram(name: str, form: str | None, show: bool, as_json: bool) -> None:
    """Draw workflow NAME from its source; nothing is run, and no server is needed."""
    chosen = _chosen(form, show, as_json)
    from orchestrator.cli.registered import by_name

    with _refusals(as_json):
        graph = by_name(name).diagram()
    _answer(graph, graph, None, chosen, name if show else None)


@click.command("diagram")
@addressed.instance_arguments
@_options
def of_instance(name: str, id: str, form: str | None, show: bool, as_json: bool) -> None:
    """Draw workflow NAME with what instance ID has done in it: done, running, failed, undone, not come to.

    Needs no code of the workflow, where a worker that knows it has run. JSON has both graph and trace.
    """
    chosen = _chosen(form, show, as_json)
    from orchestrator.client.orchestrator import current
    from orchestrator.monitoring.documents import trace

    with _refusals(as_json):
        instance = addressed.instance(name, id)
        document = trace.trace(current(), name, instance.id)
        if document["graph"] is None:
            raise UnknownWorkflow(
                f"There is no diagram of workflow {name!r} version {document['version']!r}: no worker that knows it "
                "has stored one."
            )
    _answer(document, document["graph"], document["trace"], chosen, f"{name}-{instance.id}" if show else None)
    if chosen == "text" and not show:
        for each in document["trace"]["rest"]:
            state = each["state"].replace("_", " ")
            click.echo(printable(f"not in the picture: {each['key']} ({state})"))


def _chosen(form: str | None, show: bool, as_json: bool) -> str:
    """The format that the options ask for."""
    if show and (as_json or form not in (None, "svg")):
        raise click.UsageError("--open shows the SVG; it goes with no other format")
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} do not go together")
    return "json" if as_json else form or "text"


@contextmanager
def _refusals(as_json: bool) -> Iterator[None]:
    """With ``--json`` a refusal is a document too."""
    try:
        yield
    except OrchestratorError as error:
        if as_json:
            print_json({"error": {"code": code_of(error), "message": str(error)}})
        raise


def _answer(
    document: Document, graph: Document, trace: Document | None, form: str, shown: str | None
) -> None:
    """Print what was asked for, or show it in a browser as ``shown``."""
    if shown is not None:
        _show(shown, _drawn(graph, trace, "svg"))
    elif form == "json":
        print_json(document)
    else:
        click.echo(_drawn(graph, trace, form), nl=False)


def _drawn(graph: Document, trace: Document | None, form: str) -> str:
    from orchestrator.diagrams.render.mermaid import mermaid
    from orchestrator.diagrams.render.svg import svg
    from orchestrator.diagrams.render.text import text

    drawn = {"text": text, "svg": svg, "mermaid": mermaid}[form](graph, trace)
    return printable(drawn) if form == "text" else drawn


def _show(name: str, picture: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-diagram-"))
    path = folder / f"{name}.svg"
    path.write_text(picture, encoding="utf-8")
    click.echo(str(path))
    if not webbrowser.open(path.as_uri()):
        click.echo("There is no browser to show it in.", err=True)
