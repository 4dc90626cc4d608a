"""What children tell their parent: one datagram for each thing that happens to an attempt.

Owns: the words and the socket. Does not own: what follows from them (``parent``). Nothing depends on a notice but speed
and time-outs: a child that dies is seen by its exit, and its claim is in Postgres.
"""

from __future__ import annotations

import json
import socket
from typing import Literal, NamedTuple
from uuid import UUID

from orchestrator.store.steps import Claim

LONGEST = 8192
"""Bytes. A step's key has at most 300 characters."""

Word = Literal["up", "took", "began", "ended", "over"]
"""``up``: a child has this incarnation. ``took``: it has the message of an attempt. ``began``, ``ended``: its body.
``over``: the attempt is recorded, or was dropped."""


class Notice(NamedTuple):
    """``at`` is the machine's monotonic clock in seconds, which parent and children share."""

    pid: int
    worker: UUID
    word: Word
    claim: Claim | None = None
    at: float = 0.0
    timeout_s: float = 0.0


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
            ]
        )
        self._writer.send(text.encode())

    def heard(self) -> list[Notice]:
        """What has come since the last call, in order."""
        notices: list[Notice] = []
        while True:
            try:
                pid, worker, word, claim, at, timeout_s = json.loads(self._reader.recv(LONGEST))
            except BlockingIOError:
                return notices
            attempt = Claim(UUID(claim[0]), claim[1], claim[2]) if claim is not None else None
            notices.append(Notice(pid, UUID(worker), word, attempt, at, timeout_s))

    def fileno(self) -> int:
        """The end that is read from."""
        return self._reader.fileno()
