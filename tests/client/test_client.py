"""What both clients do around every call."""

import asyncio
import inspect
from datetime import timedelta
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from flowrun.v1 import flow_run_service_pb2 as verbs
from flowrun.v1 import log_service_pb2 as log_verbs
from penstock.client import AsyncClient, Client, CutOff, FlowRunState, NotFound, Unauthenticated, flow_runs
from penstock.client.calls import Ending
from penstock.domain.errors import FlowRunNotFound, Overloaded, Unavailable
from penstock.runtime import telemetry
from penstock.runtime.settings import ClientSettings
from tests.client.conftest import Speak
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run, a_step, some_lines, the_tail_end, the_watch_end


def test_both_forms_have_the_same_verbs() -> None:
    """Whatever one form can say, the other can, with the same arguments."""
    assert _verbs(Client) == _verbs(AsyncClient)
    assert "create_flow_run" in _verbs(Client)


def test_a_verb_shows_its_arguments_and_its_text() -> None:
    """Help on a verb tells what it takes and does."""
    assert ["self", "flow_run_id", "after_version"] == list(inspect.signature(Client.watch_flow_run).parameters)
    assert "Follow a run" in str(Client.watch_flow_run.__doc__)
    assert "watch_flow_run" == AsyncClient.watch_flow_run.__name__


async def test_a_caller_that_records_nothing_sends_no_trace(speak: Speak, services: ScriptedServices) -> None:
    """A service that records would otherwise take an invented, unsampled trace for the caller's wish."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)

    await speak("create_flow_run", flow_id="flow")

    assert "traceparent" not in services.metadata[0]


async def test_a_call_bears_the_trace_it_is_made_in(speak: Speak, services: ScriptedServices) -> None:
    """A caller's own trace goes on through the call."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)
    outer = telemetry.new_traceparent()

    with telemetry.attached(telemetry.context_from(outer)):
        await speak("create_flow_run", flow_id="flow")

    assert telemetry.trace_id_of(outer) == telemetry.trace_id_of(services.metadata[0]["traceparent"])


async def test_a_creation_goes_on_with_the_trace_of_its_process(
    speak: Speak, services: ScriptedServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread of a run's body, or in a command that is one, the trace is known from the environment alone."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)
    inherited = telemetry.new_traceparent()
    monkeypatch.setenv("TRACEPARENT", inherited)

    await speak("create_flow_run", flow_id="flow")
    own = telemetry.new_traceparent()
    with telemetry.attached(telemetry.context_from(own)):
        await speak("create_flow_run", flow_id="flow")

    assert [inherited, own] == [each["traceparent"] for each in services.metadata]


async def test_a_creation_begins_the_trace(
    speak: Speak, services: ScriptedServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where spans are recorded, the creation is one, and the run's trace hangs from it."""
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(telemetry, "tracer", lambda: provider.get_tracer("test"))
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)

    await speak("create_flow_run", flow_id="flow")

    (span,) = [each for each in spans.get_finished_spans() if each.kind is SpanKind.CLIENT]
    context = span.get_span_context()
    assert context is not None
    assert "create flow run" == span.name
    assert (
        f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        == services.metadata[0]["traceparent"]
    )


async def test_each_call_has_a_deadline(speak: Speak, services: ScriptedServices) -> None:
    """No call and no stream may last for ever."""

    async def watch(request: object, context: Any) -> None:
        await context.write(the_watch_end())

    services.scripts["GetFlowRun"] = lambda *_: verbs.GetFlowRunResponse(flow_run=a_flow_run())
    services.scripts["WatchFlowRun"] = watch

    await speak("get_flow_run", RUN_ID)
    await speak("wait_for_flow_run", RUN_ID)

    assert None not in services.deadlines


async def test_the_token_goes_with_each_call() -> None:
    """A client that was given the token is let in; one without is told so."""
    async with ScriptedServices(token="secret") as services:
        services.scripts["GetFlowRun"] = lambda *_: verbs.GetFlowRunResponse(flow_run=a_flow_run())

        async with AsyncClient(services.address, "secret") as known:
            assert RUN_ID == (await known.get_flow_run(RUN_ID)).flow_run_id
        async with AsyncClient(services.address, "") as unknown:
            with pytest.raises(Unauthenticated, match="bears no valid token"):
                await unknown.get_flow_run(RUN_ID)


async def test_each_service_is_found_at_its_own_address(services: ScriptedServices) -> None:
    """Without one address for all, each service is called where the settings say it is."""
    async with ScriptedServices() as logs:
        services.scripts["GetFlowRun"] = lambda *_: verbs.GetFlowRunResponse(flow_run=a_flow_run())
        logs.scripts["ListLogs"] = lambda *_: log_verbs.ListLogsResponse()
        settings = ClientSettings(flow_run_address=services.address, log_address=logs.address)

        async with AsyncClient(settings=settings) as client:
            await client.get_flow_run(RUN_ID)
            assert [] == [line async for line in client.read_logs(RUN_ID)]

        assert (1, 1) == (len(services.requests), len(logs.requests))


async def test_a_broken_watch_goes_on_where_it_was(speak: Speak, services: ScriptedServices) -> None:
    """After a break, a polite end and a draining server, each step was shown once and in order."""

    async def watch(request: verbs.WatchFlowRunRequest, context: Any) -> None:
        assert len(services.requests) < 5
        if request.after_version == 0:
            await context.write(a_step(1))
            raise Unavailable("it is draining")
        if request.after_version == 1:
            await context.write(a_step(2))
        else:
            await context.write(a_step(3))
            await context.write(the_watch_end())

    services.scripts["WatchFlowRun"] = watch

    found = await speak("watch_flow_run", RUN_ID)

    assert [1, 2, 3] == [step.version for step in found]
    assert [0, 1, 2] == [request.after_version for request in services.requests]


async def test_a_broken_tail_goes_on_where_it_was(speak: Speak, services: ScriptedServices) -> None:
    """After a break each line was shown once and in order."""

    async def tail(request: log_verbs.TailLogsRequest, context: Any) -> None:
        assert len(services.requests) < 5
        if request.cursor == "":
            await context.write(some_lines("one", "two"))
            raise Unavailable("it is draining")
        await context.write(some_lines("three", first=3))
        await context.write(the_tail_end("3"))

    services.scripts["TailLogs"] = tail

    found = await speak("follow_logs", RUN_ID)

    assert ["one", "two", "three"] == [line.text for line in found]
    assert ["", "2"] == [request.cursor for request in services.requests]


@pytest.mark.slow
async def test_a_watch_survives_a_server_that_comes_back() -> None:
    """A watch goes on when its server was killed and another one answers at the same address."""
    cut = asyncio.Event()

    async def watch_until_cut(request: verbs.WatchFlowRunRequest, context: Any) -> None:
        await context.write(a_step(1))
        await cut.wait()

    async def watch_to_the_end(request: verbs.WatchFlowRunRequest, context: Any) -> None:
        assert 1 == request.after_version
        await context.write(a_step(2))
        await context.write(the_watch_end())

    async with ScriptedServices() as before:
        before.scripts["WatchFlowRun"] = watch_until_cut
        client = AsyncClient(before.address)
        steps = client.watch_flow_run(RUN_ID)
        seen = [(await anext(steps)).version]

    after = ScriptedServices(port=int(before.address.rpartition(":")[2]))
    after.scripts["WatchFlowRun"] = watch_to_the_end
    async with after, client:
        seen += [step.version async for step in steps]

    assert [1, 2] == seen


async def test_a_refused_watch_is_an_error(speak: Speak, services: ScriptedServices) -> None:
    """A watch of a run that does not exist is not tried again."""

    async def watch(request: object, context: object) -> None:
        raise FlowRunNotFound(RUN_ID)

    services.scripts["WatchFlowRun"] = watch

    with pytest.raises(NotFound, match=f"There is no flow run {RUN_ID}"):
        await speak("watch_flow_run", RUN_ID)

    assert 1 == len(services.requests)


@pytest.mark.parametrize("form", ["blocking", "async"])
async def test_a_reader_may_leave(form: str, services: ScriptedServices) -> None:
    """A reader that stops listening ends the stream at the server too."""
    left = asyncio.Event()

    async def watch(request: object, context: Any) -> None:
        context.add_done_callback(lambda _: left.set())
        await context.write(a_step(1))
        await asyncio.Event().wait()

    services.scripts["WatchFlowRun"] = watch

    if form == "async":
        async with AsyncClient(services.address) as client:
            steps: Any = client.watch_flow_run(RUN_ID)
            assert FlowRunState.RUNNING is (await anext(steps)).state
            await steps.aclose()
            await asyncio.wait_for(left.wait(), 10)
    else:
        with Client(services.address) as blocking:
            steps = blocking.watch_flow_run(RUN_ID)
            assert FlowRunState.RUNNING is (await asyncio.to_thread(next, steps)).state
            steps.close()
            await asyncio.wait_for(left.wait(), 10)


async def test_a_reader_is_told_that_its_client_was_closed(services: ScriptedServices) -> None:
    """Another thread that closes it ends the streams too: by an error of ours, and not by one of the transport."""

    async def watch(request: object, context: Any) -> None:
        await context.write(a_step(1))
        await asyncio.Event().wait()

    services.scripts["WatchFlowRun"] = watch

    client = Client(services.address)
    steps: Any = client.watch_flow_run(RUN_ID)
    assert FlowRunState.RUNNING is (await asyncio.to_thread(next, steps)).state
    client.close()

    with pytest.raises(CutOff, match="The client was closed while it followed a stream"):
        await asyncio.wait_for(asyncio.to_thread(next, steps), 10)


@pytest.mark.parametrize("moment", ["before", "waiting", "pausing"])
async def test_a_stream_may_be_ended_by_another_thread(moment: str, services: ScriptedServices) -> None:
    """Wherever its reader is, it finds the end, and the server is left alone."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def watch(request: object, context: Any) -> None:
        asked.set()
        if moment == "pausing":
            raise Overloaded(timedelta(hours=1))
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    services.scripts["WatchFlowRun"] = watch
    loop, pausing = asyncio.get_running_loop(), asyncio.Event()

    class Noted(Ending):
        def pause(self, seconds: float) -> None:
            loop.call_soon_threadsafe(pausing.set)
            super().pause(seconds)

    ending = Noted()

    with Client(services.address, patience=timedelta(hours=2)) as client:
        steps = client.follow(flow_runs.watch_flow_run(RUN_ID), ending)
        if moment == "before":
            ending.end()
        reading = asyncio.create_task(asyncio.to_thread(list, steps))
        if moment != "before":
            await asyncio.wait_for((pausing if moment == "pausing" else asked).wait(), 10)
            ending.end()

        assert [] == await asyncio.wait_for(reading, 10)

    if moment == "waiting":
        await asyncio.wait_for(left.wait(), 10)
    assert (0 if moment == "before" else 1) == len(services.requests)


def _verbs(form: type) -> dict[str, list[str]]:
    # A task is cancelled; only a thread needs to be told by an argument that it shall end.
    return {
        name: [each for each in inspect.signature(value).parameters if each != "ending"]
        for name, value in vars(form).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
