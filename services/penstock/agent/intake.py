"""Takes offers: accepts them, launches their runs, and frees a slot for each that ended or was not to be had."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

import grpc
from opentelemetry import trace

from flowrun.v1 import lease_pb2, queue_service_pb2
from penstock.agent.assigning import Assign
from penstock.agent.calls import CALL_WAIT_MAX, Backoff, passes
from penstock.agent.launchers import End, Ended, Launched, Launcher, LaunchFailed
from penstock.agent.leases import Held, LeaseCount, Leases, lease_time
from penstock.agent.settings import AgentSettings
from penstock.domain.limits import LEASES_PER_CALL_MAX, REASON_CHARACTERS_MAX
from penstock.runtime import telemetry
from penstock.runtime.guarding import guarded
from penstock.wire.errors import refusal_details

if TYPE_CHECKING:
    from flowrun.v1.queue_service_pb2_grpc import QueueServiceAsyncStub

_LOGGER: Final = logging.getLogger("penstock.agent")


class Intake:
    """The slots of this agent and what is in them."""

    def __init__(
        self,
        settings: AgentSettings,
        agent_id: str,
        stub: "QueueServiceAsyncStub",
        launcher: Launcher,
        assign: Assign,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._agent_id = agent_id
        self._stub = stub
        self._launcher = launcher
        self._assign = assign
        self._say = say
        self._offers: deque[tuple[lease_pb2.Offer, float]] = deque()
        self._offers_in_hand = 0
        self._arrived = asyncio.Event()
        self._works: set[asyncio.Task[None]] = set()
        self.leases = Leases(stub, self._stop)
        # No more is taken: offers that still come are declined.
        self.draining = False
        # What is held is being stopped: nothing is launched any more, not even what is being accepted.
        self.stopping = False
        # Wakes whoever tells the queue how much this agent will still take.
        self.changed = asyncio.Event()

    @property
    def busy(self) -> int:
        """How many slots are taken, by runs that are held or by offers that are being answered."""
        return len(self.leases) + self._offers_in_hand

    @property
    def free(self) -> int:
        return max(0, self._settings.slots - self.busy)

    def adopt(self) -> None:
        """Take over what an earlier agent on this machine left behind."""
        for launched in self._launcher.find():
            assignment = launched.assignment
            lease = LeaseCount(assignment.flow_run_id, assignment.fence, assignment.lease_seconds, assignment.lease_end)
            held = Held(lease, assignment.flow_run_name, assignment.flow_name, launched, started=True)
            self.leases.add(held)
            self._work(self._see_through(held, launched))
            self._say(f"Found flow run {held.flow_run_name} of {held.flow_name}, which an earlier agent left running.")

    def offered(self, offers: Sequence[lease_pb2.Offer]) -> None:
        """Take offers in hand. They are answered in the background."""
        now = time.monotonic()
        self._offers.extend((offer, now + offer.lease.ttl.ToTimedelta().total_seconds()) for offer in offers)
        self._offers_in_hand += len(offers)
        self._arrived.set()

    async def serve(self) -> None:
        """Answer offers, for ever: those that came while one call was under way go into the next."""
        while True:
            await self._arrived.wait()
            batch = [self._offers.popleft() for _ in range(min(len(self._offers), LEASES_PER_CALL_MAX))]
            if not self._offers:
                self._arrived.clear()
            try:
                if self.draining:
                    await self._decline([offer for offer, _ in batch])
                else:
                    await self._accept([offer for offer, _ in batch], until=min(end for _, end in batch))
            finally:
                self._offers_in_hand -= len(batch)
                self.changed.set()

    def stop_all(self) -> None:
        """Ask every supervisor to end its run, and launch nothing from now on."""
        self.stopping = True
        for held in self.leases:
            self.leases.stop(held.lease.key)

    def hurry(self) -> None:
        """Have what is held ended at once, without the grace that it has otherwise."""
        self.stop_all()
        for held in self.leases:
            if held.launched is not None:
                self._launcher.hurry(held.launched)

    async def settled(self) -> None:
        """Wait until nothing is held and nothing is in hand."""
        while self.busy:
            self.changed.clear()
            await self.changed.wait()

    def close(self) -> None:
        for work in self._works:
            work.cancel()

    async def _accept(self, offers: Sequence[lease_pb2.Offer], *, until: float) -> None:
        request = queue_service_pb2.AcceptFlowRunsRequest(
            agent_id=self._agent_id, leases=[offer.lease for offer in offers]
        )
        backoff = Backoff()
        while True:
            sent = lease_time()
            try:
                answer = await self._stub.AcceptFlowRuns(request, timeout=CALL_WAIT_MAX.total_seconds())
            except grpc.aio.AioRpcError as error:
                pause = backoff.seconds(error)
                if self.stopping or not passes(error) or time.monotonic() + pause > until:
                    # What was accepted without our knowing waits again when its lease ends.
                    _LOGGER.warning("offers could not be accepted: %s", refusal_details(error).message)
                    return
                await asyncio.sleep(pause)
                continue
            break
        await self._sort(offers, answer.results, sent)

    async def _sort(
        self, offers: Sequence[lease_pb2.Offer], results: Sequence[lease_pb2.LeaseResult], sent: float
    ) -> None:
        """Launch what was accepted, or give it back."""
        too_late: list[lease_pb2.Lease] = []
        for offer, result in zip(offers, results, strict=True):
            if result.outcome == lease_pb2.LEASE_OUTCOME_HELD and self.stopping:
                too_late.append(result.lease)
            elif result.outcome == lease_pb2.LEASE_OUTCOME_HELD:
                self._take(offer, result.lease, sent)
            elif result.outcome == lease_pb2.LEASE_OUTCOME_STOPPING:
                # Cancelled as soon as it was accepted: giving it back confirms that.
                self._work(self._release(result.lease, "The run was cancelled before it was launched."))
        if too_late:
            # Awaited, because the agent ends as soon as no offer is in hand.
            await self._release_all(too_late, "The agent was told to stop at once.")

    async def _decline(self, offers: Sequence[lease_pb2.Offer]) -> None:
        await self._release_all([offer.lease for offer in offers], "The agent is draining.")

    def _take(self, offer: lease_pb2.Offer, lease: lease_pb2.Lease, sent: float) -> None:
        count = LeaseCount(lease.flow_run_id, lease.fence, 0.0, sent)
        count.renewed(lease, sent)
        held = Held(count, offer.flow_run.name, offer.flow_run.flow_name)
        self.leases.add(held)
        self._work(self._launch(held, offer))

    async def _launch(self, held: Held, offer: lease_pb2.Offer) -> None:
        self._say(f"Took flow run {held.flow_run_name} of {held.flow_name} ({held.lease.flow_run_id}).")
        # A mistake of ours must cost neither the slot nor the run.
        held.launched = await guarded(
            self._start_or_give_up(held, offer),
            "a run could not be launched",
            lambda error: self._give_up(held, f"The launch failed: {error!r}"),
        )
        if held.launched is None:
            return
        if held.must_stop:
            self._launcher.stop(held.launched)
        await self._see_through(held, held.launched)

    async def _start_or_give_up(self, held: Held, offer: lease_pb2.Offer) -> Launched | None:
        try:
            return await self._start(held, offer)
        except LaunchFailed as error:
            await self._give_up(held, str(error))
            return None

    async def _start(self, held: Held, offer: lease_pb2.Offer) -> Launched:
        with telemetry.tracer().start_as_current_span(
            f"launch {held.flow_name}", context=telemetry.context_of(offer.trace_context), record_exception=False
        ) as span:
            try:
                return await self._launcher.start(self._assign(offer, held.lease))
            except LaunchFailed as error:
                span.set_status(trace.StatusCode.ERROR, str(error))
                raise

    async def _give_up(self, held: Held, why: str) -> None:
        """Give back what cannot be launched here."""
        try:
            await self._release(held.lease.to_proto(), why)
        finally:
            self._end(held, f"could not be launched: {why}")

    async def _see_through(self, held: Held, launched: Launched) -> None:
        """Wait for the supervisor's end; free the slot."""
        started = asyncio.create_task(launched.started.wait())
        either: set[asyncio.Future[Any]] = {started, launched.ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        held.started = held.started or launched.started.is_set()
        started.cancel()
        end = await launched.ended
        if end.how is Ended.NOT_STARTED:
            await self._release(
                held.lease.to_proto(), f"The run was not started on agent {self._settings.name}. {end.words}"
            )
        self._end(held, _in_words(end))

    def _end(self, held: Held, how: str) -> None:
        self.leases.remove(held)
        self.changed.set()
        self._say(f"Flow run {held.flow_run_name} of {held.flow_name} {how}.")

    def _stop(self, held: Held) -> None:
        if held.launched is not None:
            self._launcher.stop(held.launched)

    async def _release(self, lease: lease_pb2.Lease, reason: str) -> None:
        await self._release_all([lease], reason)

    async def _release_all(self, leases: Sequence[lease_pb2.Lease], reason: str) -> None:
        request = queue_service_pb2.ReleaseFlowRunsRequest(
            releases=[queue_service_pb2.Release(lease=lease, reason=reason[:REASON_CHARACTERS_MAX]) for lease in leases]
        )
        try:
            await self._stub.ReleaseFlowRuns(request, timeout=CALL_WAIT_MAX.total_seconds())
        except grpc.aio.AioRpcError as error:
            # The lease ends by itself, and then the run waits again all the same.
            _LOGGER.warning("leases could not be given back: %s", refusal_details(error).message)

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._works.discard)


def _in_words(end: End) -> str:
    match end.how:
        case Ended.REPORTED:
            return "has ended"
        case Ended.NOT_STARTED:
            return f"was not started: {end.words}"
        case Ended.DROPPED:
            return f"is no longer ours: {end.words}"
        case Ended.UNREPORTED:
            return f"has ended without a report, so it is settled when its lease ends: {end.words}"
