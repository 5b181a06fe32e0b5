"""Wiring of the keeper, top to bottom."""

import asyncio
import sys
from functools import partial

from penstock.domain.ids import DEFAULT_TENANT
from penstock.keeper.deleted_logs import remove_deleted_logs
from penstock.keeper.deserted import LOOK_INTERVAL, Deserted
from penstock.keeper.expired_leases import expire_leases
from penstock.keeper.orphans import Orphans
from penstock.runtime import process, sql_spans, telemetry
from penstock.runtime.hearing import Hearing
from penstock.runtime.process import Process
from penstock.runtime.runner import Runner
from penstock.runtime.server import Server
from penstock.runtime.serving import Serving
from penstock.runtime.settings import KeeperSettings
from penstock.storage import wakeups
from penstock.storage.database import Database, DatabaseClock, open_engine
from penstock.storage.migrations import check_revision


async def main() -> int:
    """Keep the database in order until told to stop."""
    settings = KeeperSettings.load()
    process.configure_logging(settings.log_level)
    telemetry.configure("penstock-keeper")

    engine = open_engine(settings.database_url, connections=settings.database_threads)
    sql_spans.instrument(engine)
    check_revision(engine)
    database = Database(engine, DatabaseClock(), threads=settings.database_threads)
    listener = wakeups.listen(engine)

    longest = max(settings.held_lease, settings.offer_lease)
    expire = partial(database.run, expire_leases, DEFAULT_TENANT, ttl=longest)
    expiry = Runner("expired leases", expire, settings.sweep_interval)
    orphans = Orphans(database, DEFAULT_TENANT)
    cascade = Runner("orphans", orphans.look_once, settings.sweep_interval)
    deserted = Runner("deserted runs", Deserted(database, DEFAULT_TENANT).look_once, LOOK_INTERVAL)
    remove = partial(remove_deleted_logs, database, DEFAULT_TENANT)
    deleted_logs = Runner("deleted logs", remove, settings.sweep_interval)
    server = Server(
        Serving(token=settings.token), host=settings.host, port=settings.port, reflection=settings.with_reflection
    )

    this = Process("keeper", server, grace=settings.drain_grace)
    this.in_background("expired leases", expiry.serve)
    this.in_background("orphans", cascade.serve)
    this.in_background("deserted runs", deserted.serve)
    this.in_background("hearing", Hearing(listener.hints, orphans.hear).serve)
    this.in_background("deleted logs", deleted_logs.serve)
    this.at_end(partial(asyncio.to_thread, listener.close))
    this.at_end(database.aclose)
    return await this.serve_until_signalled()


if __name__ == "__main__":
    sys.exit(process.run(main()))
