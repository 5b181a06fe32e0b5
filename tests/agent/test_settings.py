"""What an agent is told."""

import socket

import pytest

from penstock.agent.settings import AgentSettings
from penstock.runtime.settings import SettingsError


def test_labels_are_separated_by_commas() -> None:
    """Order, repeats and spaces have no meaning."""
    assert AgentSettings.load({"PENSTOCK_LABELS": "b, a,,b"}).label_list == ("a", "b")


def test_an_agent_is_named_after_its_host() -> None:
    """Unless it is given a name."""
    assert AgentSettings.load({}).name == socket.gethostname()
    assert AgentSettings.load({"PENSTOCK_NAME": "mill"}).name == "mill"


def test_one_address_stands_for_all() -> None:
    """As for any client."""
    settings = AgentSettings.load({"PENSTOCK_ADDRESS": "host:1", "PENSTOCK_LOG_ADDRESS": "host:2"})

    assert (settings.queue_address, settings.log_address) == ("host:1", "host:2")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLOTS", "0"),
        ("SLOTS", "10001"),
        ("NAME", "x" * 256),
        ("LABELS", "x" * 256),
        ("LABELS", ",".join(map(str, range(65)))),
        ("LABELS", "a, penstock:agentless"),
        ("LABELS", "one;two"),
    ],
)
def test_what_the_queue_would_refuse_is_refused_at_once(name: str, value: str) -> None:
    """The message names the variable."""
    with pytest.raises(SettingsError, match=f"PENSTOCK_{name}"):
        AgentSettings.load({f"PENSTOCK_{name}": value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"LABELS": "a, penstock:x"},
            "PENSTOCK_LABELS (or --label) no. 2 is 'penstock:x'; labels that begin with 'penstock:' are reserved",
        ),
        ({"SLOTS": "0"}, "PENSTOCK_SLOTS (or --slots) must be from 1 to 10,000, not 0."),
        ({"NAME": " "}, "PENSTOCK_NAME (or --name) is only white space"),
    ],
)
def test_a_refusal_names_variable_and_option(given: dict[str, str], message: str) -> None:
    """And says what is wrong in the words of the contract."""
    with pytest.raises(SettingsError) as refused:
        AgentSettings.load({f"PENSTOCK_{name}": value for name, value in given.items()})

    assert message == str(refused.value)
