"""`python -m penstock.storage.migrations [URL]` brings a database to the newest revision of the schema.

Without URL it is the one that the services are told of, by PENSTOCK_DATABASE or PENSTOCK_DATA_DIR: so a password need
not stand in a command line, which every user of the machine can read.
"""

import argparse
import sys

from sqlalchemy.exc import SQLAlchemyError

from penstock.domain.errors import Refusal
from penstock.runtime.settings import KeeperSettings, SettingsError
from penstock.storage.database import open_engine
from penstock.storage.migrations import HEAD, migrate


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m penstock.storage.migrations", description=__doc__)
    parser.add_argument("url", metavar="URL", nargs="?", help="postgresql+psycopg://user@host/name or sqlite:///path")
    url = parser.parse_args(arguments).url
    try:
        url = url or KeeperSettings.load().database_url
        engine = open_engine(url, connections=1)
        migrate(engine)
        engine.dispose()
    except (Refusal, SettingsError, SQLAlchemyError, OSError) as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 1
    print(f"The database is at revision {HEAD} of the schema.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
