"""`penstock run`."""

import asyncio
import json
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flowrun.v1 import flow_pb2, flow_run_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from flowrun.v1 import flow_service_pb2 as flow_verbs
from penstock.cli import run
from penstock.cli.failures import CommandFailed
from penstock.client import AsyncClient
from penstock.domain.errors import FlowNotFound, InvalidRequest, Unavailable, Violation
from tests.cli.command import line_with, penstock, running
from tests.client.scripted import (
    RUN_ID,
    ScriptedServices,
    a_flow_run,
    a_step,
    some_lines,
    the_tail_end,
    the_watch_end,
)

FLOW = flow_pb2.Flow(flow_id="flow", flow_group_id="group", name="river", version=3)


@pytest.fixture
def river(services: ScriptedServices) -> ScriptedServices:
    """Services that know a flow and create runs of it."""
    services.scripts["LookUpFlow"] = lambda *_: flow_verbs.LookUpFlowResponse(flow=FLOW)
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)
    return services


def ends(services: ScriptedServices, state: int, **fields: Any) -> None:
    """Let the run of these services write two lines and reach that state."""

    async def watch(request: verbs.WatchFlowRunRequest, context: Any) -> None:
        for message in (a_step(2), a_step(3, state), the_watch_end()):
            await context.write(message)

    async def tail(request: object, context: Any) -> None:
        await context.write(some_lines("first", "\x1b[2Jsecond"))
        await context.write(the_tail_end("2"))

    final = a_flow_run(state=flow_run_pb2.FlowRunState.ValueType(state), **fields)
    services.scripts["WatchFlowRun"] = watch
    services.scripts["TailLogs"] = tail
    services.scripts["GetFlowRun"] = lambda *_: verbs.GetFlowRunResponse(flow_run=final)


async def test_a_run_is_created_as_asked(river: ScriptedServices, tmp_path: Path) -> None:
    """Options reach the server: parameters from file and command line, context, labels, name and key."""
    (tmp_path / "p.json").write_text('{"a": 1, "b": 2}')

    shown = await penstock(
        *("run", "--name", "river", "--project", "water", "--param", "b=3", "--param", "city=Bern"),
        *("--param-file", str(tmp_path / "p.json"), "--context", "why=test", "--label", "x", "--label", "y"),
        *("--run-name", "first", "--idempotency-key", "once"),
        PENSTOCK_ADDRESS=river.address,
    )

    lookup, creation = river.requests
    assert flow_verbs.FlowName(name="river", project_name="water") == lookup.name
    assert {"a": 1, "b": 3, "city": "Bern"} == json.loads(creation.parameters_json)
    assert {"why": "test"} == json.loads(creation.context_json)
    assert ["x", "y"] == list(creation.labels.labels)
    assert ("first", "once", "group") == (creation.name, creation.idempotency_key, creation.flow_group_id)
    assert 0 == shown.code
    assert f"Created flow run quiet-otter of flow river.\n  id         {RUN_ID}\n" in shown.out
    assert "penstock: --param goes before --param-file for: b\n" == shown.err


@pytest.mark.parametrize(("given", "target"), [("flow", "flow_id"), ("group", "flow_group_id")])
async def test_an_id_may_be_a_flow_or_a_group(given: str, target: str, river: ScriptedServices) -> None:
    """The id of a flow runs that version, the id of a group whichever is live."""
    await penstock("run", "--id", given, PENSTOCK_ADDRESS=river.address)

    assert target == river.requests[-1].WhichOneof("target")


async def test_quiet_prints_the_id_alone(river: ScriptedServices) -> None:
    """A script gets the run's id and nothing else."""
    shown = await penstock("run", "--name", "river", "--quiet", PENSTOCK_ADDRESS=river.address)

    assert (0, f"{RUN_ID}\n", "") == (shown.code, shown.out, shown.err)


async def test_json_prints_the_run(river: ScriptedServices) -> None:
    """A program gets the run as one document."""
    shown = await penstock("run", "--name", "river", "--json", PENSTOCK_ADDRESS=river.address)

    document = json.loads(shown.out)
    assert (RUN_ID, True, "SCHEDULED") == (document["flow_run_id"], document["created"], document["state"])
    assert 123456789012345678901234567890 == document["parameters"]["big"]


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        (flow_run_pb2.FLOW_RUN_STATE_SUCCEEDED, 0, "Flow run quiet-otter succeeded."),
        (flow_run_pb2.FLOW_RUN_STATE_FAILED, 1, "Flow run quiet-otter failed: ValueError: no such river"),
        (flow_run_pb2.FLOW_RUN_STATE_CANCELLED, 3, "Flow run quiet-otter cancelled."),
    ],
)
async def test_a_watched_run_decides_the_exit_code(state: int, code: int, words: str, river: ScriptedServices) -> None:
    """Watching shows states and lines, the final state last, and exits as the run ended."""
    failed = flow_run_pb2.FLOW_RUN_STATE_FAILED == state
    ends(river, state, failure=flow_run_pb2.Failure(type="ValueError", message="no such river") if failed else None)

    shown = await penstock("run", "--name", "river", "--watch", PENSTOCK_ADDRESS=river.address)

    lines = shown.out.splitlines()
    assert code == shown.code
    assert words == lines[-1]
    assert ["RUNNING"] == [line.split()[1] for line in lines if "RUNNING" in line]
    assert lines[-2].endswith(flow_run_pb2.FlowRunState.Name(state).removeprefix("FLOW_RUN_STATE_"))  # type: ignore[arg-type]
    assert any(line.endswith("│ INFO     first") for line in lines)


async def test_a_log_line_cannot_command_the_terminal(river: ScriptedServices) -> None:
    """An escape code in a log line is shown, not sent."""
    ends(river, flow_run_pb2.FLOW_RUN_STATE_SUCCEEDED)

    shown = await penstock("run", "--name", "river", "--watch", PENSTOCK_ADDRESS=river.address)

    assert r"\x1b[2Jsecond" in shown.out
    assert "\x1b" not in shown.out


async def test_watched_json_is_one_event_per_line(river: ScriptedServices) -> None:
    """A program that watches gets each event as a document: created, states and lines, the end."""
    ends(river, flow_run_pb2.FLOW_RUN_STATE_SUCCEEDED)

    shown = await penstock("run", "--name", "river", "--watch", "--json", PENSTOCK_ADDRESS=river.address)

    events = [json.loads(line) for line in shown.out.splitlines()]
    assert ("created", "end") == (events[0]["event"], events[-1]["event"])
    assert ["RUNNING", "SUCCEEDED"] == [e["transition"]["state"] for e in events if e["event"] == "state"]
    assert ["first", "\x1b[2Jsecond"] == [e["line"]["text"] for e in events if e["event"] == "log"]


async def test_leaving_a_watch_leaves_the_run(river: ScriptedServices) -> None:
    """Ctrl-C ends the watching, not the run, and says how to see more of it."""

    async def watch(request: object, context: Any) -> None:
        await context.write(a_step(2))
        await asyncio.Event().wait()

    async def tail(request: object, context: Any) -> None:
        await asyncio.Event().wait()

    river.scripts |= {"WatchFlowRun": watch, "TailLogs": tail}
    async with running("run", "--name", "river", "--watch", PENSTOCK_ADDRESS=river.address) as process:
        await line_with("RUNNING", process)

        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()

    assert 130 == process.returncode
    assert f"The run goes on. See how it fares with: penstock logs {RUN_ID} --follow" in err.decode()
    assert "Traceback" not in err.decode()


async def test_a_log_that_cannot_be_followed_does_not_end_the_watch(river: ScriptedServices) -> None:
    """Without the log, the states are still shown to the end."""
    ends(river, flow_run_pb2.FLOW_RUN_STATE_SUCCEEDED)
    del river.scripts["TailLogs"]

    shown = await penstock("run", "--name", "river", "--watch", PENSTOCK_ADDRESS=river.address)

    assert 0 == shown.code
    assert "The log cannot be followed: " in shown.out


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--id", "x", "--name", "y"],
        ["--id", "x", "--project", "p"],
        ["--name", "x", "--quiet", "--json"],
        ["--name", "x", "--param", "a={b"],
        ["--name", "x", "--param-file", "nothing.json"],
    ],
    ids=" ".join,
)
async def test_misuse_is_refused_before_any_call(options: list[str], river: ScriptedServices) -> None:
    """A command line that cannot be meant is refused with exit code 2, and nothing is created."""
    refused = await penstock("run", *options, PENSTOCK_ADDRESS=river.address)

    assert (2, "") == (refused.code, refused.out)
    assert refused.err.startswith("penstock: ")
    assert not river.requests


async def test_a_refusal_is_the_servers_sentence(services: ScriptedServices) -> None:
    """What the server refuses is shown in its own words, with exit code 1."""

    def refuse(*_: object) -> None:
        raise FlowNotFound("'river'")

    services.scripts["LookUpFlow"] = refuse

    refused = await penstock("run", "--name", "river", PENSTOCK_ADDRESS=services.address)

    assert (1, "", "penstock: There is no flow 'river'.\n") == (refused.code, refused.out, refused.err)


async def test_every_violation_is_shown(river: ScriptedServices) -> None:
    """All that is wrong with a request is listed, one per line, and safe to show."""

    def refuse(*_: object) -> None:
        raise InvalidRequest(
            (Violation("parameters.x", "is no \x1b[2Jinteger."), Violation("parameters.y", "is missing."))
        )

    river.scripts["CreateFlowRun"] = refuse

    refused = await penstock("run", "--name", "river", PENSTOCK_ADDRESS=river.address)

    expected = "The request is invalid:\n  parameters.x: is no \\x1b[2Jinteger.\n  parameters.y: is missing.\n"
    assert (1, f"penstock: {expected}") == (refused.code, refused.err)


async def test_a_watch_goes_on_after_a_break(river: ScriptedServices) -> None:
    """A service that restarts under a watch is not noticed."""
    ends(river, flow_run_pb2.FLOW_RUN_STATE_SUCCEEDED)
    whole = river.scripts["WatchFlowRun"]
    breaks = iter([True])

    async def watch(request: Any, context: Any) -> None:
        if next(breaks, False):
            raise Unavailable("it is draining")
        await whole(request, context)

    river.scripts["WatchFlowRun"] = watch

    shown = await penstock("run", "--name", "river", "--watch", PENSTOCK_ADDRESS=river.address)

    assert (0, "") == (shown.code, shown.err)


async def test_lost_contact_has_its_own_exit_code(river: ScriptedServices) -> None:
    """Who watches a run whose server stays away is told so, and how to see more of the run."""

    async def watch(request: object, context: object) -> None:
        raise Unavailable("it is draining")

    river.scripts |= {"WatchFlowRun": watch, "TailLogs": watch}
    async with AsyncClient(river.address, patience=timedelta(seconds=0.1)) as client:
        with pytest.raises(CommandFailed, match="Contact was lost: This process cannot serve now") as failed:
            await run._watch(client, RUN_ID, run._Output(quiet=True, as_json=False, watch=True))

    assert 4 == failed.value.exit_code
    assert f"penstock logs {RUN_ID} --follow" in str(failed.value)
