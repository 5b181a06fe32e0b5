"""Tests of `penstock.domain.flow_run`."""

from dataclasses import replace
from datetime import timedelta
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pendulum import DateTime

from penstock.domain import flow_run
from penstock.domain.errors import InvalidRequest, KeyReused, MoveRefused
from penstock.domain.flow import Flow, FlowGroup, Policy, PolicyAsked, RunConfig, Template
from penstock.domain.flow_run import Creation, FlowRun, KeyReuse, ParentLease, birth, move, plan, repeated
from penstock.domain.json_text import canonical, parse_object
from penstock.domain.limits import PARAMETERS_BYTES_MAX
from penstock.domain.parameters import Parameter, ParameterType
from penstock.domain.state import FINAL, MOVES, Cause, State
from tests.domain.builders import MINUTE, RUN_ID, a_creation, a_flow, a_flow_run, a_group
from tests.support.fake_clock import NOON


def planned(creation: Creation, flow: Flow, group: FlowGroup, now: DateTime) -> FlowRun:
    return plan(creation, Template.of(flow, group), now)


def test_a_plain_plan() -> None:
    """A creation that asks nothing gets a run that waits from now on, as the flow says."""
    flow = a_flow(labels=("gpu",), policy=Policy(max_retries=2), run_config=RunConfig(image="levels:1"))

    run = planned(a_creation(), flow, a_group(), NOON)

    assert (run.state, run.version, run.attempt, run.retries_left, run.fence) == (State.SCHEDULED, 1, 1, 2, 0)
    assert (run.scheduled_start_time, run.create_time, run.start_time, run.finish_time) == (NOON, NOON, None, None)
    assert (run.name, run.parameters_json, run.context_json) == ("brave otter", "{}", "{}")
    assert (("gpu",), RunConfig(image="levels:1")) == (run.labels, run.run_config)


@pytest.mark.parametrize("given_json", ["0", '""', "false", "null"])
def test_a_given_nothing_is_given(given_json: str) -> None:
    """Zero, empty, false and null are values: they go before the group's and the flow's defaults."""
    flow = a_flow(parameters=(Parameter("depth", default_json="7"),))
    group = a_group(default_parameters_json='{"depth": 8}')
    asked = a_creation(parameters=parse_object(f'{{"depth": {given_json}}}'))

    assert f'{{"depth":{given_json}}}' == planned(asked, flow, group, NOON).parameters_json


@pytest.mark.parametrize("default_json", ["0", '""', "false", "null"])
def test_a_default_of_nothing_is_a_default(default_json: str) -> None:
    """Zero, empty, false and null are defaults like any other."""
    flow = a_flow(parameters=(Parameter("depth", default_json=default_json),))

    assert f'{{"depth":{default_json}}}' == planned(a_creation(), flow, a_group(), NOON).parameters_json


def test_which_default_holds() -> None:
    """Given goes before the group's, the group's before the flow's, and what has no default is left out."""
    declared = tuple(Parameter(name, default_json='"flow"') for name in "abc")
    flow = a_flow(parameters=(*declared, Parameter("d")))
    group = a_group(default_parameters_json='{"a":"group","b":"group"}')

    run = planned(a_creation(parameters={"a": "given"}), flow, group, NOON)

    assert run.parameters_json == '{"a":"given","b":"group","c":"flow"}'


def test_a_group_satisfies_a_required_parameter() -> None:
    """A required parameter may come from the group's defaults."""
    flow = a_flow(parameters=(Parameter("river", required=True),))

    run = planned(a_creation(), flow, a_group(default_parameters_json='{"river":"Aare"}'), NOON)

    assert run.parameters_json == '{"river":"Aare"}'


def test_wrong_parameters_are_refused_together() -> None:
    """Missing, unknown and mistyped parameters are all named in one refusal."""
    flow = a_flow(
        parameters=(Parameter("river", ParameterType.STRING, required=True), Parameter("depth", ParameterType.NUMBER))
    )

    with pytest.raises(InvalidRequest) as refused:
        planned(a_creation(parameters={"depth": "deep", "color": "blue"}), flow, a_group(), NOON)

    assert len(refused.value.violations) == 3


def test_defaults_count_towards_the_size() -> None:
    """Parameters are bounded with their defaults: at the limit they are kept, one byte more is refused."""
    flow = a_flow(parameters=(Parameter("a", default_json="0"), Parameter("b")))
    room = PARAMETERS_BYTES_MAX - len('{"a":0,"b":""}')

    planned(a_creation(parameters={"b": "x" * room}), flow, a_group(), NOON)

    with pytest.raises(InvalidRequest, match=f"is {PARAMETERS_BYTES_MAX + 1} bytes with its defaults"):
        planned(a_creation(parameters={"b": "x" * (room + 1)}), flow, a_group(), NOON)


def test_an_empty_list_of_labels_is_a_choice() -> None:
    """Absent labels leave the choice to the group, then to the flow; an empty list makes the run unlabelled."""
    flow = a_flow(labels=("flow",))

    assert planned(a_creation(), flow, a_group(), NOON).labels == ("flow",)
    assert planned(a_creation(), flow, a_group(labels=("group",)), NOON).labels == ("group",)
    assert planned(a_creation(labels=()), flow, a_group(labels=("group",)), NOON).labels == ()


def test_a_run_config_is_taken_whole() -> None:
    """A run config replaces the one beneath it; the two are never mixed."""
    flow = a_flow(run_config=RunConfig(image="flow", environment={"A": "1"}))

    run = planned(
        a_creation(run_config=RunConfig(image="run")), flow, a_group(run_config=RunConfig(image="group")), NOON
    )

    assert RunConfig(image="run") == run.run_config


def test_retries_come_from_the_policy_of_the_run() -> None:
    """What a creation names of a policy replaces the flow's, and the retries that are left follow from it."""
    flow = a_flow(policy=Policy(priority=3, max_retries=1))

    run = planned(a_creation(policy=PolicyAsked(max_retries=5)), flow, a_group(), NOON)

    assert (Policy(priority=3, max_retries=5), 5) == (run.policy, run.retries_left)


@pytest.mark.parametrize(("asked", "due"), [(None, NOON), (NOON - MINUTE, NOON), (NOON + MINUTE, NOON + MINUTE)])
def test_when_a_run_is_due(asked: object, due: object) -> None:
    """No time, or one that has passed, means now."""
    assert due == planned(a_creation(scheduled_start_time=asked), a_flow(), a_group(), NOON).scheduled_start_time


def test_birth() -> None:
    """The first step stands on version 1 and says when the run is due."""
    run = planned(a_creation(scheduled_start_time=NOON + MINUTE), a_flow(), a_group(), NOON)

    step = birth(run)

    assert (step.version, step.state, step.cause, step.attempt) == (1, State.SCHEDULED, Cause.CREATED, 1)
    assert (step.create_time, step.due_time, step.fence) == (NOON, NOON + MINUTE, 0)


@pytest.mark.parametrize("present", list(State))
@pytest.mark.parametrize("asked", list(State))
def test_move(present: State, asked: State) -> None:
    """A move makes the next version and its step, and sets the finish time exactly when the state is final."""
    run = a_flow_run(present)
    at = NOON + MINUTE
    if asked not in MOVES[present]:
        with pytest.raises(MoveRefused):
            move(run, asked, at=at, cause=Cause.FINISHED)
        return

    moved, step = move(run, asked, at=at, cause=Cause.FINISHED, message="so")

    assert replace(run, state=asked, version=4, finish_time=at if asked in FINAL else None) == moved
    assert (RUN_ID, 4, asked, Cause.FINISHED) == (step.flow_run_id, step.version, step.state, step.cause)
    assert ("so", at, 1, 7) == (step.message, step.create_time, step.attempt, step.fence)


def test_what_a_repeat_is_compared_in() -> None:
    """Parameters, context, labels and run config are compared as asked; what honest retries compute anew is not."""
    first = a_creation(idempotency_key="k", parameters={"a": "1"})
    fingerprint = first.written.fingerprint

    retry = replace(
        first, name="other", scheduled_start_time=NOON, spare_name="calm fox", policy=PolicyAsked(priority=9)
    )
    assert repeated(retry, fingerprint, RUN_ID) == ()

    other = replace(first, parameters={"a": "2"}, context={"b": "1"}, labels=(), run_config=RunConfig())
    assert repeated(other, fingerprint, RUN_ID) == ("parameters", "context", "labels", "run_config")


def test_what_a_creation_brings_is_written_before_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither planning nor comparing writes it again, inside the transaction; a changed creation is written anew."""
    asked = a_creation(parameters={"b": "ä", "a": ["x"]}, context={"c": None}, labels=("x",), run_config=RunConfig())
    other = replace(asked, parameters={"b": "u"})
    template = Template.of(a_flow(accepts_extra_parameters=True), a_group(default_parameters_json='{"a":1,"z":2.0}'))
    monkeypatch.setattr(flow_run, "canonical", None)

    run = plan(asked, template, NOON)

    assert ('{"a":["x"],"b":"ä","z":2.0}', '{"c":null}') == (run.parameters_json, run.context_json)
    assert '{"a":1,"b":"u","z":2.0}' == plan(other, template, NOON).parameters_json
    assert ("parameters",) == repeated(other, asked.written.fingerprint, RUN_ID)
    config = canonical(RunConfig().as_json())
    texts = ('{"a":["x"],"b":"ä"}', '{"c":null}', '["x"]', config)
    assert sum(len(text.encode()) for text in texts) == asked.written.bytes_count
    assert sha256(texts[0].encode()).digest() == asked.written.fingerprint.parameters


def test_a_repeat_may_be_refused() -> None:
    """A caller who prefers a refusal gets one that names the run and the differences, but only if there are some."""
    first = a_creation(idempotency_key="k", key_reuse=KeyReuse.REFUSE_IF_DIFFERENT)
    fingerprint = first.written.fingerprint
    assert repeated(first, fingerprint, RUN_ID) == ()

    with pytest.raises(KeyReused) as refused:
        repeated(replace(first, context={"a": "1"}), fingerprint, RUN_ID)

    assert ("k", str(RUN_ID), ("context",)) == (
        refused.value.idempotency_key,
        refused.value.flow_run_id,
        refused.value.differing_fields,
    )


def test_the_parent_is_kept() -> None:
    """A run knows the run that created it."""
    parent = ParentLease(RUN_ID, fence=3)

    assert planned(a_creation(parent=parent), a_flow(), a_group(), NOON).parent_id == RUN_ID


@given(st.integers(0, 10_000_000))
def test_due_is_never_in_the_past(seconds: int) -> None:
    """However late a creation arrives, its run is not due before it exists."""
    now = NOON + timedelta(seconds=seconds)

    run = planned(a_creation(scheduled_start_time=NOON + timedelta(days=30)), a_flow(), a_group(), now)

    assert run.scheduled_start_time >= run.create_time
