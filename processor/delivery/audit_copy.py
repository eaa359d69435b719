"""The stream `AUDIT_<app>`: a copy of all audit records that outlasts the app's own stream.

It takes nothing from publishers, only copies, and lets nobody delete or purge. That alone does not make it
trustworthy (an update of its limits drops what it holds, unasked): `processor audit verify` does.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from processor.config import Config
from processor.context.subjects import app_stream, audit_stream, audit_subject
from processor.errors import BrokerError
from processor.jetstream import NS, ApiError, Broker

log = logging.getLogger("processor")

# Routes that start together, and the notary, would each make it.
_preparing: weakref.WeakKeyDictionary[Broker, asyncio.Lock] = weakref.WeakKeyDictionary()
_LIMITS = ("max_msgs", "max_bytes", "max_msgs_per_subject")


def keeps_audit(config: Config) -> bool:
    """Whether the audit has a stream of our own."""
    return config.audit_level != "off" and config.audit.stream == "own"


def audit_stream_config(config: Config) -> dict[str, Any]:
    """The stream of an app's audit, as it is made."""
    return {
        "name": audit_stream(config.app),
        "storage": config.nats.storage,
        "num_replicas": config.nats.replicas,
        "retention": "limits",
        "discard": "old",
        "max_age": round(config.audit.keep * NS),
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": True,
        "sources": [{"name": app_stream(config.app), "filter_subject": audit_subject(config.app, ">")}],
        "metadata": {"processor.app": config.app},
    }


async def prepare_audit(broker: Broker, config: Config) -> None:
    """Return when the audit of `config` is kept, where it is to be kept by us.

    Raises BrokerError E414 where the stream cannot be made, or would lose what it copies.
    """
    if not keeps_audit(config):
        return
    async with _preparing.setdefault(broker, asyncio.Lock()):
        await _prepare(broker, config, audit_stream_config(config))


async def _prepare(broker: Broker, config: Config, wanted: Mapping[str, Any]) -> None:
    info = await broker.stream(wanted["name"])
    if info is None:
        try:
            await broker.create_stream(wanted)
            log.info("created stream %s", wanted["name"])
        except BrokerError as err:
            info = await broker.stream(wanted["name"])  # another processor may have been faster
            if info is None:
                why = err.__cause__.description if isinstance(err.__cause__, ApiError) else err.what
                raise BrokerError(
                    "E414",
                    f"stream {wanted['name']} cannot be made: {why}",
                    remedy="No route runs without its audit. Make room, or let others make the stream and set"
                    " audit.stream: external.",
                ) from err
    if info is None:
        return
    check_audit_stream(info["config"], wanted)
    if info["config"].get("max_age", 0) != wanted["max_age"]:
        await broker.update_stream({**info["config"], "max_age": wanted["max_age"]})
        log.warning(
            "stream %s keeps records for %g days from now on", wanted["name"], config.audit.keep / 86400
        )


def check_audit_stream(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise BrokerError E414 where a stream that is there does not keep all that it should copy."""
    if faults := [*_faults(found, wanted)]:
        raise BrokerError(
            "E414",
            f"stream {wanted['name']} {', and '.join(faults)}",
            remedy="Change it with `nats stream edit`; no route runs until then.",
        )


def _faults(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a stream that is there from keeping all that it copies."""
    [source] = wanted["sources"]
    sources = found.get("sources") or []
    if not any(_is_copied(each, source) for each in sources):
        yield f"does not copy {source['filter_subject']} from {source['name']}"
    if found.get("subjects"):
        yield f"takes {', '.join(found['subjects'])[:80]} from anyone"
    for limit in _LIMITS:
        if found.get(limit, -1) > 0:
            yield f"has {limit} {found[limit]}, which drops the oldest records"
    if found.get("retention", "limits") != "limits":
        yield f"has retention {found['retention']}, which deletes what was read"
    for promise in ("deny_delete", "deny_purge", "allow_direct"):
        if not found.get(promise):
            yield f"is without {promise}"


def _is_copied(source: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    transforms = source.get("subject_transforms") or []
    return source.get("name") == wanted["name"] and (
        source.get("filter_subject") == wanted["filter_subject"]
        or any(each.get("src") == wanted["filter_subject"] == each.get("dest") for each in transforms)
    )
