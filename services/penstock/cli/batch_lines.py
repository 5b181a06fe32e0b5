"""The lines of a batch: each a JSON object that describes one run. Every bad line is found before anything is sent."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, cast

from penstock.cli.creating import Target
from penstock.cli.failures import EXIT_MISUSED, CommandFailed
from penstock.cli.given import SHOWN_CHARACTERS_MAX, parsed
from penstock.cli.start_times import moment_of, span_of
from penstock.client import LogLevel, NewFlowRun, PenstockError, RunConfig
from penstock.client.creations import create_flow_run
from penstock.domain.limits import PAGE_BYTES_MAX, PRIORITY_MAX, RETRIES_MAX

BAD_LINES_SHOWN_MAX: Final = 20
# Short enough for a key beside the id of a batch, long enough that no two lines meet.
DIGEST_CHARACTERS: Final = 32

_RUN_CONFIG: Final = ("environment", "working_directory", "image", "resources")


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its number in the file, what it wishes, and the flow it means where that is still to be looked up."""

    number: int
    wish: NewFlowRun
    target: Target | None


class BadLine(ValueError):
    """What is wrong with a line, in a sentence without an end."""


def read_lines(source: Iterable[bytes], default: Target | None, key_prefix: str, common: NewFlowRun) -> list[Line]:
    """The lines that describe a run, blank ones left out; refused, all bad ones named, if one is bad.

    `default` is what a line means that names no flow, `common` is wished by all. A line without an idempotency key
    gets one of the prefix, what it says, and how many lines up to it say the same: it keeps that wherever it stands.
    """
    lines, problems, alike = [], Problems(), Counter[str]()
    for number, content in enumerate(source, start=1):
        if not content.strip():
            continue
        try:
            members = _members(content)
            line = _line_of(number, members, default)
        except BadLine as bad:
            problems.add(number, str(bad))
        else:
            said = _digest(members)
            alike[said] += 1
            wish: NewFlowRun = {"idempotency_key": f"{key_prefix}{said}:{alike[said]}", **common, **line.wish}
            lines.append(Line(number, wish, line.target))
    problems.refuse()
    if not lines:
        raise CommandFailed("The batch holds no line that describes a run.", EXIT_MISUSED)
    return lines


@dataclass(slots=True)
class Problems:
    """What is wrong with which lines."""

    _found: dict[int, str] = field(default_factory=dict)

    def add(self, number: int, what: str) -> None:
        """Note what is wrong with a line."""
        self._found[number] = what

    def refuse(self) -> None:
        """Refuse the batch if there is anything wrong with it."""
        if self._found:
            listed = [f"  line {number}: {what.rstrip('.')}." for number, what in sorted(self._found.items())]
            raise CommandFailed("\n".join(["Nothing was sent:", *cut(listed, BAD_LINES_SHOWN_MAX)]), EXIT_MISUSED)


def cut(listed: list[str], most: int) -> list[str]:
    """The first of these, and how many there are besides."""
    more = len(listed) - most
    return [*listed[:most], *([f"  … and {more:,} more."] if more > 0 else [])]


def size_of(wish: NewFlowRun) -> int:
    """How large the wish is on the wire; refused when it cannot be sent."""
    try:
        size = create_flow_run(**wish).request.ByteSize()
    except PenstockError as error:
        raise BadLine(
            "; ".join(f"{each.field} {each.description}" for each in error.violations) or str(error)
        ) from error
    if size > PAGE_BYTES_MAX:
        raise BadLine(f"is {size:,} bytes; at most {PAGE_BYTES_MAX:,} can be sent")
    return size


def _line_of(number: int, members: Mapping[str, Any], default: Target | None) -> Line:
    target, ids = _target_of(members, default)
    wish: dict[str, Any] = dict(ids)
    if {"start_at", "in"} <= members.keys():
        raise BadLine("start_at and in cannot go together: each says when the run starts")
    for name, value in members.items():
        if name in _MEMBERS:
            argument, convert = _MEMBERS[name]
            wish[argument] = convert(name, value)
    return Line(number, cast(NewFlowRun, wish), target)


def _members(content: bytes) -> dict[str, Any]:
    """The members of a line that say something; null says as much as leaving it out."""
    try:
        read = parsed(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadLine("is not valid UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise BadLine(f"is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise BadLine("is not a JSON object")
    if unknown := sorted(read.keys() - _MEMBERS.keys() - set(_TARGET)):
        known = ", ".join(sorted([*_TARGET, *_MEMBERS]))
        raise BadLine(f"has the unknown member {unknown[0]!r}; there are {known}")
    return {name: value for name, value in read.items() if value is not None}


def _digest(members: Mapping[str, Any]) -> str:
    """What a line says, however it is written: the same for the same members in another order or spacing."""
    return sha256(json.dumps(members, sort_keys=True).encode()).hexdigest()[:DIGEST_CHARACTERS]


_TARGET: Final = ("flow", "flow_id", "flow_group_id", "project")


def _target_of(members: Mapping[str, Any], default: Target | None) -> tuple[Target | None, NewFlowRun]:
    named = [name for name in ("flow", "flow_id", "flow_group_id") if name in members]
    texts = {name: _text(name, members[name]) for name in _TARGET if name in members}
    if len(named) > 1:
        raise BadLine(f"{named[0]} and {named[1]} cannot go together: each says which flow to run")
    default = default or Target()
    by_id = bool({"flow_id", "flow_group_id"} & texts.keys()) or ("flow" not in texts and default.flow_id)
    if by_id and "project" in texts:
        raise BadLine("project goes with flow: an id needs none")
    match named:
        case ["flow_id"]:
            return None, {"flow_id": texts["flow_id"]}
        case ["flow_group_id"]:
            return None, {"flow_group_id": texts["flow_group_id"]}
        case ["flow"]:
            return Target(name=texts["flow"], project=texts.get("project", default.project)), {}
    if not (default.flow_id or default.name):
        raise BadLine("says no flow: give flow, flow_id or flow_group_id, or --name or --id for all lines")
    return Target(default.flow_id, default.name, texts.get("project", default.project)), {}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadLine(f"{name} must be a text, not {_shown(value)}")
    if not value:
        raise BadLine(f"{name} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadLine(f"{name} holds half a character")
    return value


def _texts(name: str, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise BadLine(f"{name} must be an array of texts, not {_shown(value)}")
    return [_text(f"{name}[{index}]", each) for index, each in enumerate(value)]


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadLine(f"{name} must be an object, not {_shown(value)}")
    return value


def _count(most: int) -> Callable[[str, Any], int]:
    def convert(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise BadLine(f"{name} must be a whole number from 0 to {most:,}, not {_shown(value)}")
        return value

    return convert


def _time(read: Callable[[str, str], Any]) -> Callable[[str, Any], Any]:
    def convert(name: str, value: Any) -> Any:
        try:
            return read(name, _text(name, value))
        except CommandFailed as failed:
            raise BadLine(str(failed)) from failed

    return convert


def _level(name: str, value: Any) -> LogLevel:
    levels = [level for level in LogLevel if level is not LogLevel.UNKNOWN]
    if _text(name, value).upper() not in levels:
        raise BadLine(f"{name} must be one of {', '.join(levels)}, not {_shown(value)}")
    return LogLevel(value.upper())


def _run_config(name: str, value: Any) -> RunConfig:
    members = {each: of for each, of in _object(name, value).items() if of is not None}
    if unknown := sorted(members.keys() - set(_RUN_CONFIG)):
        raise BadLine(f"{name} has the unknown member {unknown[0]!r}; there are {', '.join(_RUN_CONFIG)}")

    def text(member: str) -> str:
        return _text(f"{name}.{member}", members[member]) if member in members else ""

    def texts(member: str) -> dict[str, str]:
        found = _object(f"{name}.{member}", members.get(member, {}))
        # A variable may be empty, unlike what is named.
        return {key: each if each == "" else _text(f"{name}.{member}.{key}", each) for key, each in found.items()}

    return RunConfig(texts("environment"), text("working_directory"), text("image"), texts("resources"))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}…"


# What a line may say of its run: the argument of the client that this is, and how to read it.
_MEMBERS: Final[Mapping[str, tuple[str, Callable[[str, Any], Any]]]] = {
    "parameters": ("parameters", _object),
    "context": ("context", _object),
    "labels": ("labels", _texts),
    "name": ("flow_run_name", _text),
    "start_at": ("scheduled_start_time", _time(moment_of)),
    "in": ("scheduled_start_time", _time(span_of)),
    "idempotency_key": ("idempotency_key", _text),
    "retries": ("max_retries", _count(RETRIES_MAX)),
    "retry_delay": ("retry_delay", _time(span_of)),
    "priority": ("priority", _count(PRIORITY_MAX)),
    "log_level": ("log_level", _level),
    "run_config": ("run_config", _run_config),
}
