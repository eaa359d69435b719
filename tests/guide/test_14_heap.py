"""Chapter 14: typed objects in a context, a policy for them, and a question before doing."""

from __future__ import annotations

from pathlib import Path

from tests.running import Start

ROUTE = """
accounts:
  input: {subject: "accounts.*", create: true}
  runnable: accounts.py
  key: subject.2
  output: booked
  retry: {attempts: 1}
"""
ACCOUNTS = """
class Runnable(BaseSecureRunnable):
    def process(self, queries):
        if not self.heap.list("account"):
            self.heap.alloc("account", {"balance": 0})
        [account] = self.heap.list("account")
        for query in queries:
            balance = self.heap.read(account)["balance"] + query["amount"]
            patch = [{"op": "replace", "path": "/balance", "value": balance}]
            if balance < 0 and not self.authorize("alloc", "overdraft"):
                raise Reject("no overdraft")
            version = self.heap.write(account, patch, query.get("version"))
            yield {"balance": balance, "version": version}
"""
ALLOWED = """
[[capability]]
name = "heap"
resource = "account"
methods = ["alloc", "read", "write"]
"""
OVERDRAFT = """
[[capability]]
name = "heap"
resource = "overdraft"
methods = ["alloc"]
"""


async def test_an_account_of_each_key(processor: Start, tmp_path: Path) -> None:
    """Objects are committed with the outputs, versions tell who was first, and the policy is asked."""
    policy = tmp_path / "policy.toml"
    policy.write_text(ALLOWED)
    async with processor(ROUTE, "policy: policy.toml", accounts=ACCOUNTS) as running:
        await running.publish("accounts.ada", {"amount": 5}, {"amount": 2})
        await running.publish("accounts.bob", {"amount": 1})
        found = await running.documents("booked", 3)
        assert {"balance": 7, "version": 2} in found
        assert {"balance": 1, "version": 1} in found

        await running.publish("accounts.ada", {"amount": 1, "version": 1})
        [letter] = await running.dead_letters("accounts")
        assert letter.headers["x-error-code"] == "E336"

        await running.publish("accounts.bob", {"amount": -3})
        [_, rejected] = await running.dead_letters("accounts", 2)
        assert "no overdraft" in rejected.headers["x-dead-letter-reason"]

        policy.write_text(ALLOWED + OVERDRAFT)
        assert await running.reload() == ["accounts"]
        await running.publish("accounts.bob", {"amount": -3})
        assert (await running.documents("booked", 4))[-1] == {"balance": -2, "version": 2}
        contexts = await running.contexts("accounts")
        assert contexts["ada"]["=heap.0x1"] == {"type": "account", "version": 2, "value": {"balance": 7}}
