"""The exospherehost SDK by the name that its programs import: nodes, their Runtime, and the StateManager."""

from _processor_compat import refuse_beside

refuse_beside("exospherehost")

from processor.graphs.client import (  # noqa: E402
    CronTrigger,
    GraphNodeModel,
    RetryPolicyModel,
    RetryStrategyEnum,
    StateManager,
    StoreConfigModel,
    TriggerState,
    UnitesModel,
    UnitesStrategyEnum,
)
from processor.graphs.nodes import BaseNode, PruneSignal, ReQueueAfterSignal  # noqa: E402
from processor.graphs.runtime import Runtime  # noqa: E402

__all__ = [
    "BaseNode",
    "CronTrigger",
    "GraphNodeModel",
    "PruneSignal",
    "ReQueueAfterSignal",
    "RetryPolicyModel",
    "RetryStrategyEnum",
    "Runtime",
    "StateManager",
    "StoreConfigModel",
    "TriggerState",
    "UnitesModel",
    "UnitesStrategyEnum",
]
