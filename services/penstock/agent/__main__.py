"""`python -m penstock.agent`: an agent that is told everything by its environment."""

import sys

from penstock.agent import run_agent
from penstock.agent.settings import AgentSettings
from penstock.runtime.settings import SettingsError


def main() -> int:
    """Take and launch runs until told to stop."""
    try:
        return run_agent(AgentSettings.load())
    except SettingsError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
