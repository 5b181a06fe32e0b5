"""PROCESS: takes flow runs and launches them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.agent.settings import AgentSettings


def run_agent(settings: "AgentSettings") -> int:
    """Take and launch runs until told to stop; return the exit code."""
    # Not imported above: a supervisor is part of this package too, and should not pay for the agent.
    from penstock.agent.session import serve

    return serve(settings)
