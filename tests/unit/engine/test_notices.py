"""What children tell their parent arrives whole and in order, from several processes at once."""

import os
import time
from uuid import uuid4

from orchestrator.engine.forking.notices import Notice, Wire
from orchestrator.store.steps import Claim


def heard(wire: Wire, count: int) -> list[Notice]:
    notices: list[Notice] = []
    deadline = time.monotonic() + 10
    while len(notices) < count:
        notices += wire.heard()
        assert time.monotonic() < deadline, f"{len(notices)} of {count} notices came"
    return notices


def test_a_notice_comes_as_it_was_told() -> None:
    wire = Wire()
    assert wire.heard() == []
    longest = Claim(uuid4(), "do:" + "\U0001f525" * 256 + ":12345:rollback", 2**62)
    notices = [
        Notice(1, uuid4(), "up"),
        Notice(2, uuid4(), "began", longest, 12.5, 0.25),
        Notice(2, uuid4(), "over", Claim(uuid4(), "do:a:1", 3)),
    ]
    for notice in notices:
        wire.tell(notice)
    assert heard(wire, 3) == notices
    assert wire.heard() == []


def test_children_do_not_get_into_each_other() -> None:
    """More than the socket holds, from three processes; each in its own order."""
    wire, worker = Wire(), uuid4()
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            for fence in range(200):
                wire.tell(Notice(os.getpid(), worker, "took", Claim(worker, "do:x:1", fence)))
            os._exit(0)
        children.append(pid)
    notices = heard(wire, 600)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
        mine = [n.claim.fence for n in notices if n.pid == child and n.claim is not None]
        assert mine == list(range(200))
