"""An order is reserved, charged, packed and shipped; whatever goes wrong on the way, what was done is undone.

    ORCHESTRATOR_WORKFLOWS=examples.order orchestrator dev    # in one terminal; it prints what to export
    python examples/order.py                                  # in another

What can be undone comes first. Handing the parcel over cannot, so it comes last: after it nothing can fail.
"""

from dataclasses import dataclass

from orchestrator import (
    NonRetryableError,
    Retries,
    RollbackContext,
    StepContext,
    WorkflowEvent,
    WorkflowStep,
    workflow,
)

PATIENT = Retries(limit=20, delay="30 seconds", max_delay="10 minutes", jitter=0.2)


@dataclass
class Order:
    item: str
    price: int  # in cents
    address: str


class Refused(NonRetryableError): ...


@workflow
async def fulfil(event: WorkflowEvent[Order], step: WorkflowStep) -> str:
    order = event.payload
    await step.do("reserve", reserve, order.item, rollback=release, rollback_retries=PATIENT)
    await step.do("charge", charge, order.price, rollback=refund, rollback_retries=PATIENT)
    label = await step.do(
        "buy label", buy_label, order.address, rollback=void_label, rollback_retries=PATIENT
    )
    return await step.do("hand over", lambda label: f"shipped with {label}", label, retries=PATIENT)


# -- what the steps do; yours call a warehouse, a bank and a carrier, and pass the keys on -------------------------


def reserve(item: str, ctx: StepContext) -> None:
    print(f"{item} is kept under {ctx.idempotency_key}")


def release(r: RollbackContext) -> None:
    print(f"{r.args[0]} is free again: {r.error.message}")


def charge(price: int, ctx: StepContext) -> str:
    if price > 100_000:
        raise Refused(f"the card does not give {price / 100:.2f}")
    return f"payment under {ctx.idempotency_key}"


def refund(r: RollbackContext) -> None:
    print(f"if something was paid under {r.step.idempotency_key}, it is given back under {r.idempotency_key}")


def buy_label(address: str) -> str:
    if address == "the moon":
        raise Refused("nobody delivers to the moon")
    return f"a label for {address}"


def void_label(r: RollbackContext) -> None:
    print(f"{r.output} is void" if r.has_output else "if there is a label, it is void")


if __name__ == "__main__":
    print(fulfil.create(Order("a lamp", 4_900, "Main Street 1")).result(timeout=60))
    for event in fulfil.create(Order("a lamp", 4_900, "the moon")).subscribe():
        print(event.type, event.step_name or "")
