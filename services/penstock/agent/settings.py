"""What an agent is told, beside where the services are."""

import socket
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

from penstock.domain.limits import LABEL_CHARACTERS_MAX, LABELS_MAX, NAME_CHARACTERS_MAX, SLOTS_MAX
from penstock.runtime.settings import ClientSettings, ServiceSettings, SettingsError


@dataclass(frozen=True, slots=True)
class AgentSettings(ClientSettings):
    """What `penstock agent start` is told. Labels are separated by commas; the name defaults to the host's."""

    table: ClassVar[str] = "agent"
    name: str = ""
    labels: str = ""
    slots: int = 4
    data_dir: Path = field(default_factory=lambda: ServiceSettings().data_dir)
    stop_grace: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        ClientSettings.__post_init__(self)
        object.__setattr__(self, "name", self.name or socket.gethostname() or "agent")
        if not 1 <= self.slots <= SLOTS_MAX:
            raise SettingsError(f"PENSTOCK_SLOTS must be from 1 to {SLOTS_MAX:,}, not {self.slots}.")
        if len(self.name) > NAME_CHARACTERS_MAX:
            raise SettingsError(f"PENSTOCK_NAME must have at most {NAME_CHARACTERS_MAX} characters.")
        if len(self.label_list) > LABELS_MAX or any(len(label) > LABEL_CHARACTERS_MAX for label in self.label_list):
            raise SettingsError(
                f"PENSTOCK_LABELS must be at most {LABELS_MAX} labels of at most {LABEL_CHARACTERS_MAX} characters."
            )

    @property
    def label_list(self) -> tuple[str, ...]:
        """The labels, one by one."""
        return tuple(sorted({label.strip() for label in self.labels.split(",")} - {""}))
