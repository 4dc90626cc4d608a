"""A purchase that waits for a human, who says yes, says no, or says nothing for three days.

    ORCHESTRATOR_WORKFLOWS=examples.approval orchestrator dev    # in one terminal; it prints what to export
    python examples/approval.py                                  # in another

Nothing waits meanwhile but a row in Postgres: stop `orchestrator dev`, start it again, and answer then.
"""

from dataclasses import dataclass

from orchestrator import EventTimeout, Retries, StepContext, WorkflowEvent, WorkflowStep, workflow


@dataclass
class Purchase:
    """What somebody wants. ``price`` is in cents."""

    item: str
    price: int


@dataclass
class Decision:
    approved: bool
    by: str


@workflow
async def purchase(event: WorkflowEvent[Purchase], step: WorkflowStep) -> str:
    wanted = event.payload
    await step.do("ask the boss", ask, wanted, event.instance_id)
    decision = await decided(step)
    if not decision.approved:
        return f"{wanted.item}: declined by {decision.by}"
    number = await step.do("order", order, wanted, retries=Retries(limit=10, delay="30 seconds"))
    return f"{wanted.item}: ordered as {number}, approved by {decision.by}"


async def decided(step: WorkflowStep) -> Decision:
    """Wait for an answer; remind once, then take silence for a no."""
    for reminders in range(2):
        try:
            answer = await step.wait_for_event("decision", type="decision", timeout="36 hours")
        except EventTimeout:
            if reminders == 0:
                await step.do("remind", remind)
        else:
            return Decision(answer.payload["approved"], answer.payload["by"])
    return Decision(approved=False, by="nobody")


# -- what the steps do; yours send mails and call services --------------------------------------------------------


def ask(wanted: Purchase, instance_id: str) -> None:
    print(f"May we buy {wanted.item} for {wanted.price / 100:.2f}? ({instance_id})")


def remind() -> None:
    print("Somebody still waits for an answer.")


def order(wanted: Purchase, ctx: StepContext) -> str:
    """The shop takes the key with the order, so an attempt that is repeated does not buy twice."""
    return f"order {ctx.idempotency_key[:8]}"


if __name__ == "__main__":
    instance = purchase.create(Purchase("a coffee machine", 34_900))
    print(f"{instance.id} waits for a decision, for days if need be.")
    approved = input("Approve it? [y/n] ").strip().lower() == "y"
    instance.send_event("decision", {"approved": approved, "by": "you"})
    print(instance.result(timeout=60))
