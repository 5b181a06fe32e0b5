"""`python healthcheck.py HOST:PORT` ends with exit code 0 if the service there is serving, and says what it found."""

import asyncio
import sys

from penstock.cli.health import probe


def main() -> int:
    """Ask once."""
    health = asyncio.run(probe(sys.argv[1]))
    print(health.detail)
    return 0 if health.serving else 1


if __name__ == "__main__":
    sys.exit(main())
