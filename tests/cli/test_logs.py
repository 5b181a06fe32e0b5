"""`penstock logs`."""

import json
from typing import Any

import pytest

from flowrun.v1 import flow_run_service_pb2 as verbs
from flowrun.v1 import log_service_pb2 as log_verbs
from penstock.domain.errors import FlowRunNotFound
from tests.cli.command import penstock
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run, some_lines, the_tail_end


@pytest.fixture
def written(services: ScriptedServices) -> ScriptedServices:
    """Services that know a run with two lines."""

    async def tail(request: object, context: Any) -> None:
        await context.write(some_lines("first", "\x1b[2Jsecond"))
        await context.write(the_tail_end("2"))

    lines = some_lines("first", "\x1b[2Jsecond").lines.lines
    services.scripts["GetFlowRun"] = lambda *_: verbs.GetFlowRunResponse(flow_run=a_flow_run())
    services.scripts["ListLogs"] = lambda *_: log_verbs.ListLogsResponse(lines=lines)
    services.scripts["TailLogs"] = tail
    return services


@pytest.mark.parametrize("options", [[], ["--follow"]], ids=["read", "followed"])
async def test_lines_are_shown(options: list[str], written: ScriptedServices) -> None:
    """A log is shown line by line, with time and level, and cannot command the terminal."""
    shown = await penstock("logs", RUN_ID, *options, PENSTOCK_ADDRESS=written.address)

    assert 0 == shown.code
    assert ["INFO     first", r"INFO     \x1b[2Jsecond"] == [line[21:] for line in shown.out.splitlines()]


async def test_what_was_logged_in_several_lines_is_shown_so(services: ScriptedServices) -> None:
    """A traceback reads as a traceback, under the time and the level of its record."""
    lines = some_lines("It failed.\n  File x\nValueError").lines.lines
    services.scripts["GetFlowRun"] = lambda *_: verbs.GetFlowRunResponse(flow_run=a_flow_run())
    services.scripts["ListLogs"] = lambda *_: log_verbs.ListLogsResponse(lines=lines)

    shown = await penstock("logs", RUN_ID, PENSTOCK_ADDRESS=services.address)

    first, *others = shown.out.splitlines()
    assert "INFO     It failed." == first[21:]
    assert [" " * 30 + "  File x", " " * 30 + "ValueError"] == others


@pytest.mark.parametrize("options", [[], ["--follow"]], ids=["read", "followed"])
async def test_lines_are_documents(options: list[str], written: ScriptedServices) -> None:
    """A program gets each line as one document, with its text as it was."""
    shown = await penstock("logs", RUN_ID, "--json", *options, PENSTOCK_ADDRESS=written.address)

    assert ["first", "\x1b[2Jsecond"] == [json.loads(line)["text"] for line in shown.out.splitlines()]


async def test_a_run_that_does_not_exist_is_named(services: ScriptedServices) -> None:
    """A wrong id is refused in the server's words, with exit code 1."""

    def refuse(*_: object) -> None:
        raise FlowRunNotFound(RUN_ID)

    services.scripts["GetFlowRun"] = refuse

    refused = await penstock("logs", RUN_ID, "--follow", PENSTOCK_ADDRESS=services.address)

    assert (1, "", f"penstock: There is no flow run {RUN_ID}.\n") == (refused.code, refused.out, refused.err)
