"""A reload as operators meet it: what is applied, what is refused, and what the metrics say meanwhile."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import httpx
import pytest

from processor.cli.terminal import EXIT_OK
from processor.embedded import EmbeddedServer
from tests.conftest import waited
from tests.integration.test_cli import COUNT, DEADLINE_S, ROUTE, Process, Start, command, done, route

__all__ = ["command", "done", "route"]

MORE = """\
  second:
    input: {subject: "in.*", create: true}
    runnable: count.py
  third:
    input: {subject: "in.*", create: true}
    runnable: count.py
"""


class Page:
    """The metrics of a running process."""

    def __init__(self, run: Process) -> None:
        run.says("metrics at ")
        found = re.search(r"metrics at (\S+)", run.err)
        assert found
        self._url = found[1]

    def value(self, series: str) -> str | None:
        """The value of one series, None where there is no such series."""
        found = re.search(rf"^{re.escape(series)} (\S+)$", httpx.get(self._url).text, re.MULTILINE)
        return found and found[1]

    def says(self, series: str, value: str | None) -> None:
        waited(lambda: self.value(series) == value, f"{series} is {value}", DEADLINE_S)


OUTDATED = "processor_config_outdated"


@pytest.mark.parametrize("watch", [True, False])
def test_a_file_that_was_cut_off_stops_no_route(
    watch: bool, route: Path, command: Start, nats_server: EmbeddedServer
) -> None:
    """What a reload would remove is named, and all routes go on; the whole file is loaded again."""
    route.write_text(ROUTE + MORE)
    run = command("run", route, *(["--watch"] if watch else []), url=nats_server.url)
    for name in ("r", "second", "third"):
        run.says(f"{name:<12} route started")
    page = Page(run)
    page.says(OUTDATED, "0.0")
    route.write_text(ROUTE)
    if not watch:
        run.process.send_signal(signal.SIGHUP)
    run.says("not reloaded: E359 routes second, third would be removed, of 3 routes.")
    assert "--allow-removal" in run.err
    assert "route stopped" not in run.err
    page.says('processor_reload_refused{reason="E359"}', "1.0")
    page.says(OUTDATED, "1.0")
    route.write_text(ROUTE + MORE + "logs: {level: debug}\n")
    if not watch:
        run.process.send_signal(signal.SIGHUP)
    run.says("reloaded; no route changed")
    page.says('processor_reload_refused{reason="E359"}', None)
    page.says(OUTDATED, "0.0")
    assert run.ends(signal.SIGTERM) == EXIT_OK


@pytest.mark.parametrize("name", ["app.yaml", "count.py"])
def test_a_file_that_ends_amid_a_line_is_not_loaded(
    name: str, route: Path, tmp_path: Path, command: Start, nats_server: EmbeddedServer
) -> None:
    """Also where what is left of it is a configuration, or a Runnable: it would lack what stood behind."""
    sound = {"app.yaml": ROUTE.replace("    runnable: count.py\n", "") + "    runnable: count.py\n"}
    sound["count.py"] = COUNT + "    def on_timer(self, at):\n        return None\n"
    for each, text in sound.items():
        (tmp_path / each).write_text(text)
    run = command("run", route, "--watch", "--allow-removal", url=nats_server.url)
    run.says("route started")
    whole = (tmp_path / name).read_text()
    end = {"app.yaml": "count.py", "count.py": "        return"}[name]
    (tmp_path / name).write_text(whole[: whole.rindex(end) + len(end)])
    run.says(f"not reloaded: {tmp_path / name} E358 the file holds the first ")
    (tmp_path / name).write_text(whole)
    run.says("reloaded; no route changed")
    assert run.ends(signal.SIGTERM) == EXIT_OK


def test_routes_are_removed_where_that_is_allowed(
    route: Path, command: Start, nats_server: EmbeddedServer
) -> None:
    """What stops is said before it stops."""
    route.write_text(ROUTE + MORE)
    run = command("run", route, "--allow-removal", url=nats_server.url)
    for name in ("r", "second", "third"):
        run.says(f"{name:<12} route started")
    page = Page(run)
    route.write_text(ROUTE.replace("output: out", "output: other"))
    run.process.send_signal(signal.SIGHUP)
    run.says("reloaded; started: r")
    said = run.err
    assert said.index("reloading: stops routes second, third for good") < said.index("route stopped")
    assert said.index("reloading: restarts route r") < said.index("route stopped")
    assert page.value('processor_route_stopped{route="second"}') is None
    assert run.ends(signal.SIGTERM) == EXIT_OK


@pytest.mark.parametrize("how", ["SIGHUP", "--watch"])
def test_a_file_that_is_being_written_is_waited_for(
    how: str, route: Path, command: Start, nats_server: EmbeddedServer
) -> None:
    """Whatever asks for the reload: each part of the file would be a configuration by itself, or a fault."""
    run = command("run", route, *(["--watch"] if how == "--watch" else []), url=nats_server.url)
    run.says("r            route started")
    text = ROUTE + MORE
    parts = [text[: len(ROUTE)], text[len(ROUTE) : len(ROUTE) + 40], text[len(ROUTE) + 40 :]]
    with open(route, "w") as file:
        for part in parts:
            file.write(part)
            file.flush()
            os.fsync(file.fileno())
            if how == "SIGHUP":
                run.process.send_signal(signal.SIGHUP)
            pause_until = time.monotonic() + 0.4  # longer than files are looked at, shorter than they rest
            waited(lambda: time.monotonic() > pause_until, "the writer goes on")  # noqa: B023
    run.says("third        route started")
    assert "not reloaded" not in run.err
    assert run.err.count("reloaded; ") == 1
    assert run.ends(signal.SIGTERM) == EXIT_OK


def test_a_version_that_was_refused_is_loaded_once_it_is_whole(
    route: Path, tmp_path: Path, command: Start, nats_server: EmbeddedServer
) -> None:
    """`--watch` notices a file that the refused version lacked, and one that it alone names."""
    run = command("run", route, "--watch", url=nats_server.url)
    run.says("route started")
    route.write_text(ROUTE.replace("count.py", "new.py"))
    run.says("not reloaded: ")
    assert "E107 routes.r.runnable is " in run.err
    (tmp_path / "new.py").write_text("class Runnable:\n    def process(self:\n")
    run.says("new.py:2:16 E201")
    (tmp_path / "new.py").write_text(COUNT)
    run.says("reloaded; started: r")
    assert run.ends(signal.SIGTERM) == EXIT_OK


def test_a_file_that_is_put_back_is_neither_refused_nor_outdated(
    route: Path, command: Start, nats_server: EmbeddedServer
) -> None:
    """Without a reload: what runs is what the file says again."""
    run = command("run", route, url=nats_server.url)
    run.says("route started")
    page = Page(run)
    route.write_text(ROUTE.replace("output:", "outptu:"))
    run.process.send_signal(signal.SIGHUP)
    run.says("not reloaded: ")
    page.says('processor_reload_refused{reason="E103"}', "1.0")
    page.says(OUTDATED, "1.0")
    route.write_text(ROUTE)
    page.says(OUTDATED, "0.0")
    page.says('processor_reload_refused{reason="E103"}', None)
    assert page.value('processor_reloads_total{reason="E103"}') == "1.0"
    assert run.ends(signal.SIGTERM) == EXIT_OK


def test_a_config_map_that_kubernetes_updates_is_noticed(
    tmp_path: Path, command: Start, nats_server: EmbeddedServer
) -> None:
    """Its files are links through `..data`, which is replaced by another link as one step."""
    mount = tmp_path / "mount"

    def publish(version: str, source: str) -> None:
        (mount / version).mkdir(parents=True)
        (mount / version / "app.yaml").write_text(ROUTE)
        (mount / version / "count.py").write_text(source)
        (mount / "..data_tmp").symlink_to(version)
        (mount / "..data_tmp").rename(mount / "..data")

    publish("..2026_01_01", COUNT)
    for name in ("app.yaml", "count.py"):
        (mount / name).symlink_to(f"..data/{name}")
    run = command("run", mount / "app.yaml", "--watch", url=nats_server.url)
    run.says("route started")
    for version, source in (("..2026_01_02", COUNT + "# 2\n"), ("..2026_01_03", COUNT + "# 3\n")):
        before = run.err.count("reloaded; started: r")
        publish(version, source)
        waited(lambda: run.err.count("reloaded; started: r") == before + 1, version, DEADLINE_S)  # noqa: B023
    assert run.ends(signal.SIGTERM) == EXIT_OK


def test_modules_are_followed(
    route: Path, tmp_path: Path, command: Start, nats_server: EmbeddedServer
) -> None:
    """`--watch` loads again when a file of the folder changes, comes or goes, in new folders below it too."""

    def reloaded(count: int) -> None:
        waited(lambda: run.err.count("reloaded; started: r") == count, f"{count} reloads", DEADLINE_S)

    route.write_text(ROUTE.replace("routes:", "modules: lib/\nroutes:"))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/names.py").write_text("N = 'n'\n")
    (tmp_path / "count.py").write_text("from lib.names import N\n" + COUNT)
    run = command("run", route, "--watch", url=nats_server.url)
    run.says("route started")
    page = Page(run)
    (tmp_path / "lib/names.py").write_text("N = 'm'\n")
    reloaded(1)
    (tmp_path / "lib/deep").mkdir()
    (tmp_path / "lib/deep/more.py").write_text("import os\n")
    run.says("lib/deep/more.py:1:1 E203")
    page.says(OUTDATED, "1.0")
    (tmp_path / "lib/deep/more.py").write_text("MORE = 1\n")
    reloaded(2)
    page.says(OUTDATED, "0.0")
    (tmp_path / "lib/deep/more.py").unlink()
    reloaded(3)
    (tmp_path / "lib/names.py").unlink()
    run.says("lib holds no file *.py")
    (tmp_path / "lib/names.py").write_text("N = 'n'\n")
    reloaded(4)
    assert run.ends(signal.SIGTERM) == EXIT_OK
