"""Which options of `penstock run` cannot go together, and which go nowhere alone: said before anything is asked."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from penstock.cli.failures import EXIT_MISUSED, CommandFailed

_LOCAL: Final = ("--path", "--module")
_RUN_CONFIG: Final = ("--env", "--working-directory", "--image", "--resource")
_OF_ONE_RUN: Final = (
    *("--param", "--param-file", "--context", "--label", "--no-labels", "--run-name", "--idempotency-key"),
    *("--start-at", "--in", "--retries", "--retry-delay", "--priority", "--log-level", *_RUN_CONFIG),
)
_LOCAL_TAKES: Final = ("--param", "--param-file", "--log-level")

# Pairs, each with why: of the first, and of the second, any one.
_EXCLUDE: Final[tuple[tuple[Iterable[str], Iterable[str], str], ...]] = (
    (("--id",), ("--name",), "each says which flow to run."),
    (("--path",), ("--module",), "each says where the flow is."),
    (("--id",), _LOCAL, "one names a registered flow, the other runs a flow on this machine."),
    (
        _LOCAL,
        (
            *("--project", "--watch", "--execute", "--batch", "--resume", "--no-logs", "--refuse-different"),
            *(option for option in _OF_ONE_RUN if option not in _LOCAL_TAKES),
        ),
        "a flow that is run on this machine, here and now, needs no backend, and gets nothing from one.",
    ),
    (("--quiet",), ("--json",), "each says what is printed."),
    (("--label",), ("--no-labels",), "a run has labels, or none."),
    (("--start-at",), ("--in",), "each says when the run starts."),
    (("--batch",), ("--execute", "--watch", "--no-logs"), "the runs of a batch are left to agents."),
    (("--batch",), _OF_ONE_RUN, "each line of a batch says this of its own run."),
    (
        ("--execute",),
        ("--working-directory", "--image", "--resource"),
        "of the run config of a run that is executed here, only the environment counts.",
    ),
)

# Options that mean something only beside one of these.
_NEED: Final[tuple[tuple[str, Iterable[str]], ...]] = (
    ("--project", ("--name", "--batch")),
    ("--no-logs", ("--watch", "--execute")),
    ("--refuse-different", ("--idempotency-key", "--batch")),
    ("--resume", ("--batch",)),
)


def refuse_contradictions(given: Mapping[str, Any]) -> None:
    """Refuse a command line that cannot be meant, in one sentence; `given` are its options and their values."""
    for option, value in given.items():
        if value == "" or (option == "--label" and "" in value):
            instead = " For a run without labels, say --no-labels." if option == "--label" else ""
            raise CommandFailed(f"{option} is empty.{instead}", EXIT_MISUSED)
    for ones, others, why in _EXCLUDE:
        for one in filter(given.__contains__, ones):
            for other in filter(given.__contains__, others):
                raise CommandFailed(f"{one} and {other} cannot go together: {why}", EXIT_MISUSED)
    for option, companions in _NEED:
        if option in given and not any(map(given.__contains__, companions)):
            raise CommandFailed(f"{option} goes with {' or '.join(companions)}.", EXIT_MISUSED)
    if not any(map(given.__contains__, ("--id", "--name", "--batch", *_LOCAL))):
        raise CommandFailed(
            "Say which flow to run: --id ID or --name NAME for a registered one, "
            "--path FILE or --module MODULE for one on this machine, or --batch FILE.",
            EXIT_MISUSED,
        )
