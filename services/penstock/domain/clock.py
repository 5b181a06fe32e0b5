"""What the time is asked of."""

from typing import Protocol

from pendulum import DateTime


class Clock(Protocol):
    """Tells the time. Only `runtime/clock.py` and `storage/database.py` ask a real one."""

    def now(self) -> DateTime:
        """The present moment, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        ...
