"""One class per refusal: what is refused, in words and in data.

`wire/errors.py` says which status code each becomes.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import ClassVar


@dataclass(eq=False)
class Refusal(Exception):
    """An expected failure. Its fields are the dynamic parts of its message, and reach the caller as metadata."""

    message: ClassVar[str]

    def __str__(self) -> str:
        return self.message.format_map(self.metadata())

    @classmethod
    def reason(cls) -> str:
        """The class name in UPPER_SNAKE, as the contract's `ErrorInfo.reason`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()

    def metadata(self) -> Mapping[str, str]:
        """Every dynamic part of the message, as text."""
        return {field.name: _as_text(getattr(self, field.name)) for field in fields(self)}

    def retry_after(self) -> timedelta | None:
        """How long to wait before asking again; None when asking again is pointless."""
        return None


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return ", ".join(map(str, value))
    return str(value)


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a request: the field's path as the proto spells it, and what is wrong with it."""

    field: str
    description: str


@dataclass(eq=False)
class InvalidRequest(Refusal):
    """The request is wrong in itself. All violations are listed at once."""

    message: ClassVar = "The request is invalid: {violations}"
    violations: tuple[Violation, ...]

    def metadata(self) -> Mapping[str, str]:
        return {"violations": "; ".join(f"{each.field}: {each.description}" for each in self.violations)}


@dataclass(eq=False)
class PageTokenInvalid(Refusal):
    """The page token was not made by this installation for this very query."""

    message: ClassVar = "The page token does not belong to this query: {detail}"
    detail: str


@dataclass(eq=False)
class CredentialInvalid(Refusal):
    """The call bears no token, or the wrong one."""

    message: ClassVar = "The call bears no valid token: send 'authorization: Bearer <token>' ({detail})."
    detail: str


@dataclass(eq=False)
class FlowNotFound(Refusal):
    message: ClassVar = "There is no flow {flow}."
    flow: str
    similar: tuple[str, ...] = ()  # names that its caller may have meant

    def __str__(self) -> str:
        return super().__str__() + (f" There is {', '.join(map(repr, self.similar))}." if self.similar else "")


@dataclass(eq=False)
class FlowGroupNotFound(Refusal):
    message: ClassVar = "There is no flow group {flow_group}."
    flow_group: str


@dataclass(eq=False)
class FlowRunNotFound(Refusal):
    message: ClassVar = "There is no flow run {flow_run_id}."
    flow_run_id: str


@dataclass(eq=False)
class FlowArchived(Refusal):
    message: ClassVar = "Flow {flow_id} is archived; {live_flow_id} is the live flow of its group."
    flow_id: str
    live_flow_id: str


@dataclass(eq=False)
class NoLiveFlow(Refusal):
    message: ClassVar = "Flow group {flow_group_id} has no unarchived flow."
    flow_group_id: str
    archived: tuple[str, ...] = ()  # the ids of its latest flows, the last one first

    def __str__(self) -> str:
        return super().__str__() + (
            f" Archived, the latest first: {', '.join(self.archived)}." if self.archived else ""
        )


@dataclass(eq=False)
class FlowNameAmbiguous(Refusal):
    message: ClassVar = "More than one flow is named {name!r}; say which project: {projects}."
    name: str
    projects: tuple[str, ...]


@dataclass(eq=False)
class MoveRefused(Refusal):
    message: ClassVar = "Flow run {flow_run_id} is {present}; it cannot become {asked}."
    flow_run_id: str
    present: str
    asked: str


@dataclass(eq=False)
class KeyReused(Refusal):
    message: ClassVar = (
        "Idempotency key {idempotency_key!r} already made flow run {flow_run_id}, "
        "which differs from what is asked now in: {differing_fields}."
    )
    idempotency_key: str
    flow_run_id: str
    differing_fields: tuple[str, ...]


@dataclass(eq=False)
class KeyNotFound(Refusal):
    message: ClassVar = "Idempotency key {idempotency_key!r} has made no flow run of {target}."
    idempotency_key: str
    target: str


@dataclass(eq=False)
class FlowRunLive(Refusal):
    message: ClassVar = "Flow run {flow_run_id} is {present}; wait for its end, or cancel it first."
    flow_run_id: str
    present: str


@dataclass(eq=False)
class ChildrenLive(Refusal):
    message: ClassVar = "Children of flow run {flow_run_id} are still to be cancelled with it; try again in a moment."
    flow_run_id: str

    def retry_after(self) -> timedelta | None:
        return timedelta(seconds=1)


@dataclass(eq=False)
class FlowRunFinal(Refusal):
    message: ClassVar = "Flow run {flow_run_id} is {present} already."
    flow_run_id: str
    present: str


@dataclass(eq=False)
class VersionStale(Refusal):
    message: ClassVar = "Flow run {flow_run_id} did not end at version {version}; it is at version {present}."
    flow_run_id: str
    version: int
    present: int


@dataclass(eq=False)
class LabelsMissing(Refusal):
    message: ClassVar = "Flow run {flow_run_id} is for others: it asks for labels that the caller lacks: {missing}."
    flow_run_id: str
    missing: tuple[str, ...]


@dataclass(eq=False)
class LeaseLost(Refusal):
    message: ClassVar = "Lease {fence} on flow run {flow_run_id} is no longer held; stop working on it."
    flow_run_id: str
    fence: int


@dataclass(eq=False)
class ExecutionRefused(Refusal):
    message: ClassVar = "Lease {fence} on flow run {flow_run_id} was already started by another execution."
    flow_run_id: str
    fence: int


@dataclass(eq=False)
class SessionReplaced(Refusal):
    message: ClassVar = "Agent {agent_id} opened a newer stream; this one is over."
    agent_id: str


@dataclass(eq=False)
class AgentSilent(Refusal):
    message: ClassVar = "Agent {agent_id} fell silent; open another stream."
    agent_id: str


@dataclass(eq=False)
class Overloaded(Refusal):
    message: ClassVar = "Too many calls wait for the database; nothing was written."
    wait: timedelta

    def retry_after(self) -> timedelta | None:
        return self.wait


@dataclass(eq=False)
class Unavailable(Refusal):
    message: ClassVar = "This process cannot serve now: {detail}."
    detail: str

    def metadata(self) -> Mapping[str, str]:
        return {"detail": self.detail}

    def retry_after(self) -> timedelta | None:
        return timedelta(seconds=1)
