"""Tests of `penstock.domain.flow`."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from penstock.domain.errors import FlowArchived, NoLiveFlow
from penstock.domain.flow import Callable, ChildPolicy, Command, Policy, PolicyAsked, RunConfig, runnable
from penstock.domain.ids import FlowId
from penstock.domain.log import LogLevel
from penstock.domain.parameters import Parameter, ParameterType
from tests.domain.builders import a_flow, a_group, a_registration
from tests.support.fake_clock import NOON


@pytest.mark.parametrize(
    "change",
    [
        {"entry_point": Callable("levels.py:other")},
        {"entry_point": Command(("levels.py:main",))},
        {"parameters": (Parameter("river"),)},
        {"parameters": (Parameter("river", default_json="null"),)},
        {"parameters": (Parameter("river", ParameterType.STRING),)},
        {"accepts_extra_parameters": True},
        {"labels": ("gpu",)},
        {"run_config": RunConfig(environment={"A": "1"})},
        {"policy": Policy(priority=1)},
        {"policy": Policy(retry_delay=timedelta(microseconds=1))},
        {"policy": Policy(child_policy=ChildPolicy.ABANDON)},
        {"description": "Levels"},
        {"source_digest": "abc"},
    ],
    ids=str,
)
def test_what_makes_another_version(change: dict[str, Any]) -> None:
    """Whatever a registration says of how it runs is in its digest."""
    assert a_registration().digest() != a_registration(**change).digest()


def test_what_does_not_make_another_version() -> None:
    """Project and name say where a flow stands, not what it is."""
    assert a_registration().digest() == a_registration(project_name="gas", name="pressure").digest()
    assert len(a_registration().digest()) == 64


def test_the_order_of_parameters_counts() -> None:
    """Parameters are declared in an order, and another order is another version."""
    one, other = Parameter("a"), Parameter("b")

    assert a_registration(parameters=(one, other)).digest() != a_registration(parameters=(other, one)).digest()


def test_a_named_zero_is_named() -> None:
    """Of a policy, what was named replaces, even by zero; the rest stays."""
    base = Policy(priority=5, max_retries=2, max_lost_restarts=1, log_level=LogLevel.DEBUG)

    treated = PolicyAsked(priority=0, child_policy=ChildPolicy.ABANDON).over(base)

    assert replace(base, priority=0, child_policy=ChildPolicy.ABANDON) == treated


def test_a_live_flow_is_runnable() -> None:
    """A flow that is not archived may be run, whatever its group thinks is live."""
    flow = a_flow()

    assert flow is runnable(flow, a_group(live_flow_id=None))


def test_a_flow_that_is_archived_between_two_readings_is_runnable() -> None:
    """It was the live one when its group was read; the refusal could name no other."""
    archived = replace(a_flow(), archive_time=NOON)

    assert archived is runnable(archived, a_group())


def test_an_archived_flow_is_refused() -> None:
    """The refusal names the live flow, or says that there is none."""
    archived = replace(a_flow(), archive_time=NOON)
    live = FlowId(UUID(int=9))

    with pytest.raises(FlowArchived, match=f"{live} is the live flow of its group"):
        runnable(archived, a_group(live_flow_id=live))
    with pytest.raises(NoLiveFlow):
        runnable(archived, a_group(live_flow_id=None))
