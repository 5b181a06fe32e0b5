"""PROCESS: QueueService and OperatorService."""
