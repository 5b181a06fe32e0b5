"""Wiring of the queue process, top to bottom."""

import asyncio
import sys
from functools import partial

from flowrun.v1.operator_service_pb2_grpc import add_OperatorServiceServicer_to_server
from flowrun.v1.queue_service_pb2_grpc import add_QueueServiceServicer_to_server
from penstock.queue import operations
from penstock.queue.dispatcher import Dispatcher
from penstock.queue.operator_service import OperatorServicer
from penstock.queue.polling import Polls
from penstock.queue.service import QueueServicer
from penstock.queue.stopping import Stopping
from penstock.runtime import process, sql_spans, telemetry
from penstock.runtime.clock import SystemClock
from penstock.runtime.committer import Committer
from penstock.runtime.drawing import Drawing
from penstock.runtime.hearing import Hearing
from penstock.runtime.process import Process
from penstock.runtime.server import Server
from penstock.runtime.serving import Serving
from penstock.runtime.settings import QueueSettings
from penstock.storage import installation, wakeups
from penstock.storage.database import Database, DatabaseClock, open_engine
from penstock.storage.migrations import check_revision
from penstock.storage.tenancy import flushing
from penstock.storage.wakeups import Hint
from penstock.wire.pages import PageTokens


async def main() -> int:
    """Hand out flow runs until told to stop."""
    settings = QueueSettings.load()
    process.configure_logging(settings.log_level)
    telemetry.configure("penstock-queue")

    engine = open_engine(settings.database_url, connections=settings.database_threads)
    sql_spans.instrument(engine)
    check_revision(engine)
    database = Database(engine, DatabaseClock(), threads=settings.database_threads)
    tokens = PageTokens(await database.read(installation.signing_key))
    listener = wakeups.listen(engine)

    accept = partial(operations.accept_flow_runs, ttl=settings.held_lease)
    acceptances = Committer(flushing(database, accept), name="accept")
    drawing = Drawing(SystemClock())
    dispatcher = Dispatcher(
        database,
        drawing,
        offer_lease=settings.offer_lease,
        sweep_interval=settings.sweep_interval,
        heartbeat_interval=settings.heartbeat_interval,
    )
    stopping = Stopping(database, sweep_interval=settings.sweep_interval)
    polls = Polls(
        database, dispatcher, drawing, offer_lease=settings.offer_lease, sweep_interval=settings.sweep_interval
    )

    def hear(hint: Hint) -> None:
        if hint.anything or hint.due:
            dispatcher.wake()
        if hint.anything or hint.stop:
            stopping.wake()
        polls.hear(hint)

    server = Server(
        Serving(token=settings.token), host=settings.host, port=settings.port, reflection=settings.with_reflection
    )
    queue = QueueServicer(
        database,
        dispatcher,
        acceptances,
        stopping,
        polls,
        held_lease=settings.held_lease,
        heartbeat_interval=settings.heartbeat_interval,
        stream_age=settings.stream_age,
    )
    operator = OperatorServicer(  # type: ignore[abstract] # what it does not define answers UNIMPLEMENTED
        database, tokens, heartbeat_interval=settings.heartbeat_interval
    )
    server.add(add_QueueServiceServicer_to_server, queue)
    server.add(add_OperatorServiceServicer_to_server, operator)

    this = Process("queue", server, grace=settings.drain_grace)
    this.in_background("acceptances", acceptances.serve)
    this.in_background("dispatcher", dispatcher.serve)
    this.in_background("stopping", stopping.serve)
    this.in_background("polls", polls.serve)
    this.in_background("heartbeats", dispatcher.keep_in_touch)
    this.in_background("hearing", Hearing(listener.hints, hear).serve)
    this.on_drain(polls.drain)
    this.on_drain(dispatcher.drain)
    this.at_end(partial(asyncio.to_thread, listener.close))
    this.at_end(database.aclose)
    return await this.serve_until_signalled()


if __name__ == "__main__":
    sys.exit(process.run(main()))
