"""What is kept on disk about a run that this machine executes, so that its supervisor outlives its agent.

The directory is readable by its owner alone: it holds the run's parameters and what proves the lease. The token is not
in it, because the code of the run is told where the directory is.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600

# Asks a supervisor, beside SIGTERM, to end its run without grace.
HURRY: Final = signal.SIGQUIT
STOP_SIGNALS: Final = frozenset({signal.SIGTERM, HURRY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Everything that a supervisor is told about its run."""

    flow_run_id: str
    fence: int
    attempt: int
    flow_name: str
    flow_run_name: str
    agent_id: str
    # One of the two is set.
    entry_point: str
    command: Sequence[str]
    parameters_json: str
    context_json: str
    environment: Mapping[str, str]
    working_directory: str
    log_level: str
    flow_run_address: str
    queue_address: str
    log_address: str
    # Never stored: whoever starts the supervisor hands it over.
    token: str = field(default="", repr=False)
    # Whether the code of the run is told the token.
    lends_token: bool = False
    # On the clock that leases count by, which the processes of this machine share.
    lease_end: float
    lease_seconds: float
    stop_grace_seconds: float
    trace_context: Mapping[str, str]
    # What the launcher wants the log of the run to say.
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """The execution that a supervisor asked to begin, and the process group of its body."""

    execution_id: str
    body: int


class RunDirectory:
    """One run's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lease_file = path / "lease.json"
        self.parameters_file = path / "parameters.json"
        self.context_file = path / "context.json"
        self.exit_file = path / "exit.json"
        self.output_file = path / "supervisor.log"
        self._pid_file = path / "supervisor.pid"
        self._start_file = path / "start.json"

    @classmethod
    def create(cls, data_dir: Path, assignment: Assignment) -> "RunDirectory":
        """Make the directory of a run that was just accepted."""
        directory = cls(data_dir / "runs" / f"{assignment.flow_run_id}-{assignment.fence}")
        directory.path.parent.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
        directory.path.mkdir(mode=DIRECTORY_MODE)
        try:
            _write(directory.parameters_file, assignment.parameters_json or "{}")
            _write(directory.context_file, assignment.context_json or "{}")
            _write(directory.lease_file, json.dumps(_without_token(assignment)))
        except (OSError, ValueError):
            directory.remove()
            raise
        return directory

    def assignment(self, token: str = "") -> Assignment:
        """Read what was assigned; the token comes from elsewhere."""
        return Assignment(**{**json.loads(self.lease_file.read_text(encoding="utf-8")), "token": token})

    def take_charge(self) -> int | None:
        """Become the supervisor of this run for the life of this process; None if another process is."""
        held = lock(self.lease_file)
        if held is not None:
            _write(self._pid_file, str(os.getpid()))
        return held

    def signal_supervisor(self, number: signal.Signals) -> None:
        """Send the supervisor a signal; nothing if it is gone."""
        if is_locked(self.lease_file):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(self._pid_file.read_text()), number)

    def was_led_by(self, pid: int) -> bool:
        """Whether the supervisor that took charge last is, or was, that process."""
        with contextlib.suppress(OSError, ValueError):
            return int(self._pid_file.read_text()) == pid
        return False

    def record_start(self, execution_id: str, body: int) -> None:
        """Store who asks to begin, so that the end can be reported for a supervisor that is killed.

        Not synced: a machine that crashes takes the reporter along as well.
        """
        self._start_file.write_text(json.dumps(asdict(Start(execution_id, body))), encoding="utf-8")

    def recorded_start(self) -> Start | None:
        """Who asked to begin; None while nobody did."""
        with contextlib.suppress(OSError, ValueError):
            return Start(**json.loads(self._start_file.read_text(encoding="utf-8")))
        return None

    def record_exit(self, record: str) -> None:
        """Store how the run ended so that it survives a crash at any moment after this returns."""
        fresh = self.exit_file.with_suffix(".new")
        _write(fresh, record)
        fresh.replace(self.exit_file)
        _sync(self.path)

    def recorded_exit(self) -> str | None:
        """How the run ended; None while that is not known."""
        with contextlib.suppress(FileNotFoundError):
            return self.exit_file.read_text(encoding="utf-8")
        return None

    def last_words(self) -> str:
        """The last line that the supervisor wrote about itself, without time and level."""
        with contextlib.suppress(OSError):
            lines = self.output_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return re.sub(r"^\S+ \S+ [A-Z]+: ", "", lines[-1]) if lines else ""
        return ""

    def remove(self) -> None:
        """Forget the run."""
        shutil.rmtree(self.path, ignore_errors=True)


def lock(path: Path) -> int | None:
    """Hold a file for the life of this process, through the returned descriptor; None if another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether a living process holds that file."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _without_token(assignment: Assignment) -> dict[str, Any]:
    return {name: value for name, value in asdict(assignment).items() if name != "token"}


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
