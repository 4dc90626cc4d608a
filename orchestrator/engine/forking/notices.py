"""What children tell their parent: one datagram for each thing that happens to an attempt.

Owns: the words and the socket. Does not own: what follows from them (``children``). The parent acts on notices alone:
it keeps alive, times out, cancels and hands back only what it was told of. What it missed costs a lease: a claim is in
Postgres.
"""

from __future__ import annotations

import json
import socket
from typing import Literal, NamedTuple
from uuid import UUID

from orchestrator.store.steps import Claim

LONGEST = 8192
"""Bytes. A step's key has at most 300 characters."""

Word = Literal["up", "got", "took", "began", "ended", "over"]
"""``up``: a child has this incarnation. ``got``: it has the message of an attempt. ``took``: it is known to Postgres
and asks for the claim. ``began``, ``ended``: its body. ``over``: the attempt is recorded, or was dropped."""


class Notice(NamedTuple):
    """``at`` is the machine's monotonic clock in seconds, which parent and children share; ``alive_at``, on the same
    clock, is when the child last renewed its row itself (0: never). ``began`` brings the body's time-out, its queue,
    and when its attempt was handed out (epoch seconds of the database)."""

    pid: int
    worker: UUID
    word: Word
    claim: Claim | None = None
    at: float = 0.0
    timeout_s: float = 0.0
    alive_at: float = 0.0
    queue: str = ""
    handed_at: float = 0.0


class Wire:
    """Made before the first fork, so that every child has its end. Datagrams stay whole, whoever writes meanwhile."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reader.setblocking(False)

    def tell(self, notice: Notice) -> None:
        """Send; waits while the parent has not read what came before."""
        claim = notice.claim
        text = json.dumps(
            [
                notice.pid,
                notice.worker.hex,
                notice.word,
                [claim.instance.hex, claim.key, claim.fence] if claim is not None else None,
                notice.at,
                notice.timeout_s,
                notice.alive_at,
                notice.queue,
                notice.handed_at,
            ]
        )
        self._writer.send(text.encode())

    def heard(self) -> list[Notice]:
        """What has come since the last call, in order."""
        notices: list[Notice] = []
        while True:
            try:
                pid, worker, word, claim, *rest = json.loads(self._reader.recv(LONGEST))
            except BlockingIOError:
                return notices
            attempt = Claim(UUID(claim[0]), claim[1], claim[2]) if claim is not None else None
            notices.append(Notice(pid, UUID(worker), word, attempt, *rest))

    def fileno(self) -> int:
        """The end that is read from."""
        return self._reader.fileno()
