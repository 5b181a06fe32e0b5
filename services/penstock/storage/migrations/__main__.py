"""`python -m penstock.storage.migrations URL` brings that database to the newest revision of the schema."""

import argparse
import sys

from sqlalchemy.exc import SQLAlchemyError

from penstock.domain.errors import Refusal
from penstock.storage.database import open_engine
from penstock.storage.migrations import HEAD, migrate


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m penstock.storage.migrations", description=__doc__)
    parser.add_argument("url", metavar="URL", help="postgresql+psycopg://user@host/name or sqlite:///path")
    url = parser.parse_args(arguments).url
    try:
        engine = open_engine(url, connections=1)
        migrate(engine)
        engine.dispose()
    except (Refusal, SQLAlchemyError) as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 1
    print(f"The database is at revision {HEAD} of the schema.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
