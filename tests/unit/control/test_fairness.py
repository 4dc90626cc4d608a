"""The pure policy: shares against a model that hands out unit by unit, quotas of shards, places in a queue."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.fairness import Claim, choose, divide, fill
from orchestrator.control.shards import gaps_of, quotas
from orchestrator.store.control.layouts import HIGHEST, MANY, ONE, Generation
from orchestrator.store.control.queue import Queued

claims = st.lists(
    st.builds(
        Claim, st.integers(0, 60), st.sampled_from([1.0, 1.0, 2.0, 3.0, 7.0, 64.0]), st.integers(0, 40)
    ),
    max_size=12,
)


def unit_by_unit(free: int, of: list[Claim]) -> list[int]:
    """What ``fill`` says it does."""
    shares = [0] * len(of)
    for _ in range(free):
        open_ones = [at for at, claim in enumerate(of) if shares[at] < claim.wanted]
        if not open_ones:
            break
        shares[min(open_ones, key=lambda at: (of[at].held + shares[at] + 1) / of[at].weight)] += 1
    return shares


@given(st.integers(0, 300), claims)
def test_shares_are_those_of_unit_by_unit(free: int, of: list[Claim]) -> None:
    """semantics §6: max-min: each unit goes to whoever holds least for his weight with it."""
    assert fill(free, of) == unit_by_unit(free, of)


@given(st.integers(0, 300), claims)
def test_nothing_is_left_while_anybody_wants_more(free: int, of: list[Claim]) -> None:
    """semantics §6: a free slot is used."""
    shares = fill(free, of)
    assert sum(shares) == min(free, sum(claim.wanted for claim in of))
    assert all(0 <= share <= claim.wanted for share, claim in zip(shares, of, strict=True))


@given(st.integers(0, 300), claims)
def test_nobody_has_less_than_his_part_while_another_has_more(free: int, of: list[Claim]) -> None:
    """semantics §6: max-min: nobody could get more without somebody getting less who has no more than he."""
    shares = fill(free, of)
    for at, claim in enumerate(of):
        if shares[at] == claim.wanted:
            continue
        with_one_more = (claim.held + shares[at] + 1) / claim.weight
        for other, share in zip(of, shares, strict=True):
            if share > 0:
                assert (other.held + share) / other.weight <= with_one_more + 1e-9


def test_a_flood_takes_nothing_that_others_are_due() -> None:
    """semantics §6: whoever wants little has all of it; who holds less catches up first."""
    assert fill(50, [Claim(5000), Claim(20)]) == [30, 20]
    assert fill(50, [Claim(5000), Claim(20), Claim(25)]) == [17, 17, 16]
    assert fill(10, [Claim(5000, held=40), Claim(20)]) == [0, 10]
    assert fill(9, [Claim(99, 2.0), Claim(99, 1.0)]) == [6, 3]
    assert fill(10**9, [Claim(10**8), Claim(10**9)]) == [10**8, 9 * 10**8]
    assert divide(10, {"a": 3, "b": 100}) == {"a": 3, "b": 7}
    assert fill(3, []) == []


queued = st.builds(
    Queued,
    st.uuids(version=4),
    st.sampled_from(["a", "b", "c"]),
    st.integers(0, 3),
    st.just("1"),
    st.booleans(),
    st.integers(0, 50).map(float),
)


@given(st.integers(0, 40), st.lists(queued, max_size=40, unique_by=lambda each: each.id))
def test_of_each_workflow_the_first_are_chosen(room: int, candidates: list[Queued]) -> None:
    """protocols §8: awoken before new, older before newer, whichever shard they stand in; semantics §6: max-min between
    workflows."""
    chosen = choose(room, candidates)
    assert len(chosen) == min(room, len(candidates))
    found = Counter(each.workflow for each in chosen)
    for workflow, wanted in Counter(each.workflow for each in candidates).items():
        mine = [each for each in chosen if each.workflow == workflow]
        rest = [each for each in candidates if each.workflow == workflow and each not in mine]
        assert mine == sorted(mine, key=lambda each: (not each.awoken, each.queued_at, each.id))
        if mine and rest:
            assert mine[-1].place < min(each.place for each in rest)
        if found[workflow] < wanted:
            assert max(found.values(), default=0) <= found[workflow] + 1


workers_alive = st.dictionaries(
    st.integers(1, 99).map(lambda n: UUID(int=n)), st.frozensets(st.sampled_from("abcdef")), max_size=8
)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 70)), workers_alive)
def test_every_shard_has_a_worker_that_is_to_have_it(
    counts: dict[str, int], alive: dict[UUID, frozenset[str]]
) -> None:
    """semantics §6: every worker takes its share: of each workflow among those that know it, to one shard the same."""
    found = quotas(counts, alive, MANY)
    for workflow, count in counts.items():
        able = [worker for worker, known in alive.items() if workflow in known]
        each = [found[worker].get(workflow, 0) for worker in able]
        assert sum(each) == (count if able else 0)
        assert not each or max(each) - min(each) <= 1
        assert all(workflow not in found[worker] for worker in alive.keys() - set(able))


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 70)), st.integers(1, 40))
def test_workers_that_know_the_same_have_the_same_load(counts: dict[str, int], workers: int) -> None:
    """semantics §6: a hundred workflows of one shard each do not all go to one worker."""
    alive = {UUID(int=n): frozenset("abcdef") for n in range(workers)}
    loads = [sum(quota.values()) for quota in quotas(counts, alive, MANY).values()]
    assert max(loads) - min(loads) <= 1


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 70)), workers_alive)
def test_one_coordinator_is_the_eldest(counts: dict[str, int], alive: dict[UUID, frozenset[str]]) -> None:
    """semantics §6: in V1 one worker coordinates the account: the eldest that knows the workflow."""
    found = quotas(counts, alive, ONE)
    for workflow, count in counts.items():
        able = [worker for worker, known in alive.items() if workflow in known]
        assert [found[worker].get(workflow, 0) for worker in able] == (
            [count] + [0] * (len(able) - 1) if able else []
        )


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=6))
def test_gaps_are_what_no_generation_has(cut: list[tuple[int, int]]) -> None:
    """semantics §6: with its gaps every number is looked after."""
    generations, first = [], 0
    for number, (space, shards) in enumerate(cut, 1):
        generations.append(Generation("a", number, first + space, shards))
        first += space + shards
    owned = {number for each in generations for number in range(each.first, each.last + 1)}
    lost = {number for low, high in gaps_of(generations) for number in range(low, high + 1)}
    assert not owned & lost
    assert owned | lost == set(range(HIGHEST + 1))
