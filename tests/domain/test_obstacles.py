"""Tests of `penstock.domain.obstacles`."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from penstock.domain.agent import Agent
from penstock.domain.ids import AgentId
from penstock.domain.lanes import AGENTLESS, may_take
from penstock.domain.obstacles import Agentless, AgentsBusy, NoAgent, NotDue, Situation, obstacles
from tests.support.fake_clock import NOON

label_sets = st.frozensets(st.sampled_from(("cpu", "gpu", "ssd")), max_size=3).map(lambda labels: tuple(sorted(labels)))
agent_lists = st.lists(st.tuples(label_sets, st.integers(1, 2), st.integers(0, 2)), max_size=4).map(
    lambda said: [an_agent(number, *each) for number, each in enumerate(said, 1)]
)


def an_agent(number: int, labels: tuple[str, ...], slots: int, slots_used: int) -> Agent:
    return Agent(AgentId(UUID(int=number)), "mill", labels, slots, slots_used, "1", True, NOON, NOON)


@given(st.booleans(), label_sets, agent_lists, st.booleans())
def test_nothing_is_told_just_when_somebody_takes_it(
    due: bool, labels: tuple[str, ...], agents: list[Agent], agentless: bool
) -> None:
    """A run that is due has no obstacle exactly when an agent that may take it has a slot; being early is told apart
    from that."""
    borne = (*labels, AGENTLESS) if agentless else labels
    taker = any(may_take(frozenset(each.labels), borne) and each.slots_used < each.slots for each in agents)

    told = obstacles(Situation(due, NOON, borne, agents))

    assert (not due) == (NotDue(NOON) in told)
    assert taker == (not [each for each in told if not isinstance(each, NotDue)])
    assert agentless == (Agentless() in told)
    assert len(told) <= 2


@given(label_sets, agent_lists)
def test_the_nearest_agent_lacks_the_fewest(labels: tuple[str, ...], agents: list[Agent]) -> None:
    """Of all that are connected; what it lacks is told."""
    for told in obstacles(Situation(True, NOON, labels, agents)):
        match told:
            case NoAgent(asked, nearest, missing):
                assert labels == asked
                lacking = [tuple(sorted(set(labels) - set(each.labels))) for each in agents]
                assert (nearest is None) == (not agents)
                assert missing == (labels if nearest is None else tuple(sorted(set(labels) - set(nearest.labels))))
                assert all(len(missing) <= len(each) for each in lacking)
            case AgentsBusy(busy):
                assert {each.agent_id for each in busy} == {
                    each.agent_id for each in agents if may_take(frozenset(each.labels), labels)
                }
