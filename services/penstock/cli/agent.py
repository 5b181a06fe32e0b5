"""`penstock agent`: take runs and execute them."""

import sys
from typing import Annotated

import typer

from penstock.cli.failures import told_plainly

app = typer.Typer(name="agent", help="Take flow runs and execute them.", no_args_is_help=True)


@app.callback()
def _agent() -> None:
    """Take flow runs and execute them."""


@app.command("start")
def start(
    label: Annotated[
        list[str] | None, typer.Option(help="Take runs whose labels are among these; may be repeated.")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="How many runs to execute at once.", show_default="4")] = None,
    name: Annotated[str | None, typer.Option(help="What people call this agent.", show_default="this host")] = None,
    lend_token: Annotated[
        bool, typer.Option("--lend-token", help="Let the code of runs use this agent's token, to create runs with.")
    ] = False,
) -> None:
    """Connect to the queue and execute the runs it hands out, until SIGTERM or Ctrl-C.

    An agent without labels takes only runs without labels. The first signal drains: it takes no more runs and waits for
    those it has. A second one stops them.
    """
    with told_plainly():
        from dataclasses import replace

        from penstock.agent import run_agent
        from penstock.agent.settings import AgentSettings

        settings = AgentSettings.load()
        if label is not None:
            settings = replace(settings, labels=",".join(label))
        if slots is not None:
            settings = replace(settings, slots=slots)
        if name is not None:
            settings = replace(settings, name=name)
        if lend_token:
            settings = replace(settings, lend_token=True)
        sys.exit(run_agent(settings))
