"""``orchestrator migrate``. Owns: the command. Does not own the migrations (``store.migrate``)."""

from __future__ import annotations

import os

import click

from orchestrator.cli.answers import Document, answering
from orchestrator.settings import PREFIX, Settings


def _render(document: Document) -> None:
    before, after = document["before"], document["after"]
    if before == after:
        click.echo(f"The database is at revision {after}: nothing to do.")
    else:
        click.echo(f"Migrated the database from {before or 'nothing'} to revision {after}.")


@click.command()
@answering(_render)
def migrate() -> Document:
    """Bring the database to this release's schema. Safe to run twice, and at once."""
    from orchestrator.store.migrate import upgrade

    # Redis has no part in this, and may not be there yet.
    redis_url = os.environ.get(PREFIX + "REDIS_URL") or "redis://localhost"
    before, after = upgrade(Settings.from_env(redis_url=redis_url).database_url)
    return {"before": before, "after": after}
