"""Why nobody sees to an instance: its code is known to no live worker, or a step waits in a queue that none serves.

Owns: when this is looked at, and the texts. Does not own: the query (``store.records.serving``), nor what blocks an
instance in the open: code that does not fit, which is recorded in its row.

It is found out by reading and recorded nowhere; the status stays what is recorded. What a live worker may be busy with
is not said to be blocked: a queue that is served, but long, is a backlog.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.errors import ErrorInfo
from orchestrator.workflow.status import Status

if TYPE_CHECKING:
    from orchestrator.store.instances import Result
    from orchestrator.store.records.serving import Serving

YOUNG_S = 5.0
"""A younger instance is on its way; only for older ones a second statement is worth its price."""
SILENT_S = 60.0
"""Who has not renewed for so long is not alive, declared dead or not. Leases may be longer than this process's."""
UNSERVED_S = 60.0
"""A step that was handed out for longer than that on a queue that nobody serves is shown."""


def why(where: Orchestrator, workflow: str, row: Result) -> ErrorInfo | None:
    """Why the unfinished instance of ``row`` is not seen to; ``None`` if it is, or is paused."""
    now = where.now()
    if Status(row.status) is Status.PAUSED or now - row.created_at < YOUNG_S:
        return None
    from orchestrator.store.records import serving

    settings = where.settings
    with where.lanes.statement() as connection:
        found = serving.of(
            connection,
            settings.account,
            row.id,
            workflow,
            row.version,
            settings.queue,
            live_s=max(SILENT_S, 2 * settings.lease),
            handed_before=now - UNSERVED_S,
        )
    if not found.is_known:
        return ErrorInfo("UnknownWorkflow", _unknown(settings.account, workflow, row.version, found))
    if found.step is not None:
        text = (
            f"step {found.step!r} was handed out {now - (found.handed_at or now):.0f} s ago on the queue "
            f"{found.queue!r}, which no live worker serves. It runs as soon as one does."
        )
        return ErrorInfo("QueueNotServed", text)
    return None


def _unknown(account: str, workflow: str, version: str, found: Serving) -> str:
    what = f"no live worker knows workflow {workflow!r} version {version!r}"
    if not found.workers:
        return f"{what}: no worker of the account {account!r} is alive. It goes on as soon as one is."
    if not found.versions:
        return (
            f"{what}, nor any other version of it (do their ORCHESTRATOR_WORKFLOWS name its module?). "
            "It goes on as soon as one does."
        )
    versions = ", ".join(repr(each) for each in found.versions)
    return f"{what}; what they know of it is {versions}. It goes on as soon as a worker knows its version."
