"""Three agents work at once, a fourth sums up, a human answers; the loop goes on until the human is content.

    ORCHESTRATOR_WORKFLOWS=examples.agent_loop orchestrator dev    # in one terminal; it prints what to export
    python examples/agent_loop.py                                  # in another

The agents here are plain functions; put calls of your models there. A recorded step is never paid for twice.
"""

import asyncio
from dataclasses import dataclass

from orchestrator import Retries, WorkflowEvent, WorkflowStep, workflow


@dataclass
class Task:
    question: str
    max_loops: int = 3


@workflow
async def review(event: WorkflowEvent[Task], step: WorkflowStep) -> str:
    task, feedback, loop, patient = event.payload, "", 1, Retries(limit=5, delay="10 seconds", jitter=0.2)
    while True:
        findings = await asyncio.gather(
            step.do(f"research agent (loop {loop})", research, task.question, feedback, retries=patient),
            step.do(f"critic agent (loop {loop})", criticise, task.question, feedback, retries=patient),
            step.do(f"numbers agent (loop {loop})", count, task.question, feedback, retries=patient),
        )
        draft = await step.do(f"summary agent (loop {loop})", summarise, findings)
        response = await step.wait_for_event(f"user response (loop {loop})", type="answer", timeout="7 days")
        if response.payload["approved"]:
            return await step.do("publish", publish, draft)
        loop += 1
        if loop > task.max_loops:
            return await step.do("hand over", hand_over, task.question, response.payload["feedback"])
        feedback = response.payload["feedback"]


# -- the agents, which only do as if they thought -----------------------------------------------------------------


async def research(question: str, feedback: str) -> str:
    await asyncio.sleep(0.2)
    return f"facts on {question}" + (f", minding {feedback!r}" if feedback else "")


async def criticise(question: str, feedback: str) -> str:
    await asyncio.sleep(0.1)
    return f"doubts about {question}" + (f", but not about {feedback!r}" if feedback else "")


async def count(question: str, feedback: str) -> str:
    await asyncio.sleep(0.1)
    return f"{len(question) + len(feedback)} numbers"


def summarise(findings: list[str]) -> str:
    return "; ".join(findings)


def publish(draft: str) -> str:
    return f"published: {draft}"


def hand_over(question: str, wish: str) -> str:
    return f"a person looks into {question}: {wish}"


if __name__ == "__main__":
    instance = review.create(Task("the price of tea"))
    print(f"{instance.id}: the agents work. Answer when you like; what you say waits for them.")
    for _ in range(3):
        said = input("Content? [y, or what to change] ").strip()
        instance.send_event("answer", {"approved": said == "y", "feedback": said})
        if said == "y":
            break
    print(instance.result(timeout=60))
