"""Routes in plain Python: each has its packages, also over reloads, and says where it cannot have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from processor.errors import Faults
from processor.sandbox.languages import Footing
from tests.running import Start, pretend_jail

ROUTES = """
p:
  input: {{subject: in.p, create: true}}
  runnable: p.py
  language: python
  packages: [{package}]
  output: out.p
d:
  input: {{subject: in.d, create: true}}
  runnable: d.py
  output: out.d
"""
DIALECT = """
class Runnable:
    def process(self, queries):
        return queries
"""
PLAIN = """
import os, sys, {package}

class Runnable:
    def process(self, queries):
        return [{{"said": {package}.WORD, "read": os.environ.get("HOME")}}]
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path, with the package `shop` in it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "shop.py").write_text("WORD = 'shop'")
    return tmp_path


async def test_a_reload_changes_the_packages_of_a_route(processor: Start, packages: Path) -> None:
    """The route is started anew with what it names now; the process with the old packages ends."""
    async with processor(ROUTES.format(package="shop"), p=PLAIN.format(package="shop"), d=DIALECT) as running:
        await running.publish("in.p", {})
        assert await running.documents("out.p", 1) == [{"said": "shop", "read": None}]
        (packages / "desk.py").write_text("WORD = 'desk'")
        text = running.path.read_text()
        running.path.write_text(text.replace("[shop]", "[desk]"))
        assert await running.reload(p=PLAIN.format(package="desk")) == ["p"]
        await running.publish("in.p", {})
        assert (await running.documents("out.p", 2))[1] == {"said": "desk", "read": None}
        zygote = running.service._zygote
        assert zygote is not None
        assert set(zygote._cells) == {Footing("restricted"), Footing("python", ("desk",))}
        running.path.write_text(text.replace("[shop]", "[dsk]"))
        with pytest.raises(Faults, match=r"config.yaml:\d+:\d+ E505 routes.p.packages.0: .*'dsk'"):
            await running.reload()
        await running.publish("in.p", {})
        assert len(await running.documents("out.p", 3)) == 3


async def test_a_route_without_its_package_does_not_start_and_the_others_do(
    processor: Start, packages: Path
) -> None:
    """Readiness names the package; a reload tries again, after it was installed."""
    async with processor(
        ROUTES.format(package="chair"), p=PLAIN.format(package="chair"), d=DIALECT
    ) as running:
        await running.publish("in.d", {"a": 1})
        assert await running.documents("out.d", 1) == [{"a": 1}]
        why = running.telemetry.readiness.blocks["route p"]
        assert "E505 routes.p.packages.0: the package 'chair' is not installed beside Processor" in why
        assert list(running.telemetry.readiness.blocks) == ["route p"]
        (packages / "chair.py").write_text("WORD = 'chair'")
        assert await running.reload() == ["p"]
        await running.until_ready()
        await running.publish("in.p", {})
        assert (await running.documents("out.p", 1))[0]["said"] == "chair"


async def test_a_weak_jail_runs_the_dialect_only(
    processor: Start, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below `confined` the route in plain Python is refused with the layers that are off (E504)."""
    pretend_jail(monkeypatch, {"rlimits": "on", "no_new_privs": "on", "seccomp": "off(EPERM)"})
    top = "sandbox: {min_level: process}"
    async with processor(
        ROUTES.format(package="shop"), top, p=PLAIN.format(package="shop"), d=DIALECT
    ) as running:
        await running.publish("in.d", {"a": 1})
        assert await running.documents("out.d", 1) == [{"a": 1}]
        why = running.telemetry.readiness.blocks["route p"]
        assert "E504 routes.p.language: plain Python needs a jail of level confined" in why
        assert "seccomp: off(EPERM)" in why
