"""`penstock cancel`: stop a flow run."""

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.failures import EXIT_LOST_CONTACT, CommandFailed, sentence_of, told_plainly
from penstock.cli.which_run import Run, find_run

if TYPE_CHECKING:
    from penstock.client import Client, FlowRun


def cancel(
    run: Run,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history of the run.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run as a JSON document.")] = False,
) -> None:
    """Stop a flow run, and say what became of it.

    A run that waits is cancelled at once. One that an agent holds is stopped by it: first politely, then by force. One
    that has ended stays as it ended. Exits 0 in all these cases, because none of these runs will do more; with --wait
    4 when contact to the server was lost while waiting.
    """
    with told_plainly({"reason": "--reason"}):
        from penstock.client import Client

        with Client() as client:
            before = find_run(client, run)
            after = client.cancel_flow_run(before.flow_run_id, reason=reason)
            if wait and not after.state.is_final:
                if not as_json:
                    _say(before, after)
                after = _ended(client, after)
            if as_json:
                from penstock.cli.json_output import to_json

                typer.echo(to_json(after))
            else:
                _say(before, after)


def _ended(client: "Client", run: "FlowRun") -> "FlowRun":
    from penstock.client import PenstockError

    try:
        return client.wait_for_flow_run(run.flow_run_id)
    except PenstockError as error:
        if error.passing:
            text = f"Contact was lost: {sentence_of(error)}\nThe run is being stopped all the same."
            raise CommandFailed(text, EXIT_LOST_CONTACT) from error
        raise


def _say(before: "FlowRun", after: "FlowRun") -> None:
    from penstock.cli.screen import STYLES, Screen
    from penstock.client import FlowRunState

    state = (after.state, STYLES.get(after.state, ""))
    screen, who = Screen(), f"Flow run {after.name}"
    if before.state.is_final:
        screen.line(f"{who} had ended already: ", state, ".")
    elif after.state is FlowRunState.CANCELLED:
        screen.line(f"{who} is cancelled.")
    elif after.state.is_final:
        screen.line(f"{who} ended before it could be stopped: ", state, ".")
    else:
        screen.line(f"{who} is being stopped.")
