"""`processor infer`, and the example of the Authority Kernel SDK about inference, against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from processor.authority import (
    AuthorityKernel,
    BudgetExceededError,
    InvalidArgumentError,
    OperationDeniedError,
)
from tests.llm import MODEL, real_server

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "configs" / "examples" / "authority"
CONFIG = """
app: a
inference:
  local: {base_url: "%s", models: ["tiny-*"], max_tokens: 64}
routes:
  r:
    input: in
    code: "class Runnable: pass"
    inference: local
    policy: policy.toml
  s:
    input: in2
    code: "class Runnable: pass"
"""
POLICY = '[[capability]]\nname = "infer"\nresource = "tiny-*"\nmethods = ["chat"]\nmax_tokens = 5\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with real_server(tmp_path_factory.mktemp("model"), key="") as url:
        yield url


@pytest.fixture
def config(tmp_path: Path, server: str) -> Path:
    (tmp_path / "policy.toml").write_text(POLICY)
    path = tmp_path / "app.yaml"
    path.write_text(CONFIG % server)
    return path


def program(*words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "processor", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, input=given)


def test_a_model_is_asked_from_a_shell(config: Path) -> None:
    """Its answer goes to standard output, time and tokens to standard error; a prompt may be piped in."""
    done = program("infer", str(config), MODEL, "the price", "--max-tokens", "8", "--format", "json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["usage"]["completion_tokens"] == 8
    assert re.search(rf"\d+ ms, {document['usage']['prompt_tokens']} tokens in, 8 out", done.stderr)
    done = program("infer", str(config), MODEL, "-", "--stream", "--format", "human", given="the price")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 8
    assert re.search(r"first piece after \d+ ms\n.*, 64 out", done.stderr)


def test_a_route_is_asked_as_its_policy_has_it(config: Path) -> None:
    """With its bound on tokens, and its denials; a route that has no endpoint has no model."""
    done = program("infer", str(config), MODEL, "the price", "--route", "r", "--format", "json")
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 5
    done = program("infer", str(config), MODEL, "the price", "--route", "r", "--max-tokens", "6")
    assert (done.stdout, done.returncode) == ("", 1)
    assert "E330" in done.stderr
    assert "policy.toml:1 allows 5" in done.stderr
    done = program("infer", str(config), MODEL, "the price", "--route", "s")
    assert done.returncode == 1
    assert "no endpoint of the route serves that model" in done.stderr
    assert program("infer", str(config), MODEL, "the price", "--route", "t").returncode == 2


GRAPH = """
app: g
inference:
  local: {base_url: "%s", models: ["tiny-*"]}
nodes:
  lib: {file: nodes.py, inference: local}
graphs:
  ask:
    nodes:
      - {identifier: a, node_name: Ask, inputs: {prompt: the price}}
    outputs: {tokens: "${{ a.outputs.tokens }}"}
"""
NODES = """
from exospherehost import BaseNode
from pydantic import BaseModel


class Ask(BaseNode):
    class Inputs(BaseModel):
        prompt: str

    class Outputs(BaseModel):
        tokens: int

    async def execute(self):
        answer = await self.ainfer("tiny-random", prompt=self.inputs.prompt, max_tokens=7)
        return self.Outputs(tokens=answer.usage["completion_tokens"])
"""


def test_a_node_asks_a_model_of_its_group(tmp_path: Path, server: str) -> None:
    """Its group is a pool, since it reaches outside; `graph try` runs it as that."""
    (tmp_path / "nodes.py").write_text(NODES)
    (tmp_path / "app.yaml").write_text(GRAPH % server)
    done = program("graph", "try", str(tmp_path / "app.yaml"), "ask", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert '"tokens":7' in done.stdout


INFERENCE = [
    "✅ Connected to Authority Kernel",
    "✅ gpt-4o answered with 16 tokens",
    "✅ gpt-4o answered piece by piece: True",
    "✅ claude-3 is denied: E330 infer chat claude-3 is not allowed to route inference: policy.toml has no"
    " line for it. To allow it, add:",
    "✅ Budget exceeded - the model was not asked: E332",
]


def test_the_example_of_inference_asks_a_model(tmp_path: Path, server: str) -> None:
    """In a guest under the policy of its route; and as a Runnable, piece by piece to its listeners."""
    folder = tmp_path / "authority"
    shutil.copytree(EXAMPLES, folder)
    text = (folder / "authority.yaml").read_text()
    (folder / "authority.yaml").write_text(text.replace("http://127.0.0.1:8080/v1", server))
    path = str(folder / "authority.yaml")
    done = program(
        "authority", "run", str(folder / "04_inference.py"), "--config", path, "--route", "inference"
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("✅")]
    assert lines == INFERENCE
    assert 'resource = "claude-3"' in done.stdout
    done = program("try", path, "inference", str(folder / "inference.jsonl"))
    assert done.returncode == 0, done.stderr
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    chunks = [
        each["data"] if "data" in each else each.get("text") for each in shown if each["kind"] == "chunk"
    ]
    assert {"tokens": 16} in chunks
    assert {"refused": "E330"} in chunks
    assert sum(type(chunk) is str for chunk in chunks) > 1


def test_a_script_asks_models_with_a_kernel_of_its_own(tmp_path: Path) -> None:
    """Without a configuration there is no model; what it asks is checked before."""
    with AuthorityKernel() as kernel:
        with pytest.raises(OperationDeniedError, match="no endpoint of the route serves that model"):
            kernel.inference(b'{"model": "gpt-4o", "prompt": "hi"}')
        with pytest.raises(InvalidArgumentError, match="inference E337 the request is no object"):
            kernel.inference(b"[1]")
        with pytest.raises(InvalidArgumentError, match="inference E337 the data is not JSON"):
            kernel.inference(b"{")
        kernel.set_budget("tokens", 10)
        with pytest.raises(BudgetExceededError, match="0 of 10 tokens of models used"):
            kernel.inference(b'{"model": "gpt-4o", "prompt": "hi", "max_tokens": 11}')
        entries = [json.loads(entry) for entry in kernel.audit_logs()]
    assert [(each["e"], each["op"], each["on"], each["d"], each["code"]) for each in entries] == [
        ("infer", "chat", "gpt-4o", "deny", "E330")
    ]
