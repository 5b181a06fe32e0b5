"""From an offer to what the supervisor of its run is told."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeAlias

from flowrun.v1 import flow_run_pb2, lease_pb2, log_pb2
from penstock.agent.leases import LeaseCount
from penstock.agent.run_directory import Assignment
from penstock.agent.settings import AgentSettings
from penstock.runtime import telemetry

Assign: TypeAlias = Callable[[lease_pb2.Offer, LeaseCount], Assignment]

_PROCESS_IGNORES: Final = "The process launcher does not use the run config's {what}; it is ignored."


def by_run_config(settings: AgentSettings, agent_id: str) -> Assign:
    """As the run config says, as far as a process of this machine can do so; the rest is a warning in the log."""

    def assign(offer: lease_pb2.Offer, lease: LeaseCount) -> Assignment:
        config = offer.flow_run.run_config
        asked = (("image", config.image), ("resources", config.resources))
        return replace(
            _assignment_of(offer, lease, settings, agent_id),
            working_directory=config.working_directory,
            warnings=[_PROCESS_IGNORES.format(what=what) for what, given in asked if given],
        )

    return assign


def in_own_surroundings(settings: AgentSettings, agent_id: str) -> Assign:
    """Where this process is: of the run config only the environment counts."""
    return lambda offer, lease: _assignment_of(offer, lease, settings, agent_id)


def _assignment_of(offer: lease_pb2.Offer, lease: LeaseCount, settings: AgentSettings, agent_id: str) -> Assignment:
    run = offer.flow_run
    return Assignment(
        flow_run_id=lease.flow_run_id,
        fence=lease.fence,
        attempt=run.attempt,
        flow_name=run.flow_name,
        flow_run_name=run.name,
        agent_id=agent_id,
        entry_point=offer.flow.entry_point.python,
        command=list(offer.flow.entry_point.command.arguments),
        parameters_json=run.parameters_json,
        context_json=run.context_json,
        environment=dict(run.run_config.environment),
        working_directory="",
        log_level=_level_name(run.policy),
        flow_run_address=settings.flow_run_address,
        queue_address=settings.queue_address,
        log_address=settings.log_address,
        lease_end=lease.end,
        lease_seconds=lease.seconds,
        stop_grace_seconds=settings.stop_grace.total_seconds(),
        lends_token=settings.lend_token,
        trace_context=telemetry.carrier() or {"traceparent": telemetry.new_traceparent()},
    )


def _level_name(policy: flow_run_pb2.FlowRunPolicy) -> str:
    """The level's name; a level that only a newer server knows is as good as none."""
    if policy.log_level == log_pb2.LOG_LEVEL_UNSPECIFIED or policy.log_level not in log_pb2.LogLevel.values():
        return "INFO"
    return log_pb2.LogLevel.Name(policy.log_level).removeprefix("LOG_LEVEL_")
