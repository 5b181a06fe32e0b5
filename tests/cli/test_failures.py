"""How a failed call is told to the user of a command."""

from collections.abc import Mapping

import pytest

from penstock.cli.failures import CommandFailed, told_plainly
from penstock.client.errors import InvalidRequest, Unauthenticated, Unavailable, Violation

WORDS = {
    "labels": "--label",
    "name": "--run-name",
    "parameters_json": "--param",
    "policy": "the policy",
    "policy.max_retries": "--retries",
}


def told(*violations: Violation, words: Mapping[str, str] = WORDS) -> str:
    """What a user is told about a request with these violations."""
    fields = "; ".join(f"{each.field}: {each.description}" for each in violations)
    with pytest.raises(CommandFailed) as failed, told_plainly(words):
        raise InvalidRequest(f"The request is invalid: {fields}", violations=violations)
    return str(failed.value)


@pytest.mark.parametrize(
    ("field", "word"),
    [
        ("parameters_json", "--param"),
        ("labels", "--label"),
        ("labels.labels", "--label"),
        ("labels.labels[3]", "--label (no. 4)"),
        ("labels[0]", "--label (no. 1)"),
        ("policy.max_retries", "--retries"),
        ("policy.priority", "the policy priority"),
        ("name", "--run-name"),
        ("names", "names"),
        ("run_config.environment", "run_config.environment"),
    ],
)
def test_fields_are_told_in_the_words_of_the_command(field: str, word: str) -> None:
    """The longest known name speaks for a field and what it holds; an unknown field keeps its name."""
    assert f"The request is invalid: {word}: is wrong" == told(Violation(field, "is wrong"))


def test_all_violations_are_told_at_once() -> None:
    """Several violations are listed, each in the words of the command; one without a field is told as it is."""
    lines = told(Violation("name", "is long"), Violation("labels[1]", "holds a comma"), Violation("", "and 3 more"))

    assert [
        "The request is invalid:",
        "  --run-name: is long",
        "  --label (no. 2): holds a comma",
        "  and 3 more",
    ] == lines.splitlines()


def test_without_words_fields_keep_their_names() -> None:
    """A command without a table shows the contract's own names."""
    assert "The request is invalid: name: is long" == told(Violation("name", "is long"), words={})


def test_text_from_elsewhere_cannot_command_the_terminal() -> None:
    """What a server says about a field is shown made safe."""
    assert r"The request is invalid: --run-name: \x1b[2J" == told(Violation("name", "\x1b[2J"))


def test_what_can_be_done_is_said() -> None:
    """Where no server answers, and where the token is wrong, the user learns what to do."""
    for error, advice in (
        (Unavailable("No Penstock server answers at here:1."), "penstock server start"),
        (Unauthenticated("The call bears no valid token."), "Set PENSTOCK_TOKEN"),
    ):
        with pytest.raises(CommandFailed, match=advice), told_plainly():
            raise error
