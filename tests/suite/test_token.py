"""A token guards the services as a whole."""

from pathlib import Path

import pytest

from tests.suite.installation import installed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_with_a_token_every_call_must_bear_it(tmp_path: Path, database_url: str) -> None:
    """Commands and agents that have it work; one that has none, or another, is told so in one line."""
    with installed(tmp_path, database_url, {"PENSTOCK_TOKEN": "right"}) as (here, _), here.agent():
        shown = here.succeed("get", "agents")
        refused = [here.penstock("get", "agents", environ={"PENSTOCK_TOKEN": token}) for token in ("", "wrong")]

    assert "agent" in shown
    assert [each.returncode for each in refused] == [1, 1]
    assert all("token" in each.stderr and len(each.stderr.splitlines()) == 1 for each in refused)


CHILD = """
from penstock import flow
from penstock.tasks import create_flow_run

@flow
def parent():
    return create_flow_run(flow_name="parent", labels=["nobody"])
"""


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_the_code_of_a_run_has_a_token_only_if_it_is_lent(tmp_path: Path, database_url: str) -> None:
    """A run creates a child under an agent that lends its token; elsewhere it is told what is missing."""
    with installed(tmp_path, database_url, {"PENSTOCK_TOKEN": "right"}) as (here, _):
        here.flow("parent", CHILD)
        with here.agent():
            refused = here.penstock("run", "--name", "parent", "--watch")
        with here.agent("--lend-token"):
            here.succeed("run", "--name", "parent", "--watch")

    assert 1 == refused.returncode
    assert "--lend-token" in refused.stdout


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_without_a_token_the_services_listen_on_loopback_only(tmp_path: Path, database_url: str) -> None:
    """Asked to listen elsewhere, the server refuses, says why in one line, and starts nothing."""
    with installed(tmp_path, database_url) as (here, _):
        refused = here.penstock("server", "start", "--host", "0.0.0.0", "--port-base", "4990")

    assert refused.returncode != 0
    assert "PENSTOCK_TOKEN" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
