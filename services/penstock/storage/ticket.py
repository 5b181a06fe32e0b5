"""The write ticket of a SQLite file: one writer at a time, first come first served, among threads and processes.

SQLite's own waiting polls and starves; a lock that the kernel queues does neither.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from penstock.domain.errors import Unavailable


class WriteTicket:
    """A mutex of this process, then a lock on the file `<database>.ticket`, which dies with its holder."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".ticket")
        self._mutex = threading.Lock()
        self._file: int | None = None

    @contextmanager
    def held(self, wait_max: timedelta) -> Iterator[None]:
        """Hold the ticket. Raises Unavailable when it was not to be had within `wait_max`."""
        if not self._mutex.acquire(timeout=wait_max.total_seconds()):
            raise Unavailable(detail="the database has been busy for too long")
        try:
            file = self._lock_file(wait_max)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
        finally:
            self._mutex.release()

    def close(self) -> None:
        """Give the file back. It is not removed: somebody else may be queuing for it."""
        with self._mutex:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _lock_file(self, wait_max: timedelta) -> int:
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._await_lock(self._file, wait_max)
        return self._file

    def _await_lock(self, file: int, wait_max: timedelta) -> None:
        """Queue for the lock in a thread of its own, because the kernel's queue knows no time-out."""
        locked = threading.Event()

        def queue() -> None:
            fcntl.flock(file, fcntl.LOCK_EX)
            locked.set()

        threading.Thread(target=queue, daemon=True).start()
        if not locked.wait(wait_max.total_seconds()):
            # Whoever still queues on this file gives the lock up with it: its last descriptor goes with that thread.
            self._file = None
            _close_once_locked(file, locked)
            raise Unavailable(detail="another process has kept the database busy for too long")


def _close_once_locked(file: int, locked: threading.Event) -> None:
    def close() -> None:
        locked.wait()
        os.close(file)

    threading.Thread(target=close, daemon=True).start()
