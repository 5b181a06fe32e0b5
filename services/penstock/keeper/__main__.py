"""Wiring of the keeper, top to bottom."""

import sys
from functools import partial

from penstock.domain.ids import DEFAULT_TENANT
from penstock.keeper.expired_leases import expire_leases
from penstock.keeper.orphans import cancel_orphans
from penstock.runtime import process, sql_spans, telemetry
from penstock.runtime.process import Process
from penstock.runtime.runner import Runner
from penstock.runtime.server import Server
from penstock.runtime.serving import Serving
from penstock.runtime.settings import KeeperSettings
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

    longest = max(settings.held_lease, settings.offer_lease)
    expire = partial(database.run, expire_leases, DEFAULT_TENANT, ttl=longest)
    expiry = Runner("expired leases", expire, settings.sweep_interval)
    orphans = Runner("orphans", partial(cancel_orphans, database, DEFAULT_TENANT), settings.sweep_interval)
    server = Server(
        Serving(token=settings.token), host=settings.host, port=settings.port, reflection=settings.with_reflection
    )

    this = Process("keeper", server, grace=settings.drain_grace)
    this.in_background("expired leases", expiry.serve)
    this.in_background("orphans", orphans.serve)
    this.at_end(database.aclose)
    return await this.serve_until_signalled()


if __name__ == "__main__":
    sys.exit(process.run(main()))
