"""What requests carry: the fields of each body, checked.

Owns: these models, and the error for what does not fit. Does not own: what the verbs themselves refuse.
"""

from __future__ import annotations

from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.errors import InvalidConfig
from orchestrator.workflow import codec


class Body(BaseModel):
    """A JSON object without other fields than these."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Nothing(Body):
    """No fields; the body may be left out."""


class Create(Body):
    """A new instance."""

    params: Any = Field(None, description="What the workflow takes.")
    id: str | None = Field(None, description="A fresh UUID by default.")
    version: str | None = Field(None, description="The version that was registered last by default.")
    success_retention: float | str | None = Field(
        None, description="Seconds, or a duration such as `7 days`."
    )
    error_retention: float | str | None = Field(None, description="Seconds, or a duration such as `7 days`.")


class Terminate(Body):
    rollback: bool = Field(False, description="Whether compensation runs first.")


class Restart(Body):
    from_step: str | None = Field(None, description="The name of a step; without it, from the top.")
    count: int = Field(1, description="Which of the steps of that name, from 1.")
    kind: str = Field("do", description="`do`, `sleep`, `wait` or `invoke`.")

    @model_validator(mode="after")
    def _say_more_about_a_step(self) -> Self:
        """Whoever forgot the step's name must not lose all of the instance."""
        if self.from_step is None and self.model_fields_set & {"count", "kind"}:
            raise ValueError("count and kind say more about from_step: give it too")
        return self


class SendEvent(Body):
    type: str
    payload: Any = None


class SkipRollback(Body):
    step: str = Field(description="The name of a `do`, or the key of any step, such as `wait:approval:1`.")
    count: int = Field(1, description="Which of the steps of that name, from 1.")


B = TypeVar("B", bound=Body)


def parsed(model: type[B], body: Any) -> B:
    """The body as ``model``; none at all counts as ``{}``. Raises ``InvalidConfig``, which names the fields."""
    try:
        return model.model_validate({} if body is None else body)
    except ValidationError as error:
        raise InvalidConfig(f"The body does not fit: {codec.explained(error)}") from None
