"""`penstock run --watch`."""

import asyncio
import json
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flowrun.v1 import flow_run_pb2, operator_service_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from flowrun.v1 import flow_service_pb2 as flow_verbs
from penstock.cli import watching
from penstock.cli.failures import CommandFailed
from penstock.cli.run_output import RunOutput
from penstock.client import AsyncClient, LogLine, Transition
from penstock.domain.errors import FlowRunNotFound, Unavailable
from penstock.domain.lanes import AGENTLESS
from tests.cli.command import line_with, penstock, running
from tests.cli.conftest import RunningServer
from tests.cli.terminal import CTRL_C, at_a_terminal
from tests.client.scripted import (
    RUN_ID,
    ScriptedServices,
    a_flow_run,
    a_step,
    some_lines,
    the_tail_end,
)

CANCELLED = flow_run_pb2.FLOW_RUN_STATE_CANCELLED
FAILED = flow_run_pb2.FLOW_RUN_STATE_FAILED
SCHEDULED = flow_run_pb2.FLOW_RUN_STATE_SCHEDULED
SUCCEEDED = flow_run_pb2.FLOW_RUN_STATE_SUCCEEDED


def ends(services: ScriptedServices, state: int, **fields: Any) -> None:
    """Let the run of these services write two lines and reach that state."""
    services.scripts["WatchFlowRun"] = watch_to(state, **fields)
    services.scripts["TailLogs"] = two_lines


def watch_to(state: int, **fields: Any) -> Callable[[Any, Any], Any]:
    """A watch of a run that reaches this state."""
    final = a_flow_run(state=flow_run_pb2.FlowRunState.ValueType(state), **fields)
    last = a_step(3, state)
    if final.HasField("failure"):
        last.transition.message = f"{final.failure.type}: {final.failure.message}"

    async def watch(request: verbs.WatchFlowRunRequest, context: Any) -> None:
        for message in (a_step(2), last, verbs.WatchFlowRunResponse(end=verbs.WatchEnd(flow_run=final))):
            await context.write(message)

    return watch


async def two_lines(request: object, context: Any) -> None:
    await context.write(some_lines("first", "\x1b[2Jsecond"))
    await context.write(the_tail_end("2"))


async def for_ever(request: object, context: object) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        (SUCCEEDED, 0, "Flow run quiet-otter succeeded."),
        (FAILED, 1, "Flow run quiet-otter failed: ValueError: no such river"),
        (CANCELLED, 3, "Flow run quiet-otter cancelled."),
    ],
)
async def test_a_watched_run_decides_the_exit_code(state: int, code: int, words: str, river: ScriptedServices) -> None:
    """Watching shows states and lines, the final state last, and exits as the run ended. A failure is said once."""
    failure = flow_run_pb2.Failure(type="ValueError", message="no such river") if state == FAILED else None
    ends(river, state, failure=failure)

    shown = await penstock("run", "--name", "river", "--watch", PENSTOCK_ADDRESS=river.address)

    lines = shown.out.splitlines()
    assert code == shown.code
    assert words == lines[-1]
    assert ["RUNNING"] == [line.split()[1] for line in lines if "RUNNING" in line]
    assert lines[-2].endswith(flow_run_pb2.FlowRunState.Name(state).removeprefix("FLOW_RUN_STATE_"))  # type: ignore[arg-type]
    assert any(line.endswith("│ INFO     first") for line in lines)
    assert (state == FAILED) == shown.out.count("no such river")


async def test_a_cancelled_run_is_not_given_the_reason_of_an_earlier_failure(river: ScriptedServices) -> None:
    """A run that failed, was to be tried again and was then cancelled, did not end for why it failed."""
    ends(river, CANCELLED, failure=flow_run_pb2.Failure(type="ValueError", message="no such river"))

    shown = await penstock("run", "--name", "river", "--watch", PENSTOCK_ADDRESS=river.address)

    assert (3, "Flow run quiet-otter cancelled.") == (shown.code, shown.out.splitlines()[-1])


async def test_a_watch_may_leave_the_log_out(river: ScriptedServices) -> None:
    """With --no-logs only states are shown, and the log is not even asked for."""
    ends(river, SUCCEEDED)
    del river.scripts["TailLogs"]

    shown = await penstock("run", "--name", "river", "--watch", "--no-logs", PENSTOCK_ADDRESS=river.address)

    assert (0, "") == (shown.code, shown.err)
    assert "│" not in shown.out
    assert "The log cannot be followed" not in shown.out
    assert "RUNNING" in shown.out


async def test_a_run_that_ended_is_not_executed_again(river: ScriptedServices) -> None:
    """Who repeats --execute under a key, after the run has ended, sees how it ended."""
    ends(river, SUCCEEDED)
    run = a_flow_run(state=SUCCEEDED, labels=[AGENTLESS])
    river.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=run, created=False)
    river.scripts["GetFlowGroup"] = lambda *_: flow_verbs.GetFlowGroupResponse()
    command = ("run", "--name", "river", "--execute", "--idempotency-key", "k")

    shown = await penstock(*command, PENSTOCK_ADDRESS=river.address)

    assert (0, "") == (shown.code, shown.err)
    assert "This idempotency key had already created flow run quiet-otter" in shown.out
    assert "Flow run quiet-otter succeeded." in shown.out


async def test_a_log_line_cannot_command_the_terminal(river: ScriptedServices) -> None:
    """An escape code in a log line is shown, not sent."""
    ends(river, SUCCEEDED)

    shown = await penstock("run", "--name", "river", "--watch", PENSTOCK_ADDRESS=river.address)

    assert r"\x1b[2Jsecond" in shown.out
    assert "\x1b" not in shown.out


async def test_watched_json_is_one_event_per_line(river: ScriptedServices) -> None:
    """A program that watches gets each event as a document: created, states and lines, the end."""
    ends(river, SUCCEEDED)

    shown = await penstock("run", "--name", "river", "--watch", "--json", PENSTOCK_ADDRESS=river.address)

    events = [json.loads(line) for line in shown.out.splitlines()]
    assert ("created", "end") == (events[0]["event"], events[-1]["event"])
    assert ["RUNNING", "SUCCEEDED"] == [e["transition"]["state"] for e in events if e["event"] == "state"]
    assert ["first", "\x1b[2Jsecond"] == [e["line"]["text"] for e in events if e["event"] == "log"]


async def test_an_attempt_that_waits_tells_until_when(river: ScriptedServices) -> None:
    """A run that waits for its next attempt shows why it is made again, and when."""
    again = a_step(3, SCHEDULED)
    again.transition.message = "ValueError: dry"
    again.transition.attempt = 2
    again.transition.due_time.FromJsonString("2026-03-01T10:05:00Z")
    whole = watch_to(SUCCEEDED)

    async def watch(request: object, context: Any) -> None:
        await context.write(again)
        await whole(request, context)

    river.scripts |= {"WatchFlowRun": watch, "TailLogs": two_lines}

    shown = await penstock("run", "--name", "river", "--watch", PENSTOCK_ADDRESS=river.address, TZ="UTC")

    assert "10:00:03  SCHEDULED  ValueError: dry; due at 2026-03-01 10:05:00\n" in shown.out


async def test_a_log_that_cannot_be_followed_does_not_end_the_watch(river: ScriptedServices) -> None:
    """Without the log, the states are still shown to the end."""
    ends(river, SUCCEEDED)
    del river.scripts["TailLogs"]

    shown = await penstock("run", "--name", "river", "--watch", PENSTOCK_ADDRESS=river.address)

    assert 0 == shown.code
    assert "The log cannot be followed: " in shown.out


async def test_a_watch_goes_on_after_each_break(river: ScriptedServices) -> None:
    """A service that restarts under a watch is not noticed, not even at its very end."""
    ends(river, SUCCEEDED)
    whole = river.scripts["WatchFlowRun"]
    breaks = iter([True, False, True])  # the watch, the watch again, the question how it ended

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
            await watching.watch(client, RUN_ID, RunOutput(quiet=True, follows=True))

    assert 4 == failed.value.exit_code
    assert f"penstock logs {RUN_ID} --follow" in str(failed.value)


async def test_leaving_a_watch_leaves_the_run(river: ScriptedServices) -> None:
    """Where nobody can be asked, Ctrl-C ends the watching, not the run, and says how to see more of it."""

    async def watch(request: object, context: Any) -> None:
        await context.write(a_step(2))
        await for_ever(request, context)

    river.scripts |= {"WatchFlowRun": watch, "TailLogs": for_ever}
    async with running("run", "--name", "river", "--watch", PENSTOCK_ADDRESS=river.address) as process:
        await line_with("RUNNING", process)

        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()

    assert 130 == process.returncode
    assert f"The run goes on. See how it fares with: penstock logs {RUN_ID} --follow" in err.decode()
    assert "Detach" not in err.decode()
    assert "Traceback" not in err.decode()
    assert not any(isinstance(request, verbs.CancelFlowRunRequest) for request in river.requests)


class Asked:
    """A run that runs until it is cancelled, watched at a terminal."""

    def __init__(self, services: ScriptedServices) -> None:
        self.services = services
        self.cancelled = asyncio.Event()
        services.scripts |= {"WatchFlowRun": self._watch, "TailLogs": self._tail, "CancelFlowRun": self._cancel}

    @property
    def reasons(self) -> list[str]:
        return [each.reason for each in self.services.requests if isinstance(each, verbs.CancelFlowRunRequest)]

    async def _watch(self, request: object, context: Any) -> None:
        await context.write(a_step(2))
        await self.cancelled.wait()
        await context.write(a_step(3, flow_run_pb2.FLOW_RUN_STATE_CANCELLING))
        await context.write(a_step(4, CANCELLED))
        final = a_flow_run(state=CANCELLED)
        await context.write(verbs.WatchFlowRunResponse(end=verbs.WatchEnd(flow_run=final)))

    async def _tail(self, request: object, context: Any) -> None:
        await self.cancelled.wait()
        await context.write(the_tail_end("0"))

    def _cancel(self, *_: object) -> verbs.CancelFlowRunResponse:
        self.cancelled.set()
        return verbs.CancelFlowRunResponse(flow_run=a_flow_run(state=flow_run_pb2.FLOW_RUN_STATE_CANCELLING))


@pytest.fixture
def asked(river: ScriptedServices) -> Asked:
    """A run that is only ended by cancelling it."""
    return Asked(river)


async def test_ctrl_c_with_a_closed_input_lets_go(asked: Asked) -> None:
    """Where there is no standard input nobody can be asked, and the command lets go of the run."""
    async with running(*WATCH, closed=0, PENSTOCK_ADDRESS=asked.services.address) as process:
        await line_with("RUNNING", process)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            _, err = await process.communicate()

    assert 130 == process.returncode
    assert [] == asked.reasons
    assert err.decode().startswith("\nNot watching any more. The run goes on.")


WATCH = ("run", "--name", "river", "--watch")


@pytest.mark.parametrize("answer", ["c\n", "Cancel\n", "what\nc\n"])
async def test_ctrl_c_may_cancel_the_run(answer: str, asked: Asked) -> None:
    """Who answers that the run shall be cancelled goes on watching until it is."""
    async with at_a_terminal(*WATCH, PENSTOCK_ADDRESS=asked.services.address) as terminal:
        await terminal.until("RUNNING")
        terminal.type(CTRL_C)
        await terminal.until("Detach, or cancel the run? [d/c]")
        terminal.type(answer)
        code = await terminal.ended()

    assert 3 == code, terminal.shown
    assert [watching.CANCEL_REASON] == asked.reasons
    assert "CANCELLING" in terminal.shown
    assert terminal.shown.rstrip().endswith("cancelled.")


@pytest.mark.parametrize("answer", ["d\n", "\n", "\x04", CTRL_C], ids=["d", "nothing", "end of input", "Ctrl-C"])
async def test_ctrl_c_may_let_go_of_the_run(answer: str, asked: Asked) -> None:
    """Whoever says so, says nothing, or presses Ctrl-C again lets go of the run, which goes on."""
    async with at_a_terminal(*WATCH, PENSTOCK_ADDRESS=asked.services.address) as terminal:
        await terminal.until("RUNNING")
        terminal.type(CTRL_C)
        await terminal.until("Detach, or cancel the run? [d/c]")
        terminal.type(answer)
        code = await terminal.ended()

    assert 130 == code, terminal.shown
    assert [] == asked.reasons
    assert f"penstock logs {RUN_ID} --follow" in terminal.shown


async def test_ctrl_c_while_cancelling_lets_go(asked: Asked) -> None:
    """Who has asked for the run to stop and does not want to wait presses Ctrl-C again, and is asked nothing."""
    asked.services.scripts["CancelFlowRun"] = lambda *_: verbs.CancelFlowRunResponse(flow_run=a_flow_run())
    async with at_a_terminal(*WATCH, PENSTOCK_ADDRESS=asked.services.address) as terminal:
        await terminal.until("RUNNING")
        terminal.type(CTRL_C)
        await terminal.until("[d/c]")
        terminal.type("c\n")
        await terminal.until("The run was asked to stop.")
        terminal.type(CTRL_C)
        code = await terminal.ended()

    assert 130 == code, terminal.shown
    assert 1 == terminal.shown.count("[d/c]")


async def test_a_question_is_dropped_when_the_run_ends(asked: Asked) -> None:
    """A run that ends while its user thinks needs no answer any more; what was missed meanwhile is shown."""
    async with at_a_terminal(*WATCH, PENSTOCK_ADDRESS=asked.services.address) as terminal:
        await terminal.until("RUNNING")
        terminal.type(CTRL_C)
        await terminal.until("[d/c]")
        asked.cancelled.set()
        code = await terminal.ended()

    assert 3 == code, terminal.shown
    after = terminal.shown.partition("[d/c]")[2]
    assert ["CANCELLING", "CANCELLED"] == [word for word in after.split() if word.startswith("CANCELL")]


async def test_a_cancel_that_is_refused_is_told(asked: Asked) -> None:
    """When the run cannot be cancelled the watch goes on, and Ctrl-C asks again."""

    def refuse(*_: object) -> None:
        raise FlowRunNotFound(RUN_ID)

    asked.services.scripts["CancelFlowRun"] = refuse
    async with at_a_terminal(*WATCH, PENSTOCK_ADDRESS=asked.services.address) as terminal:
        await terminal.until("RUNNING")
        terminal.type(CTRL_C)
        await terminal.until("[d/c]")
        terminal.type("c\n")
        await terminal.until("The run could not be cancelled: There is no flow run")
        terminal.type(CTRL_C)
        await terminal.until("[d/c]", times=2)
        terminal.type(CTRL_C)
        code = await terminal.ended()

    assert 130 == code, terminal.shown


@pytest.mark.slow
async def test_a_run_that_no_agent_may_take(server: RunningServer) -> None:
    """On a real installation: a run that waits says for what, is cancelled at once, and never ran."""
    await penstock("register", "penstock.examples.hello_world", "--project", "examples", **server.variables)
    command = ("run", "--name", "hello-world", "--param", "name=you", "--label", "desert", "--watch")

    async with at_a_terminal(*command, **server.variables) as terminal:
        await terminal.until("The run waits: ")
        terminal.type(CTRL_C)
        await terminal.until("[d/c]")
        terminal.type("c\n")
        code = await terminal.ended()

    assert 3 == code, terminal.shown
    assert "desert" in terminal.shown.partition("The run waits: ")[2].partition("\n")[0]
    assert "RUNNING" not in terminal.shown


class Notes:
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.arrived = asyncio.Event()

    def state(self, step: Transition) -> None:
        pass

    def line(self, line: LogLine) -> None:
        pass

    def note(self, text: str) -> None:
        self.texts.append(text)
        self.arrived.set()


def no_agent(*labels: str) -> operator_service_pb2.ExplainFlowRunResponse:
    obstacle = operator_service_pb2.Obstacle(no_agent=operator_service_pb2.NoAgent(labels=labels))
    return operator_service_pb2.ExplainFlowRunResponse(flow_run=a_flow_run(), obstacles=[obstacle])


async def test_a_run_that_waits_is_explained(river: ScriptedServices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a due run waits is said once, again when it changes, and not at all while it is not known."""
    monkeypatch.setattr(watching, "EXPLAIN_SECONDS", 0.01)
    not_due = operator_service_pb2.Obstacle()
    not_due.due_time.FromJsonString("2126-01-01T00:00:00Z")
    answers = iter(
        [
            operator_service_pb2.ExplainFlowRunResponse(flow_run=a_flow_run(), obstacles=[not_due]),
            *[no_agent("a")] * 3,
            None,
            no_agent("a", "b"),
        ]
    )
    asked = asyncio.Event()

    def explain(*_: object) -> operator_service_pb2.ExplainFlowRunResponse:
        answer = next(answers, no_agent("a", "b"))
        if answer is None:
            raise Unavailable("it is draining")
        if len(river.requests) > 10:
            asked.set()
        return answer

    async def watch(request: object, context: Any) -> None:
        await context.write(a_step(1, SCHEDULED))
        await asked.wait()
        await watch_to(SUCCEEDED)(request, context)

    river.scripts |= {"WatchFlowRun": watch, "ExplainFlowRun": explain}
    notes, output = Notes(), RunOutput(follows=True, logs=False)
    monkeypatch.setattr(output, "display", lambda: notes)
    async with AsyncClient(river.address) as client:
        assert 0 == await watching.watch(client, RUN_ID, output)

    assert 2 == len(notes.texts)
    assert all(text.startswith("The run waits: No agent is connected") for text in notes.texts)


async def test_a_run_that_is_not_due_is_not_explained(river: ScriptedServices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked why a run waits that is not to start yet, or has started."""
    monkeypatch.setattr(watching, "EXPLAIN_SECONDS", 0.01)
    river.scripts["ExplainFlowRun"] = lambda *_: no_agent("a")
    gate = watching.Gate(Notes())
    async with AsyncClient(river.address) as client:
        explaining = asyncio.create_task(watching.explain_waiting(client, RUN_ID, gate))
        for step in (a_step(1, SCHEDULED), a_step(2)):
            step.transition.due_time.FromJsonString("2126-01-01T00:00:00Z")
            gate.state(await _transition(client, river, step))
            await asyncio.sleep(0.1)
        explaining.cancel()

    assert not any(isinstance(each, operator_service_pb2.ExplainFlowRunRequest) for each in river.requests)


async def _transition(client: AsyncClient, services: ScriptedServices, step: verbs.WatchFlowRunResponse) -> Transition:
    """The transition in a message, as a client reads it."""

    async def watch(request: object, context: Any) -> None:
        await context.write(step)
        await watch_to(SUCCEEDED)(request, context)

    services.scripts["WatchFlowRun"] = watch
    return await anext(client.watch_flow_run(RUN_ID))
