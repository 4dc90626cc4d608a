"""The names of the Gatekeeper's keys in Redis.

Owns: the one rule by which they are made. Does not own: what stands under them (the scripts; ``key()`` in ``slots.lua``
makes the same names). All of an account's keys have its hash tag, and every key has a TTL.
"""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.settings import Settings


class Keys(NamedTuple):
    """Of one account. A ``workflow`` of ``""`` means the account as a whole."""

    tag: str

    @classmethod
    def of(cls, settings: Settings) -> Keys:
        return cls(settings.hash_tag)

    def key(self, noun: str, workflow: str = "") -> str:
        """``{orchestrator:<account>}:<noun>``, and of a workflow ``…:<noun>:of:<workflow>``: a workflow may have any
        name, also one that is a noun here."""
        return f"{self.tag}:{noun}:of:{workflow}" if workflow else f"{self.tag}:{noun}"

    def slots(self, workflow: str = "") -> str:
        """Who holds a slot: uuids, each with the end of its lease (milliseconds, Redis' time)."""
        return self.key("slots", workflow)

    def queued(self, workflow: str = "") -> str:
        """There while something waits in the queue (TTL 3 s). The account's: while its slots are what is waited for."""
        return self.key("queued", workflow)

    def bucket(self, workflow: str = "") -> str:
        """Tokens for creation: a hash of ``tokens`` and ``at``."""
        return self.key("bucket", workflow)

    def request(self, id: str) -> str:
        """What a script answered to the request of this id, for its repetition (TTL 30 s)."""
        return f"{self.tag}:request:{id}"

    @property
    def ready(self) -> str:
        """There while slots may be granted: the ``run_id`` of the server that the leases were written to."""
        return self.key("slots:ready")

    @property
    def walked(self) -> str:
        """There as long as the leases of all running instances are known to be renewed."""
        return self.key("slots:walked")

    @property
    def walker(self) -> str:
        """Which process renews the leases."""
        return self.key("slots:walker")

    @property
    def demand(self) -> str:
        """What askers would take more, by ``<asker>|<workflow>``: ``wanted:weight:until:served:got:limit``."""
        return self.key("demand")

    @property
    def limits(self) -> str:
        """What operators set: ``concurrency``, ``concurrency:<workflow>``, ``rate`` …"""
        return self.key("limits")

    @property
    def backlog(self) -> str:
        """Queued instances by workflow."""
        return self.key("backlog")
