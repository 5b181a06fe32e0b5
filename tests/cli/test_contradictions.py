"""Command lines of `penstock run` that cannot be meant."""

import pytest
from typer.testing import CliRunner

from penstock.cli.failures import CommandFailed
from penstock.cli.main import app


def refusal(*options: str) -> str:
    """What `penstock run` refuses these options with, before anything else."""
    result = CliRunner().invoke(app, ["run", *options])
    assert isinstance(result.exception, CommandFailed), result.exception
    assert 2 == result.exception.exit_code
    assert "" == result.stdout
    return str(result.exception)


@pytest.mark.parametrize(
    ("ones", "others"),
    [
        (["--id", "x"], ["--name", "y"]),
        (["--path", "x.py"], ["--module", "y"]),
        (["--id", "x"], ["--path", "y.py"]),
        (["--id", "x"], ["--module", "y"]),
        (["--path", "x.py"], ["--watch"]),
        (["--path", "x.py"], ["--execute"]),
        (["--path", "x.py"], ["--batch", "y"]),
        (["--path", "x.py"], ["--project", "y"]),
        (["--path", "x.py"], ["--context", "a=1"]),
        (["--path", "x.py"], ["--label", "a"]),
        (["--path", "x.py"], ["--no-labels"]),
        (["--path", "x.py"], ["--run-name", "a"]),
        (["--path", "x.py"], ["--idempotency-key", "a"]),
        (["--path", "x.py"], ["--start-at", "2030-01-01"]),
        (["--module", "x"], ["--in", "1m"]),
        (["--module", "x"], ["--retries", "1"]),
        (["--module", "x"], ["--retry-delay", "1m"]),
        (["--module", "x"], ["--priority", "1"]),
        (["--module", "x"], ["--env", "a=1"]),
        (["--module", "x"], ["--working-directory", "a"]),
        (["--module", "x"], ["--image", "a"]),
        (["--module", "x"], ["--resource", "a=1"]),
        (["--module", "x"], ["--no-logs"]),
        (["--quiet", "--name", "x"], ["--json"]),
        (["--label", "a", "--name", "x"], ["--no-labels"]),
        (["--start-at", "2030-01-01", "--name", "x"], ["--in", "1m"]),
        (["--batch", "f"], ["--execute"]),
        (["--batch", "f"], ["--watch"]),
        (["--batch", "f"], ["--no-logs"]),
        (["--batch", "f"], ["--param", "a=1"]),
        (["--batch", "f"], ["--param-file", "a"]),
        (["--batch", "f"], ["--context", "a=1"]),
        (["--batch", "f"], ["--label", "a"]),
        (["--batch", "f"], ["--run-name", "a"]),
        (["--batch", "f"], ["--idempotency-key", "a"]),
        (["--batch", "f"], ["--start-at", "2030-01-01"]),
        (["--batch", "f"], ["--in", "1m"]),
        (["--batch", "f"], ["--retries", "1"]),
        (["--batch", "f"], ["--env", "a=1"]),
        (["--batch", "f"], ["--log-level", "info"]),
        (["--execute", "--name", "x"], ["--image", "a"]),
        (["--execute", "--name", "x"], ["--working-directory", "a"]),
        (["--execute", "--name", "x"], ["--resource", "a=1"]),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
def test_two_options_that_exclude_each_other(ones: list[str], others: list[str], turned: bool) -> None:
    """The refusal names both options and says why, in one sentence, in whichever order they were given."""
    options = [*others, *ones] if turned else [*ones, *others]

    sentence = refusal(*options)

    assert sentence.startswith(f"{ones[0]} and {others[0]} cannot go together: ")
    assert "\n" not in sentence


def test_why_a_local_run_and_a_backend_exclude_each_other() -> None:
    """A local run is promised this machine, not this process: it has a process of its own."""
    registered, watched = refusal("--id", "x", "--path", "y.py"), refusal("--path", "x.py", "--watch")

    assert registered.endswith("one names a registered flow, the other runs a flow on this machine.")
    assert watched.endswith(
        "a flow that is run on this machine, here and now, needs no backend, and gets nothing from one."
    )
    assert "--path FILE or --module MODULE for one on this machine" in refusal()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--project", "p"], "--project goes with --name or --batch."),
        (["--id", "x", "--project", "p"], "--project goes with --name or --batch."),
        (["--name", "x", "--no-logs"], "--no-logs goes with --watch or --execute."),
        (["--name", "x", "--refuse-different"], "--refuse-different goes with --idempotency-key or --batch."),
        (["--name", "x", "--resume", "y"], "--resume goes with --batch."),
    ],
    ids=str,
)
def test_an_option_that_means_nothing_alone(options: list[str], sentence: str) -> None:
    """An option without the one that gives it a meaning is refused, and the other one is named."""
    assert sentence == refusal(*options)


@pytest.mark.parametrize("options", [[], ["--watch"], ["--param", "a=1"]], ids=" ".join)
def test_nothing_to_run(options: list[str]) -> None:
    """A command that names no flow is told all the ways to name one."""
    assert refusal(*options).startswith("Say which flow to run: --id ID or --name NAME")


@pytest.mark.parametrize(
    "option", ["--id", "--name", "--idempotency-key", "--run-name", "--start-at", "--in", "--batch", "--path"]
)
def test_an_empty_option(option: str) -> None:
    """A text that came out empty, as from a variable that was not set, is not taken for an option left out."""
    assert f"{option} is empty." == refusal(option, "")


def test_an_empty_label() -> None:
    """An empty label is refused with the way to say that a run has none."""
    assert "--label is empty. For a run without labels, say --no-labels." == refusal("--name", "x", "--label", "")


def test_a_log_level_that_is_none() -> None:
    """A level that does not exist is refused with those that do."""
    sentence = refusal("--name", "x", "--log-level", "loud")

    assert "--log-level 'loud' is none; there are DEBUG, INFO, WARNING, ERROR, CRITICAL." == sentence


@pytest.mark.parametrize("options", [["--retries", "-1"], ["--retries", "99999999999"], ["--priority", "101"]], ids=str)
def test_a_number_out_of_range(options: list[str]) -> None:
    """A number that no server would take is refused by the name of its option."""
    result = CliRunner().invoke(app, ["run", "--name", "x", *options])

    assert 2 == result.exit_code
    assert f"Invalid value for '{options[0]}': Input should be" in result.stderr
