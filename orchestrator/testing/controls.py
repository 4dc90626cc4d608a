"""The fakes as verbs: what a test may pretend, for one instance or for all.

Owns: the verbs. Does not own: what they mean (``fakes``).
"""

from __future__ import annotations

from typing import Any

from orchestrator.testing.simulation.fakes import Event, Fakes


class Controls:
    """What ``WorkflowEnvironment`` (for all instances) and ``InstanceUnderTest`` (for itself) have in common."""

    def _controlled(self) -> Fakes:
        """The fakes that the verbs are about."""
        raise NotImplementedError

    def _refaked(self) -> None:
        """Let fakes take effect on what is there already."""
        raise NotImplementedError

    def _send_fake(self, event: Event) -> None:
        """Deliver a mocked event to whom it is for."""
        raise NotImplementedError

    def disable_sleeps(self, *names: str) -> None:
        """Let the sleeps of these names, or all of them, be over at once."""
        self._controlled().sleeps.add(names)
        self._refaked()

    def disable_retry_delays(self, *names: str) -> None:
        """Let the retries of the steps (and rollbacks) of these names, or all of them, come at once."""
        self._controlled().delays.add(names)
        self._refaked()

    def mock_step_result(self, name: str, value: Any) -> None:
        """Give ``value`` as the result of the ``do`` steps of this name, instead of running their bodies.

        It is recorded like any result: it must have a JSON form that fits the body's return annotation.
        """
        self._controlled().result(name, value)

    def mock_step_error(self, name: str, exc: Exception | type[Exception], times: int | None = None) -> None:
        """Let the attempts of this step fail with ``exc``: the first ``times`` of them, or all.

        Retries come as configured; after the last the workflow sees the error as revived from its record.
        """
        self._controlled().failure(name, exc, times)

    def force_step_timeout(self, name: str, times: int | None = None) -> None:
        """Let the attempts of this step run out of time at once: the first ``times`` of them, or all."""
        self._controlled().failure(name, None, times)

    def mock_event(self, type: str, payload: Any = None) -> None:
        """Send an event: to this instance, or to each one there is and each that is created from now on."""
        self._send_fake(self._controlled().event(type, payload))

    def force_event_timeout(self, name: str) -> None:
        """Let the ``wait_for_event`` steps of this name time out at once; events stay for the others."""
        self._controlled().forced.add([name])
        self._refaked()
