"""The contract's comments say the numbers of `penstock.domain.limits`."""

from datetime import timedelta

import pytest

from penstock.domain import limits
from tests.protos.contract import elements

# The limit, where the contract speaks of it, and in which words; {} stands for the number as a person writes it.
REPEATED = [
    ("PARAMETERS_BYTES_MAX", "CreateFlowRunRequest.parameters_json", "at most {} KiB"),
    ("PARAMETERS_BYTES_MAX", "FlowGroup.default_parameters_json", "At most {} KiB"),
    ("PARAMETERS_BYTES_MAX", "UpdateFlowGroupRequest.default_parameters_json", "at most {} KiB"),
    ("CONTEXT_BYTES_MAX", "CreateFlowRunRequest.context_json", "at most {} KiB"),
    ("RESULT_BYTES_MAX", "Succeeded.result_json", "at most {} KiB"),
    ("FAILURE_CHARACTERS_MAX", "Failure.message", "At most {} characters"),
    ("FAILURE_CHARACTERS_MAX", "Failure.traceback", "At most {} characters"),
    ("NAME_CHARACTERS_MAX", "Failure.type", "At most {} characters"),
    ("NAME_CHARACTERS_MAX", "Project.name", "1 to {} characters"),
    ("NAME_CHARACTERS_MAX", "CreateProjectRequest.name", "1 to {} characters"),
    ("NAME_CHARACTERS_MAX", "RegisterFlowRequest.project_name", "1 to {} characters"),
    ("NAME_CHARACTERS_MAX", "RegisterFlowRequest.name", "1 to {} characters"),
    ("NAME_CHARACTERS_MAX", "RegisterFlowRequest.source_digest", "at most {} characters"),
    ("NAME_CHARACTERS_MAX", "FlowName.name", "1 to {} characters"),
    ("NAME_CHARACTERS_MAX", "Parameter.name", "1 to {} characters"),
    ("NAME_CHARACTERS_MAX", "CreateFlowRunRequest.name", "1 to {} characters"),
    ("NAME_CHARACTERS_MAX", "Hello.name", "1 to {} characters"),
    ("NAME_CHARACTERS_MAX", "Hello.version", "At most {} characters"),
    ("DESCRIPTION_CHARACTERS_MAX", "RegisterFlowRequest.description", "At most {} characters"),
    ("DESCRIPTION_CHARACTERS_MAX", "Parameter.description", "At most {} characters"),
    ("REASON_CHARACTERS_MAX", "Release.reason", "At most {} characters"),
    ("REASON_CHARACTERS_MAX", "Stopped.message", "At most {} characters"),
    ("REASON_CHARACTERS_MAX", "CancelFlowRunRequest.reason", "At most {} characters"),
    ("REASON_CHARACTERS_MAX", "Dropped.reason", "1 to {} characters"),
    ("IDEMPOTENCY_KEY_CHARACTERS_MAX", "CreateFlowRunRequest.idempotency_key", "1 to {} characters"),
    ("LABELS_MAX", "Labels.labels", "At most {} labels"),
    ("LABELS_MAX", "RegisterFlowRequest.labels", "At most {} of"),
    ("LABELS_MAX", "Hello.labels", "At most {} of"),
    ("LABEL_CHARACTERS_MAX", "Labels.labels", "1 to {} characters"),
    ("LABEL_CHARACTERS_MAX", "RegisterFlowRequest.labels", "1 to {} characters"),
    ("LABEL_CHARACTERS_MAX", "Hello.labels", "1 to {} characters"),
    ("PARAMETERS_MAX", "RegisterFlowRequest.parameters", "At most {}"),
    ("PARAMETERS_MAX", "Flow.parameters", "At most {}"),
    ("ENTRY_POINT_CHARACTERS_MAX", "EntryPoint.python", "1 to {} characters"),
    ("ARGUMENTS_MAX", "Command.arguments", "1 to {} arguments"),
    ("ENVIRONMENT_VARIABLES_MAX", "RunConfig.environment", "At most {}"),
    ("ENVIRONMENT_VALUE_CHARACTERS_MAX", "RunConfig.environment", "at most {} characters"),
    ("PATH_CHARACTERS_MAX", "RunConfig.working_directory", "At most {} characters"),
    ("PATH_CHARACTERS_MAX", "RunConfig.image", "At most {} characters"),
    ("RESOURCES_MAX", "RunConfig.resources", "At most {}"),
    ("PRIORITY_MAX", "FlowRunPolicy.priority", "0 to {}"),
    ("RETRIES_MAX", "FlowRunPolicy.max_retries", "0 to {}"),
    ("RETRY_DELAY_MAX", "FlowRunPolicy.retry_delay", "0 to {} days"),
    ("LOST_RESTARTS_MAX", "FlowRunPolicy.max_lost_restarts", "0 to {}"),
    ("LOST_RESTARTS_DEFAULT", "FlowRunPolicy.max_lost_restarts", "Default {}"),
    ("PAGE_SIZE_DEFAULT", "ListFlowRunsRequest.page_size", "0 means {}"),
    ("PAGE_SIZE_MAX", "ListFlowRunsRequest.page_size", "more than {}"),
    ("PAGE_SIZE_DEFAULT", "ListLogsRequest.page_size", "0 means {}"),
    ("PAGE_SIZE_MAX", "ListLogsRequest.page_size", "more than {}"),
    ("BATCH_CREATE_MAX", "BatchCreateFlowRunsRequest.requests", "1 to {} items"),
    ("LEASES_PER_CALL_MAX", "AcceptFlowRunsRequest.leases", "1 to {}"),
    ("LEASES_PER_CALL_MAX", "RenewLeasesRequest.leases", "1 to {}"),
    ("LEASES_PER_CALL_MAX", "ReleaseFlowRunsRequest.releases", "1 to {}"),
    ("LEASES_PER_CALL_MAX", "Hello.held", "At most {}"),
    ("SLOTS_MAX", "Hello.slots", "1 to {}"),
    ("RELEASE_DELAY_ASKED_MAX", "Release.delay", "0 to {} day"),
    ("LONG_POLL_MAX", "LeaseFlowRunsRequest.wait", "at most {} s"),
    ("AGENTLESS_WAIT_MAX", "TransitionCause.TRANSITION_CAUSE_LOST", "within {} minutes"),
    ("LOG_LINES_PER_CALL_MAX", "WriteLogsRequest.lines", "At most {}"),
    ("LOG_LINE_BYTES_MAX", "LogLine.text", "At most {} KiB"),
    ("LOG_LINE_BYTES_MAX", "LogLine.data", "At most {} KiB"),
    ("LOG_LEVEL_CHARACTERS_MAX", "LogLine.level_name", "At most {} characters"),
    ("LOGGER_CHARACTERS_MAX", "LogLine.logger", "At most {} characters"),
    ("PRODUCER_CHARACTERS_MAX", "WriteLogsRequest.producer", "1 to {} characters"),
    ("LOG_CONTAINS_CHARACTERS_MAX", "ListLogsRequest.contains", "At most {} characters"),
    ("LOG_GRACE", "LogService.WriteLogs", "until {} hours"),
    ("TAIL_GRACE", "LogService.TailLogs", "or {} s"),
]
SPANS = {
    "days": timedelta(days=1),
    "day": timedelta(days=1),
    "hours": timedelta(hours=1),
    "minutes": timedelta(minutes=1),
    "s": timedelta(seconds=1),
}


@pytest.mark.parametrize(("limit", "place", "words"), REPEATED)
def test_the_contract_says_the_limit(limit: str, place: str, words: str) -> None:
    """The comment on a bounded element names its bound."""
    (comment,) = (each.comment for each in elements() if each.name == place)
    value = getattr(limits, limit)
    unit = words.rsplit(" ", 1)[-1]
    number = value // SPANS[unit] if isinstance(value, timedelta) else value // 1024 if unit == "KiB" else value

    assert words.format(f"{number:,}") in comment


def test_messages_have_room_for_what_they_carry() -> None:
    """What a run, its flow and the largest texts of both may weigh fits into one message."""
    run = limits.PARAMETERS_BYTES_MAX + limits.CONTEXT_BYTES_MAX + limits.RESULT_BYTES_MAX + limits.RUN_CONFIG_BYTES_MAX
    flow = limits.PARAMETERS_BYTES_MAX + limits.ENTRY_POINT_BYTES_MAX + limits.RUN_CONFIG_BYTES_MAX
    # A character takes four bytes at most.
    words = 4 * (
        2 * limits.LABELS_MAX * limits.LABEL_CHARACTERS_MAX
        + limits.DESCRIPTION_CHARACTERS_MAX
        + 2 * limits.FAILURE_CHARACTERS_MAX
        + 20 * limits.NAME_CHARACTERS_MAX
    )

    assert run + flow + words <= limits.OFFERS_BYTES_MAX <= limits.MESSAGE_BYTES_MAX
