"""Every bound in the system, with its unit in its name.

The contract's comments repeat these numbers, and a test compares.
"""

from datetime import timedelta
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# What a message may be.
MESSAGE_BYTES_MAX: Final = 4 * MIB
PARAMETERS_BYTES_MAX: Final = 512 * KIB
CONTEXT_BYTES_MAX: Final = 512 * KIB
RESULT_BYTES_MAX: Final = 512 * KIB
FAILURE_CHARACTERS_MAX: Final = 16 * KIB
JSON_DEPTH_MAX: Final = 100
JSON_NUMBER_DIGITS_MAX: Final = 4_300  # what Python reads as one integer

# What a caller may name.
NAME_CHARACTERS_MAX: Final = 255
DESCRIPTION_CHARACTERS_MAX: Final = 10_000
REASON_CHARACTERS_MAX: Final = 1_000
IDEMPOTENCY_KEY_CHARACTERS_MAX: Final = 255
LABELS_MAX: Final = 64
LABEL_CHARACTERS_MAX: Final = 255
PARAMETERS_MAX: Final = 500
ENTRY_POINT_CHARACTERS_MAX: Final = 4_096
ENTRY_POINT_BYTES_MAX: Final = 128 * KIB
PATH_CHARACTERS_MAX: Final = 4_096
ARGUMENTS_MAX: Final = 256
ENVIRONMENT_VARIABLES_MAX: Final = 256
ENVIRONMENT_VALUE_CHARACTERS_MAX: Final = 32 * KIB
RESOURCES_MAX: Final = 64
RUN_CONFIG_BYTES_MAX: Final = 256 * KIB

# What a run may ask for.
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
PRIORITY_MAX: Final = 100
PRIORITY_WORTH: Final = timedelta(seconds=3)  # so the highest priority is worth five minutes of waiting
RETRIES_MAX: Final = 1_000
RETRY_DELAY_MAX: Final = timedelta(days=30)
START_DELAY_MAX: Final = timedelta(days=3_650)
LOST_RESTARTS_DEFAULT: Final = 3
LOST_RESTARTS_MAX: Final = 1_000

# How much fits into one call.
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000
PAGE_BYTES_MAX: Final = 3 * MIB
BATCH_CREATE_MAX: Final = 1_000
LEASES_PER_CALL_MAX: Final = 1_000
SLOTS_MAX: Final = 10_000
DEADLINE_DEFAULT: Final = timedelta(seconds=30)

# How work is handed out.
OFFER_LEASE: Final = timedelta(seconds=30)
HELD_LEASE: Final = timedelta(seconds=60)
HEARTBEAT_INTERVAL: Final = timedelta(seconds=15)
SILENCE_INTERVALS_MAX: Final = 2.5
STREAM_AGE_MAX: Final = timedelta(minutes=15)
SWEEP_INTERVAL: Final = timedelta(milliseconds=500)
OFFERS_PER_TAKE_MAX: Final = 100
OFFERS_BYTES_MAX: Final = 3 * MIB
RELEASES_MAX: Final = 10
RELEASE_DELAY_FIRST: Final = timedelta(seconds=1)
RELEASE_DELAY_MAX: Final = timedelta(seconds=60)
RELEASE_DELAY_ASKED_MAX: Final = timedelta(days=1)
DECLINED_DELAY: Final = timedelta(seconds=1)
LONG_POLL_MAX: Final = timedelta(seconds=30)
POLLS_MAX: Final = 1_000  # so that a sweep, which asks for all of them, takes a small part of its interval
STOPS_WAITING_MAX: Final = 1_000  # on one stream, until its agent reads
AGENTLESS_WAIT_MAX: Final = timedelta(minutes=5)  # that a run without an agent is due, until nobody is believed to come

# Logs.
LOG_LINES_PER_CALL_MAX: Final = 1_000
LOG_LINE_BYTES_MAX: Final = 64 * KIB
LOG_CONTAINS_CHARACTERS_MAX: Final = 255
LOG_LEVEL_CHARACTERS_MAX: Final = 64
LOGGER_CHARACTERS_MAX: Final = 255
PRODUCER_CHARACTERS_MAX: Final = 64
LOG_GRACE: Final = timedelta(hours=24)
TAIL_GRACE: Final = timedelta(seconds=60)

# What a process takes on before it says no.
COMMITTER_WAITING_MAX: Final = 10_000
COMMITTER_BATCH_MAX: Final = 500
TRANSACTION_ATTEMPTS_MAX: Final = 5
TICKET_WAIT_MAX: Final = timedelta(seconds=5)
# Creations of many sizes share a commit; beyond this much of parameters and the like, others have waited long enough.
CREATIONS_PER_COMMIT_BYTES_MAX: Final = 4 * MIB
# A writing of log lines may be megabytes large, so fewer of them may wait, or share a commit, than of other calls.
WRITINGS_WAITING_MAX: Final = 1_000
WRITINGS_PER_COMMIT_MAX: Final = 64
KEEPER_BATCH_MAX: Final = 500
WATCHERS_MAX: Final = 10_000
