"""``@workflow`` and what it makes: a definition with the verbs that create and find instances.

Owns: the decorator and ``Workflow``. Does not own: inserting (``creation``) or one instance's verbs (``instance``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, overload

from orchestrator.client.creation import insertion, wishes
from orchestrator.client.creation.admittance import Work, adrive, drive
from orchestrator.client.deletion import Deletion
from orchestrator.client.instance import WorkflowInstance
from orchestrator.client.listing import Listing
from orchestrator.client.orchestrator import Orchestrator, check_outside, current, offload
from orchestrator.client.records import BatchResult
from orchestrator.client.schedules import Scheduled
from orchestrator.errors import InstanceNotFound, InvalidConfig
from orchestrator.workflow.language.definition import Definition, define, registry
from orchestrator.workflow.language.durations import Duration, optional
from orchestrator.workflow.language.names import check_instance_id

Entries = Sequence[Mapping[str, Any]]


class Workflow(Scheduled, Listing, Deletion):
    """A registered workflow. ``fn`` is the plain function (or class), for unit tests."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self.__doc__ = definition.fn.__doc__
        self.__name__ = definition.name
        self.__module__ = definition.fn.__module__
        self.__wrapped__ = definition.fn

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def version(self) -> str:
        return self.definition.version

    @property
    def fn(self) -> Any:
        """The plain function or class that was decorated."""
        return self.definition.fn

    def __repr__(self) -> str:
        return f"<workflow {self.name!r} version {self.version!r}>"

    def create(
        self,
        params: Any = None,
        *,
        id: str | None = None,
        success_retention: Duration | None = None,
        error_retention: Duration | None = None,
        connection: Any = None,
        wait: Duration | None = None,
        orchestrator: Orchestrator | None = None,
    ) -> WorkflowInstance:
        """Create an instance. ``id`` defaults to a fresh UUID; ``params`` must validate into the workflow's payload.

        It runs at once if a slot is free and nothing queues before it. With ``wait`` (seconds) it waits so long for the
        creation rate instead of raising ``RateLimited``. With ``connection`` (a SQLAlchemy ``Connection`` or
        ``Session``) it is created in the caller's transaction and runs if and only if that commits; it counts against
        the rate either way.

        Raises ``InstanceExists``, ``InvalidInstanceId``, ``InvalidParams``, ``InvalidConfig``, ``SerializationError``,
        ``PayloadTooLarge``, ``RateLimited``, ``TooManyQueued``, ``SchemaNotMigrated``, and ``ServiceUnavailable`` while
        Postgres is away, or Redis is and this process has created what it may without it.
        """
        check_outside("create")
        retention = (success_retention, error_retention)
        return drive(self._creating(params, id, retention, connection, wait, orchestrator or current()))

    async def acreate(
        self,
        params: Any = None,
        *,
        id: str | None = None,
        success_retention: Duration | None = None,
        error_retention: Duration | None = None,
        connection: Any = None,
        wait: Duration | None = None,
        orchestrator: Orchestrator | None = None,
    ) -> WorkflowInstance:
        """``create`` for asyncio; ``connection`` may be an ``AsyncConnection`` or ``AsyncSession``."""
        check_outside("acreate")
        where, retention = orchestrator or current(), (success_retention, error_retention)
        if connection is None:
            return await adrive(self._creating(params, id, retention, None, wait, where))
        if not hasattr(connection, "run_sync"):
            raise InvalidConfig(
                "acreate(connection=) takes a SQLAlchemy AsyncConnection or AsyncSession, not "
                f"{type(connection).__name__}."
            )
        wanted = await adrive(self._permitted(params, id, retention, wait, where))
        await connection.run_sync(lambda sync: insertion.join(where, self.definition, wanted, sync))
        return WorkflowInstance(self.definition, wanted.name_id, where)

    def _creating(
        self,
        params: Any,
        id: str | None,
        retention: tuple[Duration | None, Duration | None],
        connection: Any,
        wait: Duration | None,
        where: Orchestrator,
    ) -> Work[WorkflowInstance]:
        if connection is not None:
            wanted = yield from self._permitted(params, id, retention, wait, where)
            insertion.join(where, self.definition, wanted, connection)
            return WorkflowInstance(self.definition, wanted.name_id, where)
        wait_s = optional(wait, what="wait")
        wanted = wishes.wish(where, self.definition, params, id, *retention)
        yield from insertion.one(where, self.definition, wanted, wait_s)
        return WorkflowInstance(self.definition, wanted.name_id, where, wanted.seen)

    def _permitted(
        self,
        params: Any,
        id: str | None,
        retention: tuple[Duration | None, Duration | None],
        wait: Duration | None,
        where: Orchestrator,
    ) -> Work[wishes.Wish]:
        wait_s = optional(wait, what="wait")
        wanted = wishes.wish(where, self.definition, params, id, *retention)
        yield from insertion.permit(where, self.definition, wanted, wait_s)
        return wanted

    def create_batch(
        self,
        batch: Entries | None = None,
        *,
        count: int | None = None,
        params: Any = None,
        wait: Duration | None = None,
        orchestrator: Orchestrator | None = None,
    ) -> BatchResult:
        """Create up to 1,000 instances: a list of ``{"id", "params", "success_retention", "error_retention"}`` (all
        optional), or ``count`` of them with the same ``params``.

        Ids that exist are reported per index, and so are those, from some entry on, for which the creation rate
        (``RateLimited``) or the queue (``TooManyQueued``) has no room; with ``wait`` (seconds) it waits so long for the
        rate, and creates them as they are admitted. Anything invalid refuses the whole call before it creates anything,
        in an error that names the entry (``Entry 3: …``, counted from 0).
        """
        check_outside("create_batch")
        return drive(self._creating_batch(batch, count, params, wait, orchestrator or current()))

    async def acreate_batch(
        self,
        batch: Entries | None = None,
        *,
        count: int | None = None,
        params: Any = None,
        wait: Duration | None = None,
        orchestrator: Orchestrator | None = None,
    ) -> BatchResult:
        """``create_batch`` for asyncio."""
        check_outside("acreate_batch")
        return await adrive(self._creating_batch(batch, count, params, wait, orchestrator or current()))

    def _creating_batch(
        self, batch: Entries | None, count: Any, params: Any, wait: Duration | None, where: Orchestrator
    ) -> Work[BatchResult]:
        wait_s = optional(wait, what="wait")
        wanted = wishes.wishes(where, self.definition, batch, count, params)
        created, errors = yield from insertion.many(where, self.definition, wanted, wait_s)
        return BatchResult(
            [WorkflowInstance(self.definition, w.name_id, where, w.seen) for w in created], errors
        )

    def get(self, id: str, *, orchestrator: Orchestrator | None = None) -> WorkflowInstance:
        """The instance of that id. Raises ``InstanceNotFound``."""
        check_outside("get")
        instance = WorkflowInstance(
            self.definition, check_instance_id(id, scheduled=True), orchestrator or current()
        )
        if not instance.exists():
            raise InstanceNotFound(id)
        return instance

    def diagram(self) -> dict[str, Any]:
        """What the workflow may do, as a graph in JSON (``docs/diagrams.md``), from its source: nothing is run.

        Raises ``InvalidConfig`` if the source cannot be read.
        """
        check_outside("diagram")
        from orchestrator.engine import sources  # only who draws needs the parser

        return sources.diagram(self.definition)

    async def aget(self, id: str, **options: Any) -> WorkflowInstance:
        """``get`` for asyncio."""
        check_outside("aget")
        return await offload(self.get, id, **options)


@lru_cache(256)
def without_code(name: str, version: str = "1", **options: Any) -> Workflow:
    """The workflow of that name as rows know it, without its code: outputs are plain JSON values, params of new
    instances are checked by the worker that runs them. ``options`` are those of ``@workflow``.

    Raises ``InvalidName``, ``InvalidConfig``.
    """
    return Workflow(define(_without_code, name=name, version=version, **options))


async def _without_code(event: Any, step: Any) -> Any:
    """Stands for code that is not needed; it is never run."""
    raise NotImplementedError("workflows are run by workers")


@overload
def workflow(target: Callable[..., Any], /) -> Workflow: ...
@overload
def workflow(**options: Any) -> Callable[[Callable[..., Any]], Workflow]: ...
def workflow(
    target: Callable[..., Any] | None = None, /, **options: Any
) -> Workflow | Callable[[Callable[..., Any]], Workflow]:
    """Register an ``async def (event, step)``, or a class with such a ``run``, as a workflow.

    Options (all optional): ``name``, ``version``, ``concurrency``, ``creation_rate``, ``max_steps``,
    ``success_retention``, ``error_retention``, ``schedules``, ``rollback``, ``errors``. Raises ``InvalidName``,
    ``InvalidConfig``.
    """

    def register(decorated: Callable[..., Any]) -> Workflow:
        return Workflow(registry.register(define(decorated, **options)))

    return register if target is None else register(target)
