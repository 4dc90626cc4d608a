"""``orchestrator workflows diagram``: what a workflow looks like.

Owns: the command, and showing a picture in the browser. Does not own the pictures (``diagrams``).
"""

from __future__ import annotations

import tempfile
import webbrowser
from pathlib import Path

import click

from orchestrator.cli import addressed
from orchestrator.cli.answers import Document, code_of, print_json
from orchestrator.errors import OrchestratorError

FORMATS = ("text", "svg", "mermaid", "json")


@click.command()
@addressed.workflow_argument
@click.option("--format", "form", type=click.Choice(FORMATS), help="What to print; text by default.")
@click.option("--open", "show", is_flag=True, help="Show the SVG in a browser.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document: the graph.")
def diagram(name: str, form: str | None, show: bool, as_json: bool) -> None:
    """Draw workflow NAME from its source; nothing is run, and no server is needed."""
    if show and (as_json or form not in (None, "svg")):
        raise click.UsageError("--open shows the SVG; it goes with no other format")
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} do not go together")
    from orchestrator.cli.registered import by_name

    try:
        graph = by_name(name).diagram()
    except OrchestratorError as error:
        if as_json:
            print_json({"error": {"code": code_of(error), "message": str(error)}})
        raise
    if show:
        _show(name, graph)
    elif as_json or form == "json":
        print_json(graph)
    else:
        click.echo(_drawn(graph, form or "text"), nl=False)


def _drawn(graph: Document, form: str) -> str:
    from orchestrator.diagrams.render.mermaid import mermaid
    from orchestrator.diagrams.render.svg import svg
    from orchestrator.diagrams.render.text import text

    return {"text": text, "svg": svg, "mermaid": mermaid}[form](graph)


def _show(name: str, graph: Document) -> None:
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-diagram-"))
    path = folder / f"{name}.svg"
    path.write_text(_drawn(graph, "svg"), encoding="utf-8")
    click.echo(str(path))
    if not webbrowser.open(path.as_uri()):
        click.echo("There is no browser to show it in.", err=True)
