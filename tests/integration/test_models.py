"""`self.infer` and `self.embed` in Runnables of a route, against a real server of models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processor.audit import AuditRecord, document_of
from tests.conftest import waited
from tests.llm import KEY, MODEL, real_server
from tests.running import Running, Start

ASK = """
class Runnable:
    def process(self, queries):
        for query in queries:
            try:
                if "texts" in query:
                    yield {"vectors": self.embed("tiny-random", query["texts"])}
                    continue
                answer = self.infer(query.pop("model", "tiny-random"), **query)
                if query.get("stream"):
                    pieces = list(answer)
                    yield {"pieces": pieces, "usage": answer.usage, "same": "".join(pieces) == answer.text}
                    continue
                yield {
                    "text": answer.text,
                    "finish_reason": answer.finish_reason,
                    "usage": answer.usage,
                    "model": answer.model,
                    "choices": len(answer["choices"]),
                    "role": answer.message["role"],
                    "calls": answer.tool_calls,
                }
            except AuthorityKernelError as err:
                yield {"code": err.code, "kind": type(err).__name__, "said": str(err)}
"""
ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: ask.py
  output: out
  inference: [local]
  retry: {attempts: 1}
"""
TOP = """
inference:
  local: {base_url: "%s", models: ["tiny-*", "gpt-*"], secret: llm_key, max_tokens: 64, price: [1, 2]}
secrets:
  llm_key: {file: llm.key, hosts: ["%s"]}
"""
POLICY = """
[[capability]]
name = "infer"
resource = "tiny-*"
methods = ["chat", "embed"]
[[capability]]
name = "secret"
resource = "llm_key"
methods = ["use"]
[[budget]]
name = "team"
kind = "tokens"
limit = 160
window = "day"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with real_server(tmp_path_factory.mktemp("model")) as url:
        yield url


def top(folder: Path, server: str) -> str:
    (folder / "llm.key").write_text(KEY)
    return TOP % (server, server.removesuffix("/v1"))


async def made(running: Running, *queries: dict[str, Any]) -> list[dict[str, Any]]:
    """What the route makes of these, in their order."""
    before = len(await running.stored("out"))
    await running.publish("in.a", *queries)
    found: list[dict[str, Any]] = await running.documents("out", before + len(queries))
    return found[before:]


@pytest.mark.parametrize("language", ["restricted", "python"])
async def test_a_runnable_has_the_answer_of_a_model(
    processor: Start, server: str, tmp_path: Path, language: str
) -> None:
    """With the server's own count of tokens; of a prompt, of messages, and of options."""
    route = f"{ROUTE}  language: {language}\n"
    async with processor(route, top(tmp_path, server), ask=ASK) as running:
        first, second, same = await made(
            running,
            {"prompt": "the price rose", "max_tokens": 8},
            {"messages": [{"role": "user", "content": "the price"}], "max_tokens": 8, "temperature": 0},
            {"prompt": "the price", "max_tokens": 8, "temperature": 0},
        )
        [piecewise] = await made(
            running, {"prompt": "the price", "max_tokens": 8, "temperature": 0, "stream": True}
        )
        counted = {d: running.metric("processor_tokens_total", route="r", direction=d) for d in ("in", "out")}
        [vectors] = await made(running, {"texts": ["the price", "it rose", "the price"]})
    assert (first["finish_reason"], first["role"], first["model"], first["choices"]) == (
        "length",
        "assistant",
        MODEL,
        1,
    )
    assert first["usage"]["completion_tokens"] == 8
    assert first["usage"]["total_tokens"] == first["usage"]["prompt_tokens"] + 8
    assert second["text"] == same["text"] != ""
    assert first["calls"] == []
    assert "".join(piecewise["pieces"]) == same["text"]
    assert len(piecewise["pieces"]) > 1
    assert piecewise["same"] is True
    assert piecewise["usage"]["completion_tokens"] == 8
    assert counted["out"] == 32
    assert counted["in"] == sum(each["usage"]["prompt_tokens"] for each in (first, second, same, piecewise))
    assert [len(vector) for vector in vectors["vectors"]] == [64] * 3
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-3) for vector in vectors["vectors"])


async def test_a_server_says_itself_why_it_does_not_answer(
    processor: Start, server: str, tmp_path: Path
) -> None:
    """That a prompt is too long for the model (400), or a key is wrong (401), from the next reload on."""
    async with processor(ROUTE, top(tmp_path, server), ask=ASK) as running:
        [long] = await made(running, {"prompt": "the price rose " * 400})
        (tmp_path / "llm.key").write_text("another-key-9876543210")
        await running.reload()
        [unknown] = await made(running, {"prompt": "the price"})
    assert (unknown["code"], unknown["kind"]) == ("E334", "CapabilityError")
    assert "tiny-random of local: status 401: Invalid API Key" in unknown["said"]
    assert "another-key" not in unknown["said"]
    assert long["code"] == "E334"
    assert "status 400:" in long["said"]


async def test_a_route_is_bound_by_its_policy_and_its_budget(
    processor: Start, server: str, tmp_path: Path
) -> None:
    """A model without a line is denied with the line; beyond the budget no call is made; all has entries."""
    (tmp_path / "policy.toml").write_text(POLICY)
    governed = top(tmp_path, server) + "policy: policy.toml\n"
    async with processor(ROUTE, governed, ask=ASK) as running:
        asked = {"prompt": "the price", "max_tokens": 60}
        answered, denied, unserved = await made(
            running, asked, {"model": "gpt-4o", **asked}, {"model": "claude-3", **asked}
        )
        [used_up] = await made(running, {"prompt": "the price " * 40, "max_tokens": 64})

        async def enough() -> list[dict[str, Any]] | None:
            found = []
            async for stored in running.broker.history("P_app", ["p.app.audit.r.*"]):
                found += map(document_of, AuditRecord.decode(stored.payload).lines)
            found = [entry for entry in found if entry["e"] == "infer"]
            return found if len(found) == 4 else None

        entries = await waited(enough, "each call has an entry")
        page = running.telemetry.page().decode()
    assert answered["usage"]["completion_tokens"] == 60
    assert (denied["code"], denied["kind"]) == ("E330", "OperationDeniedError")
    assert 'name = "infer"\nresource = "gpt-4o"\nmethods = ["chat"]' in denied["said"]
    assert (unserved["code"], used_up["code"], used_up["kind"]) == ("E330", "E332", "BudgetExceededError")
    assert "budget team: " in used_up["said"]
    assert [(each["d"], each["on"], each.get("code")) for each in entries] == [
        ("allow", MODEL, None),
        ("deny", "gpt-4o", "E330"),
        ("deny", "claude-3", "E330"),
        ("deny", MODEL, "E332"),
    ]
    usage = answered["usage"]
    assert entries[0]["tokens"] == [usage["prompt_tokens"], usage["completion_tokens"]]
    assert entries[0]["secrets"] == ["llm_key"]
    assert entries[3]["rule"] == "policy.toml:10"
    for text in (KEY, "the price"):
        assert text not in page
        assert text not in str(entries)
