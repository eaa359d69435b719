"""The leak check of `conftest.py` can fail: each test here runs a small suite that leaks one thing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
ROOT = CONFTEST.parent.parent


def run_suite(folder: Path, bodies: dict[str, str]) -> str:
    """Run tests with these bodies under a copy of our conftest; the text that pytest printed."""
    # The grace is for what takes a moment to end; nothing in these suites ever ends.
    source = CONFTEST.read_text().replace("LEAK_GRACE_S = 3.0", "LEAK_GRACE_S = 0.2")
    (folder / "conftest.py").write_text(source)
    for name, body in bodies.items():
        (folder / f"test_{name}.py").write_text(body)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(folder)]
    wide = {**os.environ, "COLUMNS": "1000"}  # pytest's summary cuts its lines at the terminal's width
    result = subprocess.run(
        command, cwd=ROOT, env=wide, capture_output=True, text=True, timeout=60, check=False
    )
    return result.stdout + result.stderr


LEAKS = {
    "process": (
        "import subprocess\nkept = []\ndef test_it():\n    kept.append(subprocess.Popen(['sleep', '60']))\n",
        "process sleep",
    ),
    "orphan": (
        "import subprocess\n"
        "def test_it():\n    subprocess.run(['sh', '-c', 'sleep 60 >/dev/null 2>&1 &'], check=True)\n",
        "process sleep",
    ),
    "file": ("kept = []\ndef test_it():\n    kept.append(open(__file__))\n", "open file"),
    "thread": (
        "import threading\n"
        "def test_it():\n"
        "    threading.Thread(target=threading.Event().wait, name='astray', daemon=True).start()\n",
        "thread astray",
    ),
    "task": (
        "import asyncio\nkept = []\n"
        "async def test_it():\n    kept.append(asyncio.create_task(asyncio.Event().wait()))\n",
        "asyncio task",
    ),
    "task_in_run_async": (
        "import asyncio\n"
        "def test_it(run_async):\n"
        "    async def main():\n        kept.append(asyncio.create_task(asyncio.Event().wait()))\n"
        "    kept = []\n    run_async(main())\n",
        "asyncio task",
    ),
}


@pytest.fixture(scope="module")
def leaky_suite(tmp_path_factory: pytest.TempPathFactory) -> str:
    bodies = {name: body for name, (body, _) in LEAKS.items()}
    return run_suite(tmp_path_factory.mktemp("leaky"), bodies)


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_fails_its_test_and_is_named(name: str, leaky_suite: str) -> None:
    """A test that leaves something behind fails, and the failure says what."""
    failures = [line for line in leaky_suite.splitlines() if f"test_{name}.py::" in line]
    assert any(f"left behind: {LEAKS[name][1]}" in line for line in failures), leaky_suite


def test_a_clean_test_passes(tmp_path: Path) -> None:
    """Everything that is closed again, a real server included, is no leak."""
    body = (
        "import asyncio\n"
        "async def test_it(nats_server, wait_until):\n"
        "    reader, writer = await asyncio.open_connection('127.0.0.1', nats_server.port)\n"
        "    assert (await reader.readline()).startswith(b'INFO')\n"
        "    writer.close()\n    await writer.wait_closed()\n"
    )
    assert "1 passed" in run_suite(tmp_path, {"clean": body})


def test_waiting_in_vain_fails_with_its_sentence(tmp_path: Path) -> None:
    """A wait that ends at its deadline fails the test and says what it waited for."""
    body = (
        "def test_it(wait_until):\n    wait_until(lambda: False, 'the moon is full', 0.05)\n"
        "async def test_too(wait_until):\n    await wait_until(lambda: False, 'the sun is full', 0.05)\n"
    )
    printed = run_suite(tmp_path, {"vain": body})
    assert "not within 0.05 s: the moon is full" in printed
    assert "not within 0.05 s: the sun is full" in printed


def test_a_missing_server_says_how_to_install_it(tmp_path: Path) -> None:
    """Without a nats-server program, a test that needs one fails with the install command."""
    body = (
        "import importlib.metadata, sysconfig, pytest\n"
        "@pytest.fixture(autouse=True)\n"
        "def nothing_installed(monkeypatch, tmp_path):\n"
        "    def missing(name):\n        raise importlib.metadata.PackageNotFoundError(name)\n"
        "    monkeypatch.setattr(importlib.metadata, 'files', missing)\n"
        "    monkeypatch.setattr(sysconfig, 'get_path', lambda name: str(tmp_path))\n"
        "    monkeypatch.setenv('PATH', str(tmp_path))\n"
        "def test_it(nothing_installed, nats_server):\n    pass\n"
    )
    printed = run_suite(tmp_path, {"missing": body})
    assert "E411 the nats-server program is not installed" in printed
    assert "pip install 'processor[embedded]'" in printed
    assert "1 error" in printed
