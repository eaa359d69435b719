"""The wheel that answers to the names of other SDKs: their examples run with it as they were written.

`BUILDER`, `POLICY`, `BATCH` and `BUDGET` are such programs to the letter, but for the imports that the last
two leave out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.guide.test_07_seed_examples import BUILDER, PRICES, QUERY, stock_url

__all__ = ["stock_url"]

ROOT = Path(__file__).parent.parent.parent
# Kinds of capabilities are those of Processor.
POLICY_FILE = """\
[[capability]]
name = "example_tool"
resource = "*"
methods = ["execute"]
expires_minutes = 60
"""
POLICY = """\
from authority_nanos import AuthorityKernel

with AuthorityKernel() as ak:
    ak.load_policy("policy.toml")
    # Use policy-controlled operations
"""
BATCH = """\
with AuthorityKernel() as ak:
    handles = []

    # Allocate many objects
    for i in range(100):
        handle = ak.alloc(f"item_{i}", json.dumps({"id": i}).encode())
        handles.append(handle)

    # Process in batches
    for handle in handles:
        data = ak.read(handle)
        # Process...
        ak.delete(handle)
"""
BUDGET = """\
with AuthorityKernel() as ak:
    try:
        # Set memory budget
        ak.set_budget("memory", 10_000_000)  # 10MB

        # Set compute budget
        ak.set_budget("compute", 1_000_000)  # 1M operations

        # Operations are tracked and limited
        for i in range(1000):
            handle = ak.alloc(f"obj_{i}", b"data")

    except BudgetExceededError:
        print("Budget exceeded - operation denied")
"""
IMPORTS = "import json\nfrom authority_nanos import AuthorityKernel, BudgetExceededError\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of its folder."""
    folder = tmp_path_factory.mktemp("compat")
    source = shutil.copytree(ROOT / "deploy" / "compat", folder / "source")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    [found] = folder.glob("*.whl")
    return found


def install(wheel: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
        str(wheel),
    ]
    return subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed in."""
    target = tmp_path_factory.mktemp("target")
    install(wheel, target)
    return target


def ran(installed: Path, folder: Path, source: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A program of that source, run in a folder of its own with the wheel."""
    (folder / "program.py").write_text(source)
    return subprocess.run(
        [sys.executable, "program.py"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), **env},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_wheel_is_small_and_has_nothing_but_the_names(wheel: Path) -> None:
    """What it answers with is Processor, on which it depends."""
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [name for name in names if name.endswith("METADATA")]
        requires = [line for line in archive.read(metadata).decode().splitlines() if "Requires-Dist" in line]
    assert requires == ["Requires-Dist: processor"]
    assert wheel.stat().st_size < 10_000
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"_processor_compat", "authority_nanos", "exospherehost", "ismcore", "orchestrator"}


def test_the_builder_runs_from_an_empty_folder(installed: Path, tmp_path: Path, stock_url: str) -> None:
    """The example of `ismcore.compiler.secure_runnable`, where only the stock service is another."""
    done = ran(installed, tmp_path, BUILDER, PROCESSOR_STOCK_URL=stock_url)
    assert done.stdout == f"Query result: {[{**PRICES, **QUERY}]}\n", done.stderr


def test_the_kernel_runs_its_examples(installed: Path, tmp_path: Path) -> None:
    """A policy from a file, objects in batches, and budgets, which objects exceed where they are low."""
    (tmp_path / "policy.toml").write_text(POLICY_FILE)
    for source in (POLICY, IMPORTS + BATCH, IMPORTS + BUDGET):
        done = ran(installed, tmp_path, source)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    low = BUDGET.replace("10_000_000", "100")
    assert ran(installed, tmp_path, IMPORTS + low).stdout == "Budget exceeded - operation denied\n"


@pytest.mark.parametrize(
    "original, module",
    [
        ("exospherehost", "exospherehost"),
        ("ismcore", "ismcore.compiler.secure_runnable"),
        ("authority-nanos", "authority_nanos"),
    ],
)
def test_it_says_where_an_original_is_beside_it(
    wheel: Path, tmp_path: Path, original: str, module: str
) -> None:
    """Pip installs two packages with one module without a word; the import names both and what to remove."""
    target = tmp_path / "target"
    folder = target / f"{original.replace('-', '_')}-2.0.1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {original}\nVersion: 2.0.1\n")
    done = install(wheel, target)
    assert done.stdout + done.stderr == ""
    done = ran(target, tmp_path, f"import {module}")
    assert done.returncode == 1
    assert f"ImportError: {original} 2.0.1 is installed beside processor-compat" in done.stderr
    assert f"`pip uninstall {original}`" in done.stderr
