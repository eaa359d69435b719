"""Consumers as the server lets them be: within its limits, and the error where it refuses one."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from processor.errors import BrokerError
from processor.jetstream.protocol import ApiError
from processor.subject import overlaps

TOO_MANY_CONSUMERS = 10026
NOT_UNIQUE = 10100
_SHOWN_MAX = 3
_INACTIVE_THRESHOLD = 10153  # above what the stream, or the account, lets consumers have
_MAX_ACK_PENDING = 10121

Api = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]


async def create_consumer(
    api: Api, stream: str, config: Mapping[str, Any], *, name: str = ""
) -> dict[str, Any]:
    """Create a consumer and return what the server says of it; `name` is part of the request's subject.

    What is above a limit is lowered to it, so `config` of the answer is what counts. Raises ApiError for all
    that is refused for another reason.
    """
    wanted = dict(config)
    subject = f"CONSUMER.CREATE.{stream}.{name}" if name else f"CONSUMER.CREATE.{stream}"
    while True:
        try:
            return await api(subject, {"stream_name": stream, "config": wanted, "action": "create"})
        except ApiError as err:
            lower = _lowered(wanted, err)
            if lower is None:
                raise
            wanted = lower


def _lowered(config: Mapping[str, Any], err: ApiError) -> dict[str, Any] | None:
    """The configuration within the limit that a refusal names; None where that would not help."""
    if err.err_code == _INACTIVE_THRESHOLD and "inactive_threshold" in config:
        # Without one, the server takes the limit.
        return {key: value for key, value in config.items() if key != "inactive_threshold"}
    limit = _number(err.description)
    if err.err_code == _MAX_ACK_PENDING and limit and config.get("max_ack_pending") != limit:
        return {**config, "max_ack_pending": limit}
    return None


def _number(description: str) -> int | None:
    found = re.search(r"limit of (\d+)", description)
    return int(found[1]) if found else None


def others_of(
    consumers: Iterable[Mapping[str, Any]], subjects: Sequence[str], reader: str
) -> list[dict[str, Any]]:
    """Those of a stream's consumers that take one of these subjects, and are not of readers of that name."""
    return [
        dict(consumer)
        for consumer in consumers
        if (consumer["config"].get("metadata") or {}).get("processor.reader") != reader
        and any(overlaps(taken, subject) for taken in _subjects_of(consumer) for subject in subjects)
    ]


def refusal(
    stream: str, subjects: Sequence[str], err: ApiError, others: Sequence[Mapping[str, Any]]
) -> BrokerError:
    """The error where the server does not let us read; `others` take the same subjects."""
    found = [f"consumer {each['name']} takes {', '.join(_subjects_of(each))}" for each in others[:_SHOWN_MAX]]
    there = f": {'; '.join(found)}" if found and err.err_code == NOT_UNIQUE else ""
    remedy = {
        NOT_UNIQUE: "A work queue has one consumer for each subject: remove that one, or let the route read "
        "others.",
        TOO_MANY_CONSUMERS: "Raise max_consumers of the stream or the account, or remove a consumer.",
    }.get(err.err_code, "Change the stream, or what limits its consumers.")
    return BrokerError(
        "E408",
        f"the server refuses a consumer of {', '.join(subjects)} on stream {stream}: {err.description} "
        f"({err.err_code}){there}",
        remedy=remedy,
    )


def expected_refusal(
    info: Mapping[str, Any], subjects: Sequence[str], reader: str, consumers: Sequence[Mapping[str, Any]]
) -> BrokerError | None:
    """The error of a new consumer of these subjects, by the settings and the consumers of the stream."""
    config = info["config"]
    others = others_of(consumers, subjects, reader)
    if config.get("retention") == "workqueue" and others:
        said = {"err_code": NOT_UNIQUE, "description": "filtered consumer not unique on workqueue stream"}
    elif 0 < config.get("max_consumers", -1) <= len(consumers):
        if any(str(consumer["name"]).startswith(f"{reader}-") for consumer in consumers):
            return None  # ours make room for their successors
        said = {"err_code": TOO_MANY_CONSUMERS, "description": "maximum consumers limit reached"}
    else:
        return None
    return refusal(config["name"], subjects, ApiError("", said), others)


def _subjects_of(consumer: Mapping[str, Any]) -> list[str]:
    config = consumer["config"]
    return config.get("filter_subjects") or [config.get("filter_subject") or ">"]
