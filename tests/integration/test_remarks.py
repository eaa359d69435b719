"""What the audit has of a Runnable's own doings: its objects, its questions, and its own word."""

from __future__ import annotations

from pathlib import Path

from tests.integration.test_audited import chains
from tests.running import Start

URL = "https://api.example.com/v1"
SPEAK = """
class Runnable:
    def process(self, queries):
        for query in queries:
            handle = self.heap.alloc("counter", {"value": 0})
            self.heap.read(handle)
            self.heap.delete(handle)
            try:
                self.heap.alloc("other", 1)
            except OperationDeniedError:
                pass
            self.authorize("http.get", "https://api.example.com/v1?token=1")
            told = [self.audit("approved", {"case": query["case"]}) for _ in range(query.get("times", 1))]
            if query.get("fail"):
                raise ValueError("no")
            yield {"told": all(told)}
"""
ROUTE = """
r:
  input: {subject: "in.*", create: true}
  runnable: speak.py
  output: out
  retry: {attempts: 1}
  limits: {requests: 500}
"""
POLICY = '[[capability]]\nname = "heap"\nresource = "counter"\nmethods = ["alloc", "read", "delete"]\n'


async def test_the_audit_has_objects_questions_and_a_word_of_the_runnables_own(
    processor: Start, tmp_path: Path
) -> None:
    """Each is an entry in the commit of its run; no value and no query string of a URL is in one."""
    (tmp_path / "policy.toml").write_text(POLICY)
    async with processor(ROUTE, "policy: policy.toml", speak=SPEAK) as running:
        await running.publish("in.a", {"case": 7})
        assert await running.documents("out", 1) == [{"told": True}]
        [entries] = (await chains(running)).values()
    said = [
        [each.get(key) for key in ("e", "d", "fate", "op", "on", "name", "rule", "code")] for each in entries
    ]
    assert sorted(map(str, said)) == sorted(
        map(
            str,
            [
                ["heap", "deny", "committed", "alloc", "other", None, "default", "E330"],
                [
                    "authorize",
                    "deny",
                    "committed",
                    "http.get",
                    "https://api.example.com/v1",
                    None,
                    None,
                    None,
                ],
                ["user", "allow", "committed", "note", "approved", None, None, None],
                ["heap", "allow", "committed", "alloc", "counter", "0x1", "policy.toml:1", None],
                ["heap", "allow", "committed", "read", "counter", "0x1", "policy.toml:1", None],
                ["heap", "allow", "committed", "delete", "counter", "0x1", "policy.toml:1", None],
            ],
        )
    )
    assert [each["data"] for each in entries if each["e"] == "user"] == [{"case": 7}]
    assert len({each["run"] for each in entries}) == 1


async def test_the_word_of_a_run_that_fails_is_kept_as_dropped(processor: Start, tmp_path: Path) -> None:
    """Its objects are not there, so they are no entries; more than a hundred of its own are refused."""
    (tmp_path / "policy.toml").write_text(POLICY)
    async with processor(ROUTE, "policy: policy.toml", speak=SPEAK) as running:
        await running.publish("in.a", {"case": 1, "fail": True}, {"case": 2, "times": 101})
        letters = await running.dead_letters("r", 2)
        assert sorted(letter.headers["x-error-code"] for letter in letters) == ["E304", "E338"]
        await running.publish("in.a", {"case": 3})
        assert await running.documents("out", 1) == [{"told": True}]
        [entries] = (await chains(running)).values()
    mine = [(each["data"]["case"], each["fate"]) for each in entries if each["e"] == "user"]
    assert {fate for case, fate in mine if case in (1, 2)} == {"dropped"}
    assert mine.count((3, "committed")) == 1
    assert (
        sum(each["e"] == "heap" and each["d"] == "allow" for each in entries if each["fate"] == "dropped")
        == 0
    )


async def test_without_an_audit_nothing_is_kept(processor: Start) -> None:
    """The Runnable is told so, and goes on."""
    async with processor(ROUTE, speak=SPEAK) as running:
        await running.publish("in.a", {"case": 1})
        assert await running.documents("out", 1) == [{"told": False}]
        assert await chains(running) == {}
