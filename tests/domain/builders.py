"""Domain values for tests: each whole and ordinary, but for what a test names."""

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from penstock.domain.flow import Callable, Flow, FlowGroup, Policy, Registration, RunConfig
from penstock.domain.flow_run import Creation, FlowRun, FlowTarget
from penstock.domain.ids import AgentId, ExecutionId, FlowGroupId, FlowId, FlowRunId, LaneId, ProjectId
from penstock.domain.lease import Entry, Execution, Phase
from penstock.domain.state import FINAL, State
from tests.support.fake_clock import NOON

RUN_ID: Final = FlowRunId(UUID("01980000-0000-7000-8000-000000000001"))
FLOW_ID: Final = FlowId(UUID("01980000-0000-7000-8000-000000000002"))
GROUP_ID: Final = FlowGroupId(UUID("01980000-0000-7000-8000-000000000003"))
PROJECT_ID: Final = ProjectId(UUID("01980000-0000-7000-8000-000000000004"))
AGENT_ID: Final = AgentId(UUID("01980000-0000-7000-8000-000000000005"))
EXECUTION_ID: Final = ExecutionId(UUID("01980000-0000-7000-8000-000000000006"))
LANE_ID: Final = LaneId(UUID("01980000-0000-7000-8000-000000000007"))
MINUTE: Final = timedelta(minutes=1)
TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def a_registration(**changes: Any) -> Registration:
    plain = Registration(project_name="water", name="levels", entry_point=Callable("levels.py:main"))
    return replace(plain, **changes)


def a_flow(**registered: Any) -> Flow:
    return Flow(
        id=FLOW_ID,
        group_id=GROUP_ID,
        project_id=PROJECT_ID,
        version=1,
        digest="d1",
        registration=a_registration(**registered),
        create_time=NOON,
        archive_time=None,
    )


def a_group(**changes: Any) -> FlowGroup:
    plain = FlowGroup(
        id=GROUP_ID,
        project_id=PROJECT_ID,
        project_name="water",
        name="levels",
        default_parameters_json=None,
        labels=None,
        run_config=None,
        live_flow_id=FLOW_ID,
        latest_version=1,
        create_time=NOON,
    )
    return replace(plain, **changes)


def a_creation(**changes: Any) -> Creation:
    return replace(Creation(flow_run_id=RUN_ID, target=FlowTarget(FLOW_ID), spare_name="brave otter"), **changes)


def a_flow_run(state: State = State.SCHEDULED, **changes: Any) -> FlowRun:
    plain = FlowRun(
        id=RUN_ID,
        flow_id=FLOW_ID,
        group_id=GROUP_ID,
        flow_name="levels",
        name="brave otter",
        state=state,
        version=3,
        attempt=1,
        retries_left=0,
        scheduled_start_time=NOON,
        create_time=NOON,
        start_time=None,
        finish_time=NOON if state in FINAL else None,
        parameters_json='{"river":"Aare"}',
        context_json="{}",
        labels=("gpu",),
        run_config=RunConfig(),
        policy=Policy(),
        idempotency_key=None,
        parent_id=None,
        result_json=None,
        failure=None,
        traceparent=TRACEPARENT,
        tracestate="",
        fence=7,
    )
    return replace(plain, **changes)


def an_entry(phase: Phase = Phase.HELD, **changes: Any) -> Entry:
    held = phase is not Phase.WAITING
    plain = Entry(
        flow_run_id=RUN_ID,
        lane_id=LANE_ID,
        rank_time=NOON,
        due_time=NOON,
        phase=phase,
        fence=7,
        holder=AGENT_ID if held else None,
        grant_time=NOON if held else None,
        lease_expire_time=NOON + MINUTE if held else None,
    )
    return replace(plain, **changes)


def an_execution(*, started: bool = True, **changes: Any) -> Execution:
    plain = Execution(
        flow_run_id=RUN_ID,
        fence=7,
        attempt=1,
        agent_id=AGENT_ID,
        grant_time=NOON,
        accept_time=NOON,
        execution_id=EXECUTION_ID if started else None,
        start_time=NOON if started else None,
    )
    return replace(plain, **changes)
