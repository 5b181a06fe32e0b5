"""Wiring of the flow-run process, top to bottom."""

import asyncio
import sys
from functools import partial

from flowrun.v1.flow_run_service_pb2_grpc import add_FlowRunServiceServicer_to_server
from flowrun.v1.flow_service_pb2_grpc import add_FlowServiceServicer_to_server
from penstock.domain.ids import DEFAULT_TENANT
from penstock.flow_run import operations
from penstock.flow_run.flow_service import FlowServicer
from penstock.flow_run.service import FlowRunServicer, Watches, committing_creations, look
from penstock.runtime import process, sql_spans, telemetry
from penstock.runtime.clock import SystemClock
from penstock.runtime.committer import Committer
from penstock.runtime.drawing import Drawing
from penstock.runtime.hearing import Hearing
from penstock.runtime.process import Process
from penstock.runtime.server import Server
from penstock.runtime.serving import Serving
from penstock.runtime.settings import FlowRunSettings
from penstock.storage import installation, wakeups
from penstock.storage.database import Database, DatabaseClock, open_engine
from penstock.storage.migrations import check_revision
from penstock.storage.tenancy import flushing
from penstock.storage.wakeups import Hint
from penstock.wire.pages import PageTokens


async def main() -> int:
    """Serve flow runs and flows until told to stop."""
    settings = FlowRunSettings.load()
    process.configure_logging(settings.log_level)
    telemetry.configure("penstock-flow-run")

    engine = open_engine(settings.database_url, connections=settings.database_threads)
    sql_spans.instrument(engine)
    check_revision(engine)
    database = Database(engine, DatabaseClock(), threads=settings.database_threads)
    tokens = PageTokens(await database.read(installation.signing_key))
    listener = wakeups.listen(engine)

    start = partial(operations.start_flow_runs, ttl=settings.held_lease)
    creations = committing_creations(database)
    startings = Committer(flushing(database, start), name="start")
    finishings = Committer(flushing(database, operations.finish_flow_runs), name="finish")
    cancellings = Committer(flushing(database, operations.cancel_flow_runs), name="cancel")
    watches = Watches(
        partial(look, database, DEFAULT_TENANT), sweep=settings.sweep_interval, heartbeat=settings.heartbeat_interval
    )

    def hear(hint: Hint) -> None:
        if hint.anything or hint.moved:
            watches.hint(None if hint.anything else hint.moved)

    drawing = Drawing(SystemClock())
    server = Server(
        Serving(token=settings.token), host=settings.host, port=settings.port, reflection=settings.with_reflection
    )
    flow_runs = FlowRunServicer(
        database,
        tokens,
        drawing,
        watches,
        creations=creations,
        startings=startings,
        finishings=finishings,
        cancellings=cancellings,
    )
    server.add(add_FlowRunServiceServicer_to_server, flow_runs)
    server.add(add_FlowServiceServicer_to_server, FlowServicer(database, tokens, drawing))

    this = Process("flow-run", server, grace=settings.drain_grace)
    this.in_background("creations", creations.serve)
    this.in_background("startings", startings.serve)
    this.in_background("finishings", finishings.serve)
    this.in_background("cancellings", cancellings.serve)
    this.in_background("watches", watches.serve)
    this.in_background("hearing", Hearing(listener.hints, hear).serve)
    this.on_drain(watches.drain)
    this.at_end(partial(asyncio.to_thread, listener.close))
    this.at_end(database.aclose)
    return await this.serve_until_signalled()


if __name__ == "__main__":
    sys.exit(process.run(main()))
