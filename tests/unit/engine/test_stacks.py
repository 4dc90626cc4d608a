"""Where another thread stands."""

import gc
import sys
import threading

from orchestrator.engine.stacks import stack_of

_may_go = threading.Event()
_is_there = threading.Event()


def _stand(depth: int) -> None:
    if depth:
        _stand(depth - 1)
        return
    _is_there.set()
    _may_go.wait(20)  # here it stands


def test_a_thread_is_told_with_its_line() -> None:
    """protocols §2: blocking code is told with the line it stands on, the innermost call last, and its source."""
    stander = threading.Thread(target=_stand, args=(3,))
    stander.start()
    assert _is_there.wait(20)
    while "in wait" not in (told := stack_of(stander.ident or 0)):
        assert stander.is_alive()
    lines = told.splitlines()
    assert any("_may_go.wait(20)  # here it stands" in line for line in lines)
    calls = [line for line in lines if line.startswith("  File")]
    assert sum("in _stand" in call for call in calls) == 4
    assert "in wait" in calls[-1]
    assert len([c for c in stack_of(stander.ident or 0, 2).splitlines() if c.startswith("  File")]) == 2
    _may_go.set()
    stander.join(20)
    assert stack_of(stander.ident or 0) == ""


def test_its_own_stack() -> None:
    assert "test_its_own_stack" in stack_of(threading.get_ident())


def test_among_many_threads() -> None:
    """protocols §2: however many threads there are."""
    may_end = threading.Event()
    threads = [threading.Thread(target=may_end.wait, args=(20,)) for _ in range(150)]
    for thread in threads:
        thread.start()
    assert "test_among_many_threads" in stack_of(threading.get_ident())
    may_end.set()
    for thread in threads:
        thread.join(20)


def test_nothing_is_collected_meanwhile() -> None:
    """protocols §6: no garbage is collected while the interpreter's lock is held, so threads may end meanwhile; after
    it things are as before."""

    class Garbage:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            sys.getsizeof(self)

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(200):
            Garbage()
            threads = [threading.Thread(target=Garbage) for _ in range(3)]
            for thread in threads:
                thread.start()
            assert stack_of(threading.get_ident())
            assert gc.isenabled()
            for thread in threads:
                thread.join(20)
                assert not thread.is_alive()
        gc.disable()
        assert stack_of(threading.get_ident())
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.set_threshold(*threshold)
