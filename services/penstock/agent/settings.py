"""What an agent is told, beside where the services are."""

import re
import socket
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

from penstock.domain.errors import InvalidRequest
from penstock.domain.limits import SLOTS_MAX
from penstock.runtime.settings import ClientSettings, ServiceSettings, SettingsError
from penstock.wire.checks import Checks


@dataclass(frozen=True, slots=True)
class AgentSettings(ClientSettings):
    """What `penstock agent start` is told. Labels are separated by commas; the name defaults to the host's.

    With `lend_token` the code of a run finds the agent's token in its environment, and so may create runs: whoever may
    register a flow can then do whatever the token allows.
    """

    table: ClassVar[str] = "agent"
    name: str = ""
    labels: str = ""
    slots: int = 4
    data_dir: Path = field(default_factory=lambda: ServiceSettings().data_dir)
    stop_grace: timedelta = timedelta(seconds=10)
    lend_token: bool = False

    def __post_init__(self) -> None:
        ClientSettings.__post_init__(self)
        object.__setattr__(self, "name", self.name or socket.gethostname() or "agent")
        if not 1 <= self.slots <= SLOTS_MAX:
            raise SettingsError(f"PENSTOCK_SLOTS (or --slots) must be from 1 to {SLOTS_MAX:,}, not {self.slots}.")
        # What the queue would refuse is refused here, in its words, before anything is tried.
        checks = Checks()
        checks.name("PENSTOCK_NAME (or --name)", self.name)
        checks.labels("PENSTOCK_LABELS (or --label)", self._labels_given())
        try:
            checks.done()
        except InvalidRequest as refusal:
            raise SettingsError(_in_words(refusal)) from refusal

    @property
    def label_list(self) -> tuple[str, ...]:
        """The labels, one by one."""
        return tuple(sorted(self._labels_given()))

    def _labels_given(self) -> list[str]:
        given = (label.strip() for label in self.labels.split(","))
        return list(dict.fromkeys(filter(None, given)))


def _in_words(refusal: InvalidRequest) -> str:
    return "; ".join(
        re.sub(r"\[(\d+)\]$", lambda place: f" no. {int(place[1]) + 1}", each.field) + f" {each.description}"
        for each in refusal.violations
    )
