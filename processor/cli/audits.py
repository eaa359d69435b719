"""`audit`: who did what in an app, and whether that is what was written."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from processor.cli.connection import connected_to_app
from processor.cli.inputs import moment_s
from processor.cli.terminal import EXIT_FAILED, EXIT_OK, Screen, complain, say
from processor.config import Config, load
from processor.errors import ConfigError
from processor.notes import (
    VerifierKey,
    new_private_key,
    private_pem,
    public_key_of,
    read_private_key,
)
from processor.operate.audit_export import export, verify_export
from processor.operate.audits import AuditFilter, Audits, own_key
from processor.operate.proof import AuditReport
from processor.printable import printable
from processor.telemetry import configure_logging


def audit(
    action: str,
    path: Path,
    folder: Path | None,
    which: AuditFilter,
    *,
    limit: int,
    vkey: Path | None,
    format: str | None,
) -> int:
    """Do one action of the verb; EXIT_FAILED where `verify` finds a fault. Raises ProcessorError."""
    if (folder is not None) != (action == "export"):
        wants = "export needs DIR, a folder to write" if action == "export" else f"{action} takes no DIR"
        raise typer.BadParameter(wants, param_hint="DIR")
    if vkey is not None and action not in ("verify", "export"):
        raise typer.BadParameter(f"{action} checks no signature", param_hint="--vkey")
    keys = _keys(vkey)
    screen = Screen(format)
    configure_logging("human", "warning")
    if action == "verify" and path.is_dir():
        return _report(screen, f"the export {path}", verify_export(path, keys), keys)
    config = load(path, needs_secrets=False)
    if action == "keygen":
        return _keygen(config)
    keys = keys or [key for key in [own_key(config)] if key is not None]
    if action == "query":
        return asyncio.run(_query(config, which, limit, screen))
    if action == "tail":
        return asyncio.run(_tail(config, which, screen))
    if action == "verify":
        return asyncio.run(_verify(config, keys, screen))
    assert folder is not None
    return asyncio.run(_export(config, folder, keys))


def filter_of(
    event: str | None,
    actor: str | None,
    route: str | None,
    decision: str | None,
    on: str | None,
    since: str | None,
    until: str | None,
) -> AuditFilter:
    """The entries that these options mean. Raises typer.BadParameter."""
    events = frozenset(filter(None, (name.strip() for name in (event or "").split(","))))
    since_us, until_us = (round(moment_s(text) * 1e6) if text else 0 for text in (since, until))
    return AuditFilter(events, actor or "", route or "", decision or "", on or "", since_us, until_us)


def _keys(vkey: Path | None) -> list[VerifierKey]:
    """The verifier keys in a file, one on each line."""
    if vkey is None:
        return []
    try:
        found = [VerifierKey.read(line) for line in vkey.read_text().splitlines() if line.strip()]
    except OSError as err:
        raise ConfigError("E107", f"cannot be read: {err.strerror}", place=str(vkey)) from err
    except ValueError as err:
        raise ConfigError("E107", str(err), place=str(vkey)) from err
    if not found:
        raise ConfigError("E107", "has no verifier key", place=str(vkey))
    return found


async def _query(config: Config, which: AuditFilter, limit: int, screen: Screen) -> int:
    async with connected_to_app(config, "audit") as broker:
        found: deque[dict[str, Any]] = deque(maxlen=limit)
        async with aclosing(Audits(broker, config).entries(which)) as entries:
            async for entry in entries:
                found.append(entry)
    for entry in found:
        _show(screen, entry)
    screen.flush()
    if not found:
        say("there are no such entries")
    return EXIT_OK


async def _tail(config: Config, which: AuditFilter, screen: Screen) -> int:
    async with (
        connected_to_app(config, "audit") as broker,
        aclosing(Audits(broker, config).follow(which)) as found,
    ):
        async for entry in found:
            _show(screen, entry)
            screen.flush()
    return EXIT_OK


def _show(screen: Screen, entry: dict[str, Any]) -> None:
    if screen.is_json:
        screen.document(entry)
        return
    moment = datetime.fromtimestamp(entry.get("t", 0) / 1e6, UTC).isoformat(" ", "milliseconds")[:23]
    parts = [
        moment,
        f"{entry['chain']} {entry['n']}",
        entry["d"] if entry["d"] == "allow" else f"{entry['d']} {entry.get('code', '')}".rstrip(),
        " ".join(str(entry[name]) for name in ("e", "op", "on") if name in entry),
        entry.get("result", ""),
        f"({entry['rule']})" if "rule" in entry else "",
        "" if entry.get("fate") == "committed" else entry.get("fate", ""),
        entry.get("actor", ""),
    ]
    screen.line(printable("  ".join(str(part) for part in parts if part)))


async def _verify(config: Config, keys: Sequence[VerifierKey], screen: Screen) -> int:
    async with connected_to_app(config, "audit") as broker:
        report = await Audits(broker, config).verify(keys)
    return _report(screen, f"the audit of {config.app}", report, keys)


def _report(screen: Screen, what: str, report: AuditReport, keys: Sequence[VerifierKey]) -> int:
    if screen.is_json:
        screen.document(asdict(report))
        screen.flush()
        return EXIT_FAILED if report.faults else EXIT_OK
    for fault in report.faults:
        screen.problem(f"audit: {fault}")
    signed = f"{report.signed} of them signed" if keys else "no key was given, so signatures were not checked"
    verdict = "is broken" if report.faults else "is what was written"
    screen.line(
        f"{what} {verdict}: {_count(report.entries, 'entry', 'entries')} in "
        f"{_count(report.chains, 'chain')}, {report.sealed:,} of them under "
        f"{_count(report.seals, 'seal')} ({signed})"
    )
    screen.flush()
    return EXIT_FAILED if report.faults else EXIT_OK


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


async def _export(config: Config, folder: Path, keys: Sequence[VerifierKey]) -> int:
    async with connected_to_app(config, "audit") as broker:
        done = await export(Audits(broker, config), config.app, folder, keys)
    say(
        f"{_count(done.entries, 'entry', 'entries')} of {_count(done.chains, 'chain')} are in {folder}; "
        f"its checkpoint is of {done.sealed:,}"
    )
    if not done.sealed:
        complain("there is no seal yet: only the chains can be checked")
    elif not done.is_whole:
        say("the first entries have expired, so there are no tiles")
    return EXIT_OK


def _keygen(config: Config) -> int:
    """Make the key that the configuration names, where there is none, and print its public half."""
    if config.audit.key_file is None:
        what = "audit.key_file is missing: the file that is to have the key"
        raise ConfigError("E105", what, place=str(config.path))
    path = Path(config.audit.key_file)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        try:
            key = read_private_key(path.read_bytes())
        except (OSError, ValueError) as err:
            raise ConfigError("E107", f"is there, and is left as it is: {err}", place=str(path)) from err
        say(f"{path} is there already; this is its public half")
    except OSError as err:
        raise ConfigError("E107", f"cannot be written: {err.strerror}", place=str(path)) from err
    else:
        key = new_private_key()
        with os.fdopen(descriptor, "wb") as file:
            file.write(private_pem(key))
        say(f"wrote {path}; keep it from everyone but the processors. Give this to those who verify:")
    typer.echo(str(VerifierKey(config.audit_origin, public_key_of(key))))
    return EXIT_OK
