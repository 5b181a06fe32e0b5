"""The agent's side of the stream: who it is, how much it will take, that both ends live; and its life around that.

Credit is a running total: what was offered on this stream and how many slots are free. A broken stream is opened again
and harms no run: what was accepted is held by unary calls alone.
"""

import asyncio
import contextlib
import logging
import signal
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import grpc

from flowrun.v1 import queue_service_pb2, queue_service_pb2_grpc
from penstock.agent.assigning import by_run_config
from penstock.agent.calls import CALL_WAIT_MAX, Backoff
from penstock.agent.hello import hello
from penstock.agent.intake import Intake
from penstock.agent.launchers.process import ProcessLauncher
from penstock.agent.leases import Leases
from penstock.agent.settings import AgentSettings
from penstock.client.errors import NotServed, PenstockError, Unauthenticated, Unavailable, error_of
from penstock.domain.limits import SILENCE_INTERVALS_MAX
from penstock.runtime import telemetry
from penstock.runtime.channel import open_channel
from penstock.runtime.process import run

if TYPE_CHECKING:
    from flowrun.v1.queue_service_pb2_grpc import QueueServiceAsyncStub

Request = queue_service_pb2.StreamFlowRunsRequest

_LOGGER: Final = logging.getLogger("penstock.agent")
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_FATAL: Final = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)

_WHERE: Final = "PENSTOCK_QUEUE_ADDRESS says where the queue service listens; by default 127.0.0.1:4711."


class SessionOver(Exception):
    """The queue will not have this agent; trying again is pointless. The text is why."""


class StreamLost(Exception):
    """A stream ended; another may be opened."""

    def __init__(self, why: str, error: grpc.aio.AioRpcError | None = None) -> None:
        super().__init__(why)
        self.error = error


def serve(settings: AgentSettings) -> int:
    """Run an agent in this process until it is told to stop; return the exit code."""
    telemetry.configure("penstock-agent")
    return run(_serve(settings))


async def _serve(settings: AgentSettings) -> int:
    async with open_channel(settings.queue_address, token=settings.token) as channel:
        return await Agent(settings, channel).serve()


class Agent:
    """One agent from its start to its end. A first signal drains it; a second one stops its runs."""

    def __init__(self, settings: AgentSettings, channel: grpc.aio.Channel) -> None:
        self._settings = settings
        self._agent_id = str(uuid.uuid4())
        self._stub = queue_service_pb2_grpc.QueueServiceStub(channel)
        self._launcher = ProcessLauncher(settings.data_dir, self._agent_id, token=settings.token)
        self._intake = Intake(
            settings,
            self._agent_id,
            self._stub,
            self._launcher,
            by_run_config(settings, self._agent_id),
            _say,
        )
        self._hurried = asyncio.Event()

    async def serve(self) -> int:
        """Serve until drained; 0, or 1 if that was not in good order."""
        with self._signals_caught():
            self._intake.adopt()
            serving: list[asyncio.Task[Any]] = [
                asyncio.create_task(work) for work in (self._intake.serve(), self._intake.leases.serve())
            ]
            streaming = asyncio.create_task(self._stream_until_drained())
            hurried = asyncio.create_task(self._hurried.wait())
            try:
                await asyncio.wait({streaming, hurried, *serving}, return_when=asyncio.FIRST_COMPLETED)
                for task in serving:
                    if task.done():
                        task.result()  # it ends only by a mistake of ours, which ends the agent
                if self._hurried.is_set():
                    await self._intake.settled()
                    return 1
                return await streaming
            finally:
                tasks = [*serving, streaming, hurried]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._intake.close()
                self._launcher.close()

    def told_to_stop(self) -> None:
        """What a signal does."""
        if self._intake.draining:
            _say("Stopping the runs that are still under way.")
            self._intake.stop_all()
            self._hurried.set()
            return
        self._intake.draining = True
        self._intake.changed.set()
        if self._intake.busy:
            _say(f"Taking no more runs; waiting for {self._intake.busy} to end. A second signal stops them.")

    async def _stream_until_drained(self) -> int:
        """Keep a stream open until the agent is drained."""
        backoff = Backoff()
        while not (self._intake.draining and not self._intake.busy):
            stream = Stream(
                self._stub, self._intake, hello(self._settings, self._agent_id, self._intake.leases), self._settings
            )
            try:
                await stream.run()
                if self._intake.draining and not self._intake.busy:
                    break
                raise StreamLost("the queue closed the stream")
            except SessionOver as over:
                _LOGGER.error("%s", over)
                return 1
            except StreamLost as lost:
                if stream.lived:
                    backoff.reset()
                pause = backoff.seconds(lost.error)
                _LOGGER.warning("the stream to %s ended and is opened again: %s", self._settings.queue_address, lost)
                await self._sleep_unless_drained(pause)
        _say("Drained.")
        return 0

    async def _sleep_unless_drained(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not (self._intake.draining and not self._intake.busy):
            self._intake.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._intake.changed.wait()

    @contextlib.contextmanager
    def _signals_caught(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for each in _SIGNALS:
            loop.add_signal_handler(each, self.told_to_stop)
        try:
            yield
        finally:
            for each in _SIGNALS:
                loop.remove_signal_handler(each)


class Stream:
    """One stream, from Hello to its end."""

    def __init__(
        self,
        stub: "QueueServiceAsyncStub",
        intake: Intake,
        hello: queue_service_pb2.Hello,
        settings: AgentSettings,
    ) -> None:
        self._stub = stub
        self._intake = intake
        self._leases: Leases = intake.leases
        self._hello = hello
        self._settings = settings
        self._writing = asyncio.Lock()
        self._offered = 0
        self._granted = 0
        self._interval = 0.0  # the queue says how often, with its welcome
        self._heartbeats = 0
        self._echoed = 0
        self._heard = time.monotonic()
        self._welcomed = asyncio.Event()
        self._welcome_time = 0.0
        self._call: Any = None

    @property
    def lived(self) -> bool:
        """Whether the queue welcomed us, and that lasted at least one heartbeat."""
        return self._welcomed.is_set() and time.monotonic() - self._welcome_time >= self._interval

    async def run(self) -> None:
        """Serve the stream; returns when it ended in good order, raises StreamLost or SessionOver otherwise."""
        self._call = self._stub.StreamFlowRuns()
        tasks = [asyncio.create_task(self._listen())]
        try:
            await self._write(Request(hello=self._hello))
            tasks += [asyncio.create_task(work) for work in (self._beat(), self._watch_silence(), self._grant())]
            # Granting ends when the agent is drained and has half-closed; the others end with the stream.
            done, _ = await asyncio.wait(tasks[:3], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except grpc.aio.AioRpcError as error:
            raise _meaning(error, self._settings.queue_address) from error
        except asyncio.InvalidStateError as error:  # written to after its end, which _listen explains better
            raise StreamLost("the stream is closed") from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._call.cancel()

    async def _listen(self) -> None:
        while (message := await self._call.read()) is not grpc.aio.EOF:
            self._heard = time.monotonic()
            match message.WhichOneof("message"):
                case "welcome":
                    self._welcome(message.welcome)
                case "offers":
                    self._offered += len(message.offers.offers)
                    self._intake.offered(message.offers.offers)
                case "stop":
                    self._leases.stop((message.stop.lease.flow_run_id, message.stop.lease.fence))
                case "heartbeat":
                    await self._hear(message.heartbeat.number)
        if await self._call.code() is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                await self._call.code(),
                await self._call.initial_metadata(),
                await self._call.trailing_metadata(),
                await self._call.details(),
            )

    def _welcome(self, welcome: queue_service_pb2.Welcome) -> None:
        self._welcome_time = time.monotonic()
        self._interval = welcome.heartbeat_interval.ToTimedelta().total_seconds() or self._interval
        for lease in welcome.lost:
            self._leases.stop((lease.flow_run_id, lease.fence))
        labels = f"labels {', '.join(self._hello.labels)}" if self._hello.labels else "no labels"
        slots = "1 slot" if self._hello.slots == 1 else f"{self._hello.slots} slots"
        _say(f"Agent {self._hello.name} is connected to {self._settings.queue_address} with {slots} and {labels}.")
        self._welcomed.set()
        self._intake.changed.set()

    async def _hear(self, number: int) -> None:
        if number > 0:
            await self._write(Request(heartbeat=queue_service_pb2.Heartbeat(number=-number)))
        else:
            self._echoed = max(self._echoed, -number)

    async def _beat(self) -> None:
        """Send heartbeats. The queue that leaves them unanswered does not hear us, even if we hear it."""
        await self._welcomed.wait()
        while True:
            await asyncio.sleep(self._interval)
            if self._heartbeats - self._echoed >= SILENCE_INTERVALS_MAX:
                raise StreamLost("the queue does not echo heartbeats")
            self._heartbeats += 1
            await self._write(Request(heartbeat=queue_service_pb2.Heartbeat(number=self._heartbeats)))

    async def _watch_silence(self) -> None:
        try:
            async with asyncio.timeout(CALL_WAIT_MAX.total_seconds()):
                await self._welcomed.wait()
        except TimeoutError:
            raise StreamLost("the queue did not answer Hello") from None
        while True:
            silence = time.monotonic() - self._heard
            if silence >= self._interval * SILENCE_INTERVALS_MAX:
                raise StreamLost("the queue fell silent")
            await asyncio.sleep(self._interval * SILENCE_INTERVALS_MAX - silence)

    async def _grant(self) -> None:
        """Tell the queue of every slot that becomes free; once drained, that nothing more will come from here."""
        while True:
            self._intake.changed.clear()
            if self._intake.draining and not self._intake.busy:
                async with self._writing:
                    await self._call.done_writing()
                return
            allowed = self._offered + self._intake.free
            if self._welcomed.is_set() and not self._intake.draining and allowed > self._granted:
                self._granted = allowed
                await self._write(Request(credit=queue_service_pb2.Credit(granted_total=allowed)))
                continue  # what changed meanwhile was perhaps cleared by another who waits for changes
            await self._intake.changed.wait()

    async def _write(self, request: Request) -> None:
        async with self._writing:
            await self._call.write(request)


def _meaning(error: grpc.aio.AioRpcError, address: str) -> Exception:
    """What the end of a stream means, in a sentence, and what can be done about it."""
    told = error_of(error, address)
    sentence = f"{told}{_advice(told)}"
    if told.reason == "SESSION_REPLACED":
        return SessionOver(f"The queue gave this agent's place to another stream, so it ends. {sentence}")
    if error.code() in _FATAL:
        return SessionOver(sentence if isinstance(told, NotServed) else f"The queue refuses this agent: {sentence}")
    return StreamLost(sentence, error)


def _advice(told: PenstockError) -> str:
    if isinstance(told, Unauthenticated):
        return " Set PENSTOCK_TOKEN to the token that the server was started with."
    if isinstance(told, NotServed):
        return f" {_WHERE}"
    if isinstance(told, Unavailable) and not told.reason:
        return f" Start one with: penstock server start. {_WHERE}"
    return ""


def _say(line: str) -> None:
    """Print one line. Names come from others: what a terminal would obey is shown instead."""
    print("".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line), flush=True)
