"""What ``step.invoke`` is asked for: which workflow, with which parameters, for how long.

Owns: the check of its arguments, and the configuration that is stored. Does not own: creating the child
(``deciding.children``), nor what becomes of it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

from orchestrator.errors import InvalidConfig, InvalidParams, PayloadTooLarge, SerializationError
from orchestrator.workflow import codec
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.language.durations import Duration, positive
from orchestrator.workflow.language.names import check_instance_id


@dataclass(slots=True, frozen=True)
class Invocation:
    """A child that the code asks for. Either ``params`` (the codec's text) or ``refused`` is set."""

    definition: Definition
    params: str = ""
    refused: str | None = None
    """Why the parameters cannot be stored, as the codec's text of an error."""
    id: str | None = None
    timeout_s: float | None = None

    @classmethod
    def build(
        cls, name: str, workflow: Any, params: Any, id: str | None, timeout: Duration | None
    ) -> Invocation:
        """Check what the call says; what parameters are worth is recorded with the step, and not judged anew on every
        replay. Raises ``InvalidConfig`` and ``InvalidInstanceId``."""
        definition = getattr(workflow, "definition", None)
        if not isinstance(definition, Definition):
            shown = getattr(workflow, "__qualname__", None) or type(workflow).__name__
            raise InvalidConfig(
                f"step.invoke({name!r}) starts a workflow, and {shown} is none: decorate it with @workflow and give "
                "what that makes. To run a plain function, use step.do."
            )
        chosen = None if id is None else check_instance_id(id)
        timeout_s = None if timeout is None else positive(timeout, what=f"timeout of step.invoke({name!r})")
        try:  # how long it may be is decided with the step: the deployment's limit may change
            text = codec.encode(params, what=_what(definition), limit=sys.maxsize)
        except SerializationError as error:
            return cls(definition, "", codec.encode_error(error), chosen, timeout_s)
        return cls(definition, text, None, chosen, timeout_s)

    def refusal(self, limit: int) -> str | None:
        """Why there can be no such child, as the codec's text of an error: its parameters cannot be stored, are longer
        than ``limit`` bytes, or do not validate into its payload type."""
        if self.refused is not None:
            return self.refused
        what = _what(self.definition)
        if len(self.params) > limit:
            text = f"{what} have {len(self.params):,} bytes as JSON; at most {limit:,} are allowed"
            return codec.encode_error(PayloadTooLarge(text))
        try:
            codec.decode(self.params, self.definition.payload_type)
        except Exception as error:  # validators of the user's own may raise anything
            return codec.encode_error(InvalidParams(f"{what}: {error}"))
        return None


class InvokeConfig(NamedTuple):
    """The configuration of an ``invoke`` step, fixed when it first starts."""

    workflow: str
    version: str
    id: str
    """The id of the child within its workflow."""
    instance: str
    """The child's UUID."""
    timeout_s: float | None = None

    def to_json(self) -> str:
        """The configuration as compact ASCII JSON."""
        return json.dumps(self._asdict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> InvokeConfig:
        """The configuration that ``text`` describes. Fields this release does not know are passed over."""
        read = json.loads(text)
        return cls(**{name: read[name] for name in cls._fields if name in read})


def _what(definition: Definition) -> str:
    return f"params of workflow {definition.name!r}"
