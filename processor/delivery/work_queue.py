"""The stream `<app>-work`: executions for external workers, copied from the app's stream as they come.

It takes nothing from publishers: only a commit of the app puts an execution there, and it is gone when a
worker has acknowledged it, or after a week.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from processor.config import Config
from processor.context.subjects import GraphSubjects, app_stream, committed_subject
from processor.errors import BrokerError
from processor.jetstream import NS, Broker

log = logging.getLogger("processor")

_KEPT_S = 7 * 86_400


def work_stream_config(config: Config) -> dict[str, Any]:
    """The stream of an app's executions for external workers, as it is made."""
    subjects = GraphSubjects(config.app)
    copied = {
        "src": committed_subject(config.app, subjects.work_pattern),
        "dest": subjects.work_pattern.replace("*", "{{wildcard(1)}}", 1).replace("*", "{{wildcard(2)}}", 1),
    }
    return {
        "name": subjects.work_stream,
        "storage": config.nats.storage,
        "num_replicas": config.nats.replicas,
        "retention": "workqueue",
        "discard": "old",
        "max_age": _KEPT_S * NS,
        "allow_direct": True,
        "sources": [{"name": app_stream(config.app), "subject_transforms": [copied]}],
        "metadata": {"processor.app": config.app},
    }


async def prepare_work_queue(broker: Broker, config: Config) -> None:
    """Return when the stream is there. Raises BrokerError E408 where another one has its name."""
    wanted = work_stream_config(config)
    info = await broker.stream(wanted["name"])
    if info is None:
        try:
            await broker.create_stream(wanted)
            log.info("created stream %s", wanted["name"])
            return
        except BrokerError:
            info = await broker.stream(wanted["name"])  # another processor may have been faster
            if info is None:
                raise
    _check(info["config"], wanted)


def _check(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    [source] = wanted["sources"]
    [transform] = source["subject_transforms"]
    copied = [
        each
        for one in found.get("sources") or []
        if one["name"] == source["name"]
        for each in one.get("subject_transforms") or []
    ]
    if found.get("retention") == wanted["retention"] and transform in copied:
        return
    raise BrokerError(
        "E408",
        f"stream {wanted['name']} is not a work queue that copies {transform['src']} from {source['name']}",
        remedy="Remove it, or rename it: external workers take executions from it.",
    )
