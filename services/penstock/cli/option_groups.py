"""Commands with many options: a help that groups them, and which of them were given."""

from typing import Any

import typer
from typer.core import TyperCommand


class GroupedCommand(TyperCommand):
    """Shows its options under the headings of their `rich_help_panel`, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                groups.setdefault(getattr(param, "rich_help_panel", None) or "Help", []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def options_given(context: typer.Context) -> dict[str, Any]:
    """What the command line says, by the long names of its options, in the order in which they are declared."""
    return {
        next(name for name in param.opts if name.startswith("--")): context.params[param.name]
        for param in context.command.params
        if param.name in context.params and _was_given(context, param.name)
    }


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
