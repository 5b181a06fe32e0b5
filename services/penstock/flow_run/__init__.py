"""PROCESS: FlowRunService and FlowService."""
