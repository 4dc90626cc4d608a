"""How ``celery … flower`` comes to our tab: an entry point of Celery's own command line (group ``celery.commands``).

Owns: what Celery finds under that entry point: Flower's own command, with the tab added. So an application has nothing
to do. Does not own: the tab. It is loaded by every ``celery`` command, as Flower itself is; the pages, the client and
their libraries are loaded only where Flower starts.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tornado.routing import URLSpec

logger = logging.getLogger(__name__)


def _routes() -> Sequence[URLSpec]:
    from orchestrator.monitoring.routes import routes

    return routes()


def _command() -> click.Command:
    if importlib.util.find_spec("flower") is None:
        return _missing()
    try:
        from orchestrator.monitoring.flower import extended

        return extended(_routes)
    except Exception as error:
        return _without_tab(error)


def _missing() -> click.Command:
    @click.command("flower", hidden=True, context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def flower(arguments: tuple[str, ...]) -> None:
        """Stands for Flower where it is not installed."""
        raise click.ClickException("Flower is not installed: pip install 'orchestrator-celery[flower]'")

    return flower


def _without_tab(error: Exception) -> click.Command:
    """Flower's command as it is, which says why there is no tab. If that cannot be had, Celery tells of it."""
    found: click.Command = importlib.metadata.entry_points(group="celery.commands")["flower"].load()
    start = found.callback
    assert start is not None

    @functools.wraps(start)
    def without_tab(*args: Any, **kwargs: Any) -> Any:
        logger.warning(
            "Flower starts without its Workflows tab, which does not fit in: %s", error, exc_info=error
        )
        return start(*args, **kwargs)

    found.callback = without_tab
    return found


command = _command()
