"""Where and how a run is launched: apart from flows, because the code of a flow loads it too and little else."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.domain.json_text import Json


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Where and how a run is launched. Taken whole from the run, else the group, else the flow."""

    environment: Mapping[str, str] = field(default_factory=dict)
    working_directory: str = ""
    image: str = ""
    resources: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> Json:
        return {
            "environment": dict(self.environment),
            "working_directory": self.working_directory,
            "image": self.image,
            "resources": dict(self.resources),
        }
