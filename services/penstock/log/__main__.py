"""Wiring of the log process, top to bottom."""

import asyncio
import sys
from functools import partial
from typing import Final

from flowrun.v1.log_service_pb2_grpc import add_LogServiceServicer_to_server
from penstock.domain.ids import DEFAULT_TENANT
from penstock.domain.limits import WRITINGS_PER_COMMIT_MAX, WRITINGS_WAITING_MAX
from penstock.log import operations
from penstock.log.service import LogServicer, Tails, look
from penstock.runtime import process, sql_spans, telemetry
from penstock.runtime.committer import Committer
from penstock.runtime.hearing import Hearing
from penstock.runtime.process import Process
from penstock.runtime.server import Server
from penstock.runtime.serving import Serving
from penstock.runtime.settings import LogSettings
from penstock.storage import installation, wakeups
from penstock.storage.database import Database, DatabaseClock, open_engine
from penstock.storage.migrations import check_revision
from penstock.storage.tenancy import flushing
from penstock.storage.wakeups import Hint
from penstock.wire.pages import PageTokens

# As fast as the defaults, and a writer is never seconds ahead of what is durable.
OPTIONS: Final = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 262_144))


async def main() -> int:
    """Serve logs until told to stop."""
    settings = LogSettings.load()
    process.configure_logging(settings.log_level)
    telemetry.configure("penstock-log")

    engine = open_engine(settings.database_url, connections=settings.database_threads)
    sql_spans.instrument(engine)
    check_revision(engine)
    database = Database(engine, DatabaseClock(), threads=settings.database_threads)
    tokens = PageTokens(await database.read(installation.signing_key))
    listener = wakeups.listen(engine)

    writings = Committer(
        flushing(database, operations.write_logs),
        name="write",
        waiting_max=WRITINGS_WAITING_MAX,
        batch_max=WRITINGS_PER_COMMIT_MAX,
    )
    tails = Tails(
        partial(look, database, DEFAULT_TENANT), sweep=settings.sweep_interval, heartbeat=settings.heartbeat_interval
    )

    def hear(hint: Hint) -> None:
        # A run that moved may have become final, which is half of what ends its tails.
        tails.hint(None if hint.anything else hint.written | hint.moved)

    server = Server(
        Serving(token=settings.token),
        host=settings.host,
        port=settings.port,
        reflection=settings.with_reflection,
        options=OPTIONS,
    )
    server.add(add_LogServiceServicer_to_server, LogServicer(database, tokens, tails, writings=writings))

    this = Process("log", server, grace=settings.drain_grace)
    this.in_background("writings", writings.serve)
    this.in_background("tails", tails.serve)
    this.in_background("hearing", Hearing(listener.hints, hear).serve)
    this.on_drain(tails.drain)
    this.at_end(partial(asyncio.to_thread, listener.close))
    this.at_end(database.aclose)
    return await this.serve_until_signalled()


if __name__ == "__main__":
    sys.exit(process.run(main()))
