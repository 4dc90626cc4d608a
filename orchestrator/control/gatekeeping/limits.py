"""What the limits are: what an operator set, else what the definition says, else the settings.

Owns: that order, and the names under which what operators set stands in Redis, for the scripts that ask there first.
Does not own: the rows (``store.control.limits``), putting them into Redis (``board``), that limits hold (the scripts).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from orchestrator.errors import UnknownWorkflow
from orchestrator.settings import Settings
from orchestrator.store.control.limits import ACCOUNT, Override
from orchestrator.workflow.language.definition import Registry

FIELDS = {
    "concurrency": "concurrency",
    "creation_rate": "rate",
    "creation_burst": "burst",
    "max_queued": "max_queued",
}
"""Limits by their names in Redis: ``rate`` is the account's, ``rate:<workflow>`` that of a workflow."""

OPERATOR, DEFINITION, SETTINGS = "operator", "definition", "settings"
"""Who says what a limit is."""

Overrides = Mapping[str, Override]


class Declared(Protocol):
    """What a definition says of limits: its ``Options``, for one."""

    @property
    def concurrency(self) -> int | None: ...

    @property
    def creation_rate(self) -> float | None: ...


class Limit(NamedTuple):
    """The limits of one workflow, or of the account."""

    concurrency: int | None
    """Instances that hold a slot at once; ``None`` where only the account's is meant to hold."""
    creation_rate: float
    """Instances per second."""
    creation_burst: float
    """How many may come at once after a pause; 0: what one second allows, whatever that is."""
    max_queued: int
    """Instances of one workflow that may wait for a slot."""


class Chosen(NamedTuple):
    """One limit, and who says so: ``operator``, ``definition`` or ``settings``."""

    value: float | None
    source: str


def of_account(settings: Settings, overrides: Overrides) -> dict[str, Chosen]:
    """The limits of the account by name, each with who says so. ``max_queued`` is for each workflow."""
    set_ = overrides.get(ACCOUNT, Override()).values
    return {
        "concurrency": _first(set_, "concurrency", settings.max_concurrency),
        "creation_rate": _first(set_, "creation_rate", settings.creation_rate),
        "creation_burst": _first(set_, "creation_burst", settings.creation_burst),
        "max_queued": _first(set_, "max_queued", settings.max_queued),
    }


def of_workflow(
    settings: Settings, overrides: Overrides, workflow: str, options: Declared | None
) -> dict[str, Chosen]:
    """The limits of one workflow by name; ``options`` are those of its definition, ``None`` where that is not known."""
    set_ = overrides.get(workflow, Override()).values
    concurrency = None if options is None else options.concurrency
    declared = None if options is None else options.creation_rate
    fallback = Chosen(declared, DEFINITION) if declared else Chosen(settings.workflow_creation_rate, SETTINGS)
    rate = Chosen(set_["creation_rate"], OPERATOR) if "creation_rate" in set_ else fallback
    general = of_account(settings, overrides)["max_queued"]
    return {
        "concurrency": _first(set_, "concurrency", concurrency, DEFINITION),
        "creation_rate": rate,
        "creation_burst": _first(set_, "creation_burst", 0.0, rate.source),
        "max_queued": Chosen(set_["max_queued"], OPERATOR) if "max_queued" in set_ else general,
    }


def _first(set_: Mapping[str, float], name: str, otherwise: float | None, source: str = SETTINGS) -> Chosen:
    return Chosen(set_[name], OPERATOR) if name in set_ else Chosen(otherwise, source)


def limit(chosen: Mapping[str, Chosen]) -> Limit:
    """The values alone."""
    concurrency = chosen["concurrency"].value
    return Limit(
        None if concurrency is None else int(concurrency),
        chosen["creation_rate"].value or 0.0,
        chosen["creation_burst"].value or 0.0,
        int(chosen["max_queued"].value or 0),
    )


class Limits:
    """The limits as this process knows them: in a worker, what operators set is some seconds old at most; in a client
    it is not known at all, and the scripts find it in Redis."""

    def __init__(self, settings: Settings, options_of: Callable[[str], Declared | None]) -> None:
        self._settings = settings
        self._options_of = options_of
        self._overrides: Overrides = {}

    @classmethod
    def of_registry(cls, settings: Settings, registry: Registry) -> Limits:
        """Those of a worker: of several versions of a workflow, the one defined last has the say."""

        def options_of(workflow: str) -> Declared | None:
            try:
                return registry.latest(workflow).options
            except UnknownWorkflow:
                return None

        return cls(settings, options_of)

    def know(self, overrides: Overrides) -> None:
        """Take what operators have set; replaces what was known."""
        self._overrides = dict(overrides)

    def account(self) -> Limit:
        return limit(of_account(self._settings, self._overrides))

    def of(self, workflow: str) -> Limit:
        return limit(of_workflow(self._settings, self._overrides, workflow, self._options_of(workflow)))

    def concurrency_of(self, workflow: str) -> int | None:
        """How many instances of this workflow may hold a slot at once, ``None`` if only the account limits it."""
        return self.of(workflow).concurrency


def fields(overrides: Iterable[Override]) -> dict[str, str]:
    """What operators have set, as the hash that scripts read."""
    return {
        field(name, override.workflow): f"{value:.17g}"
        for override in overrides
        for name, value in override.values.items()
    }


def field(name: str, workflow: str = ACCOUNT) -> str:
    """Where the limit ``name`` of a workflow, or of the account, stands in that hash."""
    return FIELDS[name] if workflow == ACCOUNT else f"{FIELDS[name]}:{workflow}"
