"""Executes one run here, without an agent: leased by the long poll that names it, then seen through as an agent would.

Such a run bears a label that no agent may claim, so it waits for this process alone: for its start, and between its
attempts. The poll sleeps that out, however long it takes and however often the services are away meanwhile.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import grpc

from flowrun.v1 import queue_service_pb2, queue_service_pb2_grpc
from penstock.agent.assigning import in_own_surroundings
from penstock.agent.calls import CALL_WAIT_MAX, Backoff, passes
from penstock.agent.hello import hello
from penstock.agent.intake import Intake
from penstock.agent.launchers.process import ProcessLauncher
from penstock.agent.settings import AgentSettings
from penstock.agent.terminal import Terminal
from penstock.client.errors import error_of
from penstock.domain.limits import LONG_POLL_MAX
from penstock.runtime.channel import open_channel
from penstock.wire.errors import refusal_details

if TYPE_CHECKING:
    from flowrun.v1.queue_service_pb2_grpc import QueueServiceAsyncStub

# A connection that is made anew is nothing to tell a person of.
SILENT_FAILURES_MAX: Final = 1

_LOGGER: Final = logging.getLogger("penstock.agent")
_OVER: Final = frozenset({"FLOW_RUN_FINAL", "FLOW_RUN_NOT_FOUND"})


@contextlib.asynccontextmanager
async def executing_here(settings: AgentSettings, terminal: Terminal | None = None) -> AsyncIterator["Agentless"]:
    """What executes a run in this process's surroundings, and has the code of the run ask at the terminal, if any.

    Raises SettingsError when nothing could be executed here. The terminal is closed with the block; a supervisor that
    is still under way then goes on by itself.
    """
    # No labels and one slot, whatever an agent of this machine is told; and whose token it is, runs the code.
    settings = replace(settings, labels="", slots=1, lend_token=True)
    async with open_channel(settings.queue_address, token=settings.token) as channel:
        agentless = Agentless(settings, queue_service_pb2_grpc.QueueServiceStub(channel), terminal)
        try:
            yield agentless
        finally:
            agentless.close()


class Agentless:
    """One run, from its first attempt here to its end."""

    def __init__(self, settings: AgentSettings, stub: "QueueServiceAsyncStub", terminal: Terminal | None) -> None:
        self._settings = settings
        self._flow_run_id = ""
        self._stub = stub
        self._agent_id = str(uuid.uuid4())
        self._launcher = ProcessLauncher(
            settings.data_dir, self._agent_id, token=settings.token, terminal=terminal, reports_killed=True
        )
        self._intake = Intake(
            settings,
            self._agent_id,
            stub,
            self._launcher,
            in_own_surroundings(settings, self._agent_id),
            _LOGGER.info,
        )
        self._told_to_stop = asyncio.Event()

    async def serve(self, flow_run_id: str) -> None:
        """Execute the run, attempt by attempt, until it is final and nothing of it is left here, or until stopped.

        Raises PenstockError when the queue will never hand it out to us.
        """
        if self._told_to_stop.is_set():
            return
        self._flow_run_id = flow_run_id
        intake = self._intake
        works = [self._poll_until_final(), self._told_to_stop.wait(), intake.serve(), intake.leases.serve()]
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await intake.settled()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self) -> None:
        """Lease nothing more, and end what is executed here; its supervisor reports why."""
        self._intake.stop_all()
        self._told_to_stop.set()

    def hurry(self) -> None:
        """The same, without the grace that the run's code has otherwise."""
        self._intake.hurry()
        self._told_to_stop.set()

    def close(self) -> None:
        """Leave a supervisor that is still under way to itself."""
        self._intake.close()
        self._launcher.close()

    async def _poll_until_final(self) -> None:
        backoff = Backoff()
        failures = 0
        while True:
            try:
                answer = await self._next_answer()
            except grpc.aio.AioRpcError as error:
                if refusal_details(error).reason in _OVER:
                    return
                if not passes(error):
                    raise error_of(error, self._settings.queue_address) from None
                failures += 1
                if failures == SILENT_FAILURES_MAX + 1:
                    _LOGGER.warning("%s Trying again.", error_of(error, self._settings.queue_address))
                await asyncio.sleep(backoff.seconds(error))
                continue
            failures = 0
            backoff.reset()
            for lease in (*answer.stopping, *answer.lost):
                self._intake.leases.stop((lease.flow_run_id, lease.fence))
            if answer.offers:
                self._intake.offered(answer.offers)

    async def _next_answer(self) -> queue_service_pb2.LeaseFlowRunsResponse:
        """Ask what there is to take or to stop, anew whenever what is held here has changed, until an answer comes."""
        while True:
            self._intake.changed.clear()
            if (request := self._request()) is None:
                await self._intake.changed.wait()
                continue
            asking = asyncio.create_task(self._ask(request))
            changed = asyncio.create_task(self._intake.changed.wait())
            try:
                # An answer that may bring an offer is awaited in any case: abandoned, the offer would have to run out.
                awaited = {asking} if request.offers_max else {asking, changed}
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if asking.done():
                    return asking.result()
            finally:
                asking.cancel()
                changed.cancel()

    def _request(self) -> queue_service_pb2.LeaseFlowRunsRequest | None:
        """What to ask; None while there is nothing to take and nothing that would have to be stopped."""
        held = [each for each in self._intake.leases if not each.must_stop]
        if not held and not self._intake.free:
            return None
        request = queue_service_pb2.LeaseFlowRunsRequest(
            hello=hello(self._settings, self._agent_id, held),
            offers_max=self._intake.free,
            flow_run_id=self._flow_run_id,
        )
        request.wait.FromTimedelta(LONG_POLL_MAX)
        return request

    async def _ask(self, request: queue_service_pb2.LeaseFlowRunsRequest) -> queue_service_pb2.LeaseFlowRunsResponse:
        return await self._stub.LeaseFlowRuns(request, timeout=(LONG_POLL_MAX + CALL_WAIT_MAX).total_seconds())
