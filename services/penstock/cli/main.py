"""The command `penstock`: which sub-commands there are, and how a failure reaches its user.

Whatever a sub-command needs beyond the parsing of its options it imports when it runs, so that `--help` is quick.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from penstock.cli import (
    agent,
    archive,
    cancel,
    delete,
    describe,
    explain,
    get,
    logs,
    quickstart,
    register,
    restart,
    run,
    server,
)
from penstock.cli.failures import EXIT_MISUSED, CommandFailed
from penstock.cli.option_groups import GroupedCommand

EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="penstock",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help reads well in any pipe, and takes a third of the time.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(quickstart.quickstart)
app.add_typer(server.app)
app.add_typer(agent.app)
app.command("register")(register.register)
app.command("run", cls=GroupedCommand)(run.run)
app.command("cancel")(cancel.cancel)
app.command("restart")(restart.restart)
app.command("explain")(explain.explain)
app.command("logs")(logs.logs)
app.add_typer(get.app)
app.add_typer(describe.app)
app.command("archive")(archive.archive)
app.command("unarchive")(archive.unarchive)
app.add_typer(delete.app)


def main() -> None:
    """Run the command line of this process."""
    # The transport's own remarks about connections that come and go are not for the user of a command.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for stream in filter(None, (sys.stdout, sys.stderr)):
        # A terminal that lacks a character shows its escape instead of failing the command.
        stream.reconfigure(errors="backslashreplace")
    _end(_exit_code())


def _exit_code() -> int:
    try:
        _demand_text(sys.argv[1:])
        app(prog_name="penstock")
    except CommandFailed as failed:
        typer.echo(f"penstock: {failed}", err=True)
        return failed.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def _end(code: int) -> NoReturn:
    """End without the interpreter's last collection.

    The transport's threads are stopped before it, wherever they are; what they had locked then stays locked, and a
    finaliser that wants it waits for ever.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError):  # whoever read it may be gone
            stream.flush()
    os._exit(code)


def _demand_text(arguments: Sequence[str]) -> None:
    """Refuse bytes that are no text: neither JSON nor the contract could carry them."""
    for place, argument in enumerate(arguments, start=1):
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise CommandFailed(f"Argument {place} is not valid UTF-8: {argument!r}", EXIT_MISUSED)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"penstock {version('penstock')}")
        raise typer.Exit


@app.callback()
def _penstock(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Create, queue, run and watch flow runs.

    Commands find the services at PENSTOCK_ADDRESS, or at 127.0.0.1 and ports 4710 to 4712; PENSTOCK_TOKEN is sent
    when it is set.

    Exit codes: 0 all is well; 1 the run failed, or the call was refused; 2 the command line is wrong; 3 the run was
    cancelled; 4 contact was lost while watching.
    """
