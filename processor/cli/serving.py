"""`run` and `dev`: one service in this process, under signals, until it is told to stop.

SIGTERM and SIGINT drain: nothing more is taken, what is in hand is settled, and the exit code says whether
that was done within `drain_s`. A second one ends the process at once; what was not settled is done again by
the next start. SIGHUP, or with `--watch` a changed file, loads the configuration again.

What must stay true: a configuration that cannot be loaded or compiled changes nothing but the log, and a
stop never interrupts a reload half-way.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from processor.cli.connection import at, embedded_server, tell_address
from processor.cli.terminal import EXIT_DIRTY, EXIT_OK
from processor.config import Config, listing, load
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError, Fault, Faults, ProcessorError
from processor.health import Health
from processor.service import Service
from processor.telemetry import Telemetry, configure_logging

log = logging.getLogger("processor")

Stamp = tuple[int, ...]

_POLL_S = 0.25
_OUTDATED_S = 2.0
# How long files must have been left alone to be loaded: an editor or a copy may pause while it writes.
_SETTLED_S = 0.75
_PATIENCE_S = 10.0


class Companion(Protocol):
    """What runs beside a service and lives a little longer than it."""

    async def open(self, config: Config, server: EmbeddedServer | None, metrics_url: str) -> None:
        """Be ready for what the service will do; called before the service starts."""

    async def run(self) -> None:
        """Run until cancelled, which happens after the service has stopped; a failure stops the service."""

    async def close(self) -> None:
        """Finish."""


@dataclass(frozen=True, slots=True)
class Reloading:
    """When a configuration is loaded again, and whether that may remove routes."""

    is_watching: bool = False
    may_remove: bool = False


def serve(
    path: Path,
    *,
    reloading: Reloading,
    adapt: Callable[[Config], Config] = lambda config: config,
    companion: Companion | None = None,
    is_free_port_fine: bool = False,
) -> int:
    """Run the configuration at `path` until a signal; the exit code.

    `adapt` changes the configuration each time it is loaded. Raises Faults, and ProcessorError for what makes
    a start impossible.
    """
    first = adapt(load(path))
    configure_logging(first.logs.format, first.logs.level)
    with embedded_server(first.nats) as server:
        url = server.url if server else ""

        def adapted(config: Config) -> Config:
            return config.model_copy(update={"nats": at(config.nats, url)})

        # Messages are many small objects without cycles: to look for some after every 700 of them is a tenth
        # of what they cost.
        gc.set_threshold(20_000, 20, 50)
        serving = _Serving(adapted(first), lambda: adapted(adapt(load(path))), server, companion, reloading)
        try:
            return asyncio.run(serving.main(is_free_port_fine=is_free_port_fine))
        except KeyboardInterrupt:  # before or after the loop, which has handlers of its own
            return EXIT_OK


class _Serving:
    def __init__(
        self,
        config: Config,
        loaded: Callable[[], Config],
        server: EmbeddedServer | None,
        companion: Companion | None,
        reloading: Reloading,
    ) -> None:
        self._config = config
        self._loaded = loaded
        self._server = server
        self._companion = companion
        self._reloading = reloading
        self._telemetry = Telemetry()
        self._service = Service(config, self._telemetry)
        self._contents = _contents(config.files)  # of what runs
        self._files = frozenset(config.files)  # of what runs, and of what was read last
        self._stamps = _stamps(self._files)  # when a configuration was read last
        self._is_refused = False
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()

    async def main(self, *, is_free_port_fine: bool) -> int:
        """Start, run until a signal, stop; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number.name)
        loop.add_signal_handler(signal.SIGHUP, self._changed.set)
        health = await self._open_health(is_free_port_fine=is_free_port_fine)
        beside: list[asyncio.Task[None]] = []
        try:
            if await self._unless_stopped(self._start(health.url if health else "")):
                beside = [asyncio.create_task(each) for each in self._beside()]
                await self._until_stopped(beside)
        finally:
            is_clean = await self._service.stop()
            await _end(beside)
            if self._companion is not None:
                await self._companion.close()
            if health is not None:
                await health.stop()
        return EXIT_OK if is_clean else EXIT_DIRTY

    async def _open_health(self, *, is_free_port_fine: bool) -> Health | None:
        http = self._config.http
        if http is None:
            return None
        health = Health(self._telemetry, host=http.host, port=http.port)
        try:
            await health.start()
        except ProcessorError as err:
            if not is_free_port_fine:
                raise
            log.info("%s is in use; metrics take a free port (%s)", http.port, err.code)
            health = Health(self._telemetry, host=http.host, port=0)
            await health.start()
        log.info("metrics at %s/metrics", health.url)
        return health

    async def _start(self, metrics_url: str) -> None:
        if self._companion is not None:
            await self._companion.open(self._config, self._server, metrics_url)
        await self._service.start()

    def _beside(self) -> Iterable[Coroutine[Any, Any, None]]:
        if self._companion is not None:
            yield self._companion.run()
        if self._server is not None:
            yield self._keep_alive(self._server)
        yield self._watch()

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether `work` was done; a signal cancels it."""
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return True
            return False
        finally:
            await _end([working, stopping])

    async def _until_stopped(self, beside: Iterable[asyncio.Task[None]]) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while not stopping.done():
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait({stopping, changed, *beside}, return_when=asyncio.FIRST_COMPLETED)
                if changed.done():
                    self._changed.clear()
                    await self._reload()
                await _end([changed])
                for task in beside:
                    if task.done():
                        task.result()
                        return
        finally:
            await _end([stopping])

    def _stop(self, name: str) -> None:
        if not self._stopping.is_set():
            log.info("%s: stopping; a second one ends at once", name)
            self._stopping.set()
            return
        log.warning("%s again: ending at once; what is not settled is done again by the next start", name)
        if self._server is not None:
            self._server.kill()
            self._server.stop()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(EXIT_DIRTY)

    async def _reload(self) -> None:
        self._stamps = await self._settled()
        self._changed.clear()  # whatever came until here is about what is read now
        while not self._stopping.is_set():
            config: Config | None = None
            found: Sequence[Fault | ProcessorError] = ()
            try:
                # In a thread: messages in flight must not wait for a parser.
                config = await asyncio.to_thread(self._loaded)
            except (Faults, ProcessorError) as err:
                found = err.faults if isinstance(err, Faults) else [err]
            named = config.files if config else [Path(each.file) for each in found if isinstance(each, Fault)]
            contents = await asyncio.to_thread(_contents, named)
            self._files = frozenset([*self._config.files, *named])
            later = _stamps(self._files)
            if any(self._stamps.get(file) != later[file] for file in self._files):
                self._stamps = await self._settled()  # written while it was read, or not looked at before
                continue
            cut_off = [file for file in named if _is_cut_off(contents[file], self._contents.get(file, b""))]
            if config is None:
                self._refuse(found)
            elif cut_off:
                self._refuse([_cut_off(file, self._contents[file], contents[file]) for file in cut_off])
            else:
                await self._apply(config, contents)
            return

    async def _apply(self, config: Config, contents: dict[Path, bytes]) -> None:
        try:
            started = await self._service.reload(config, may_remove=self._reloading.may_remove)
        except (Faults, ProcessorError) as err:
            self._refuse(err.faults if isinstance(err, Faults) else [err])
            return
        self._config, self._contents, self._is_refused = config, contents, False
        self._files = frozenset(config.files)
        configure_logging(config.logs.format, config.logs.level)
        self._telemetry.reloaded("applied")
        self._telemetry.outdated(False)
        log.info("reloaded; %s", f"started: {', '.join(started)}" if started else "no route changed")

    def _refuse(self, found: Sequence[Fault | ProcessorError]) -> None:
        self._is_refused = True
        for each in found:
            log.error("not reloaded: %s", each, extra={"code": each.code})
        self._telemetry.reloaded(found[0].code)

    async def _settled(self) -> dict[Path, Stamp]:
        """The stamps of the files, once all were left alone for a moment, or a stop is wanted."""
        stamps = _stamps(self._files)
        began_s = since_s = time.monotonic()
        is_said = False
        while not self._stopping.is_set() and time.monotonic() - since_s < _SETTLED_S:
            await asyncio.sleep(_POLL_S)
            later = _stamps(self._files)
            if any(later[file] != stamps[file] for file in self._files):
                since_s = time.monotonic()
            stamps = later
            if since_s - began_s > _PATIENCE_S and not is_said:
                log.warning("the reload waits: files of the configuration are still being written")
                is_said = True
        return stamps

    async def _watch(self) -> None:
        """Tell whether the files are those that were loaded, and with `--watch` ask for a reload if not."""
        self._telemetry.outdated(False)
        seen = self._stamps
        while True:
            await asyncio.sleep(_POLL_S if self._reloading.is_watching else _OUTDATED_S)
            now = _stamps(self._files)
            if now != seen:
                seen = now
                contents = await asyncio.to_thread(_contents, self._config.files)
                self._telemetry.outdated(contents != self._contents)
            # What a refused version lacks is noticed by the folder in which it appears.
            looked_at = now if self._is_refused else self._files
            if self._reloading.is_watching and any(
                self._stamps.get(file) != now.get(file) for file in looked_at
            ):
                self._changed.set()

    async def _keep_alive(self, server: EmbeddedServer) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            if not server.alive:
                log.error("the embedded NATS server has ended; starting it again")
                try:
                    await asyncio.to_thread(server.restart)
                    tell_address(server)
                except BrokerError as err:
                    log.error("%s", err, extra={"code": err.code})


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    listed = list(tasks)
    for task in listed:
        task.cancel()
    await asyncio.gather(*listed, return_exceptions=True)


def _stamps(files: Iterable[Path]) -> dict[Path, Stamp]:
    """What tells that a file or its folder was changed or replaced; empty for one that is not there.

    Of a folder that is among `files` it is the names of the modules in it.
    """
    listed = set(files)
    stamps: dict[Path, Stamp] = {}
    for path in [each for file in listed for each in (file, file.parent)]:
        try:
            found = path.stat()
            stamps[path] = (found.st_mtime_ns, found.st_size, found.st_ino)
            if path in listed and stat.S_ISDIR(found.st_mode):
                stamps[path] = (int.from_bytes(hashlib.sha256(listing(path)).digest()),)
        except OSError:
            stamps[path] = ()
    return stamps


def _contents(files: Iterable[Path]) -> dict[Path, bytes]:
    """What files hold; nothing for those that cannot be read. Secrets are among them.

    A folder holds the names of the modules in it.
    """
    contents: dict[Path, bytes] = {}
    for file in files:
        try:
            contents[file] = listing(file) if file.is_dir() else file.read_bytes()
        except OSError:
            contents[file] = b""
    return contents


def _is_cut_off(new: bytes, old: bytes) -> bool:
    """Whether `new` is what is left of `old` if a writer stopped amid a line.

    A person who removes the end of a file leaves the last line whole.
    """
    return len(new) < len(old) and old.startswith(new) and old.endswith(b"\n") and not new.endswith(b"\n")


def _cut_off(file: Path, old: bytes, new: bytes) -> ProcessorError:
    return ProcessorError(
        "E358",
        f"the file holds the first {len(new):,} of {len(old):,} bytes that were loaded, and ends amid a line",
        place=str(file),
        remedy="Write all of it; if that is all of it, end its last line, or restart the processor.",
    )
