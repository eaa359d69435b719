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
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Protocol

from processor.cli.connection import at, embedded_server, tell_address
from processor.cli.terminal import EXIT_DIRTY, EXIT_OK
from processor.config import Config, load
from processor.embedded import EmbeddedServer
from processor.errors import BrokerError, Faults, ProcessorError
from processor.service import Service
from processor.telemetry import Health, Telemetry, configure_logging

log = logging.getLogger("processor")

_POLL_S = 0.25


class Companion(Protocol):
    """What runs beside a service and lives a little longer than it."""

    async def open(self, config: Config, server: EmbeddedServer | None, metrics_url: str) -> None:
        """Be ready for what the service will do; called before the service starts."""

    async def run(self) -> None:
        """Run until cancelled, which happens after the service has stopped; a failure stops the service."""

    async def close(self) -> None:
        """Finish."""


def serve(
    path: Path,
    *,
    watch: bool = False,
    adapt: Callable[[Config], Config] = lambda config: config,
    companion: Companion | None = None,
    is_free_port_fine: bool = False,
) -> int:
    """Run the configuration at `path` until a signal; the exit code.

    `adapt` changes the configuration each time it is loaded. Raises Faults, and ProcessorError for what makes
    a start impossible.
    """
    first = load(path)
    configure_logging(first.logs.format, first.logs.level)
    with embedded_server(first.nats) as server:
        url = server.url if server else ""

        def adapted(config: Config) -> Config:
            return adapt(config.model_copy(update={"nats": at(config.nats, url)}))

        # Messages are many small objects without cycles: to look for some after every 700 of them is a tenth
        # of what they cost.
        gc.set_threshold(20_000, 20, 50)
        serving = _Serving(adapted(first), lambda: adapted(load(path)), server, companion)
        try:
            return asyncio.run(serving.main(watch=watch, is_free_port_fine=is_free_port_fine))
        except KeyboardInterrupt:  # before or after the loop, which has handlers of its own
            return EXIT_OK


class _Serving:
    def __init__(
        self,
        config: Config,
        loaded: Callable[[], Config],
        server: EmbeddedServer | None,
        companion: Companion | None,
    ) -> None:
        self._config = config
        self._loaded = loaded
        self._server = server
        self._companion = companion
        self._telemetry = Telemetry()
        self._service = Service(config, self._telemetry)
        self._stamps = _stamps(config.files)
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()

    async def main(self, *, watch: bool, is_free_port_fine: bool) -> int:
        """Start, run until a signal, stop; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number.name)
        loop.add_signal_handler(signal.SIGHUP, self._changed.set)
        health = await self._open_health(is_free_port_fine=is_free_port_fine)
        beside: list[asyncio.Task[None]] = []
        try:
            if await self._unless_stopped(self._start(health.url if health else "")):
                beside = [asyncio.create_task(each) for each in self._beside(watch)]
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

    def _beside(self, watch: bool) -> Iterable[Coroutine[Any, Any, None]]:
        if self._companion is not None:
            yield self._companion.run()
        if self._server is not None:
            yield self._keep_alive(self._server)
        if watch:
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
        try:
            # In a thread: messages in flight must not wait for a parser.
            config = await asyncio.to_thread(self._loaded)
            started = await self._service.reload(config)
        except (Faults, ProcessorError) as err:
            found = err.faults if isinstance(err, Faults) else [err]
            for each in found:
                log.error("not reloaded: %s", each, extra={"code": each.code})
            self._telemetry.reloaded(found[0].code)
            return
        self._config = config
        configure_logging(config.logs.format, config.logs.level)
        self._telemetry.reloaded("applied")
        log.info("reloaded; %s", f"started anew: {', '.join(started)}" if started else "no route changed")

    async def _watch(self) -> None:
        """Ask for a reload when a file of the configuration has changed and is left alone again."""
        while True:
            await asyncio.sleep(_POLL_S)
            now = _stamps(self._config.files)
            if all(self._stamps.get(file, stamp) == stamp for file, stamp in now.items()):
                self._stamps = now
                continue
            while True:
                await asyncio.sleep(_POLL_S)
                later = _stamps(self._config.files)
                if later == now:
                    break
                now = later
            self._stamps = now
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


def _stamps(files: Iterable[Path]) -> dict[Path, tuple[int, ...]]:
    """What tells that a file was written or replaced; empty for one that is not there."""
    stamps: dict[Path, tuple[int, ...]] = {}
    for file in files:
        try:
            found = file.stat()
            stamps[file] = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            stamps[file] = ()
    return stamps
