"""How a supervisor ends."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a supervisor tells whoever started it."""

    REPORTED = 0
    # Begun, and its end could not be reported; it is recorded in the run directory.
    UNREPORTED = 1
    # Never begun: the lease can be given back.
    NOT_STARTED = 75
    # The lease is not ours any more: there is nothing to do.
    DROPPED = 76
