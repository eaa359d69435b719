"""What a refusal is to user code: the class of the exception, what it knows, and how a run ends by it."""

from __future__ import annotations

import json
from textwrap import dedent, indent
from typing import Any

import orjson
import pytest

from processor import runnable
from processor.errors import About, ProcessorError
from processor.model import Failed, Ran
from processor.sandbox import wire

LANGUAGES = pytest.mark.parametrize("language", ["restricted", "python"])
CLASSES = {
    "E317": "CapabilityError",
    "E322": "BudgetExceededError",
    "E323": "BufferOverflowError",
    "E325": "CapabilityError",
    "E326": "CapabilityError",
    "E330": "OperationDeniedError",
    "E331": "CapabilityError",
    "E332": "BudgetExceededError",
    "E335": "NotFoundError",
    "E336": "ConflictError",
    "E337": "InvalidArgumentError",
    "E338": "BufferOverflowError",
}


def program(body: str, before: str = "") -> str:
    return f"{before}\nclass Runnable:\n    def process(self, queries):\n{indent(dedent(body), ' ' * 8)}\n"


def refusing(about: About | None = None, remedy: str = "") -> Any:
    """A host that refuses each call with the code that the call names as its ticker."""

    async def perform(name: str, arguments: dict[str, Any]) -> Any:
        raise ProcessorError(arguments["ticker"], "it is so", remedy=remedy, about=about)

    return perform


def documents(outcome: Any) -> list[Any]:
    assert isinstance(outcome, Ran), outcome
    return [json.loads(output.body) for output in outcome.outputs]


@LANGUAGES
async def test_each_class_is_one_object_wherever_it_is_found(language: str, spawned: Any, one: Any) -> None:
    """Without an import, in `authority_nanos`, in `processor.runnable`, and as what is raised."""
    body = """
        import authority_nanos, processor.runnable as known
        from authority_nanos import BudgetExceededError as imported
        try:
            self.get_stock_data("E332" if False else "E322")
        except Exception as err:
            raised = type(err)
        names = "AuthorityKernelError CapabilityError OperationDeniedError InvalidArgumentError "
        names += "NotFoundError ConflictError BufferOverflowError OutOfMemoryError LibakError TimeoutError"
        for name in names.split():
            assert getattr(authority_nanos, name) is getattr(known, name), name
        assert BudgetExceededError is imported is known.BudgetExceededError is raised
        assert authority_nanos.BudgetExceededError is raised
        assert NotFoundError is known.NotFoundError and LibakError is known.LibakError
        return [TimeoutError is not known.TimeoutError, issubclass(known.TimeoutError, TimeoutError)]
    """
    async with spawned(program(body), refusing(), language=language) as guest:
        assert documents(await guest.run([one(1)])) == [True, True]


@LANGUAGES
async def test_the_code_of_a_refusal_is_its_class(language: str, spawned: Any, one: Any) -> None:
    """Each is an AuthorityKernelError with its code; an expired capability is not a denied operation."""
    body = """
        made = []
        for code in queries:
            try:
                self.get_stock_data(code)
            except AuthorityKernelError as err:
                made.append([type(err).__name__, err.code, str(err), isinstance(err, OperationDeniedError)])
        return made
    """
    async with spawned(program(body), refusing(), language=language) as guest:
        assert documents(await guest.run([one(*CLASSES)])) == [
            [name, code, f"{code} it is so.", code == "E330"] for code, name in CLASSES.items()
        ]


@LANGUAGES
async def test_a_refusal_says_what_it_was_about(language: str, spawned: Any, one: Any) -> None:
    """The attributes of the exception are those of the host's sentence; a call names itself at least."""
    body = """
        try:
            self.get_stock_data(queries[0])
        except CapabilityError as err:
            return [[err.operation, err.target, err.rule, err.expires_s, err.remedy]]
    """
    about = About("stock.read", "IBM", "policy.toml:3", -240.5)
    async with spawned(program(body), refusing(about, "Renew it."), language=language) as guest:
        assert documents(await guest.run([one("E331")])) == [
            ["stock.read", "IBM", "policy.toml:3", -240.5, "Renew it."]
        ]
    async with spawned(program(body), refusing(), language=language) as guest:
        assert documents(await guest.run([one("E317")])) == [["stock", "", "", None, ""]]


@pytest.mark.parametrize(
    "target", ["x" * 100_000, "\0" * 100_000, "ü€" * 50_000, "\ud800" * 100, "{}" * 9_000]
)
async def test_a_refusal_stays_small_whatever_it_is_about(target: str, spawned: Any, one: Any) -> None:
    """What a guest named comes back to it cut, as text that JSON can carry."""
    frame = wire.write_refusal(
        1, 1, "E330", target, {"operation": target, "target": target, "remedy": target}
    )
    (arrived,) = wire.Splitter(1 << 20).feed(frame)
    assert len(orjson.dumps(arrived.header["about"])) <= wire.ABOUT_BYTES
    assert arrived.header["about"]["target"]
    body = (
        "try:\n    self.get_stock_data('E330')\nexcept OperationDeniedError as err:\n    return [err.target]"
    )
    async with spawned(program(body), refusing(About("http.get", target), target)) as guest:
        [told] = documents(await guest.run([one(1)]))
        assert told.encode("utf-8", "replace")[:100] == target[:100].encode("utf-8", "replace")[:100]
        assert guest.alive


@LANGUAGES
@pytest.mark.parametrize("code", ["E330", "E335", "E338"])
async def test_a_refusal_that_is_not_caught_fails_the_run(
    language: str, code: str, spawned: Any, one: Any
) -> None:
    """With its own code and the line of the user's; the guest goes on."""
    async with spawned(program("self.get_stock_data(queries[0])"), refusing(), language=language) as guest:
        outcome = await guest.run([one(code)])
        assert isinstance(outcome, Failed)
        assert outcome.failure.code == code
        assert "self.get_stock_data(queries[0])" in outcome.failure.traceback
        assert guest.alive


@LANGUAGES
async def test_user_code_raises_and_derives_from_the_classes(language: str, spawned: Any, one: Any) -> None:
    """A class has the code of what it stands for; a code that a guest may not give is E317."""
    body = """
        class Stale(ConflictError):
            pass
        made = []
        for err in (Stale("a"), BudgetExceededError("b"), NotFoundError("c"), LibakError("d")):
            try:
                raise err
            except AuthorityKernelError as caught:
                made.append([str(caught), caught.code])
        if queries[0]:
            raise CapabilityError("mine", code=queries[0])
        return made
    """
    async with spawned(program(body), language=language) as guest:
        assert documents(await guest.run([one("")])) == [
            ["a", "E336"], ["b", "E332"], ["c", "E335"], ["d", "E317"],
        ]  # fmt: skip
        outcome = await guest.run([one("E314")])
        assert isinstance(outcome, Failed)
        assert (outcome.failure.code, outcome.failure.text) == ("E317", "CapabilityError: mine")


@pytest.mark.parametrize(
    "expires, after_s", [("30", 30.0), ("7e9", 3600.0), ("-1", None), ("float('nan')", None), ("'x'", None)]
)
async def test_a_run_without_budget_waits_until_it_is_free(
    expires: str, after_s: float | None, spawned: Any, one: Any
) -> None:
    """At most for an hour; what is no time is none."""
    body = f"raise BudgetExceededError('all used', code='E332', expires_s={expires})"
    async with spawned(program(body)) as guest:
        outcome = await guest.run([one(1)])
        assert isinstance(outcome, Failed)
        assert (outcome.failure.code, outcome.failure.retry_after_s) == ("E332", after_s)


def test_the_classes_of_requests_are_those_of_their_codes() -> None:
    """What `requests` raises for a refusal is caught under either name."""
    from processor.sandbox import requests

    assert issubclass(requests.Denied, runnable.OperationDeniedError)
    assert issubclass(requests.BudgetExceeded, runnable.BudgetExceededError)
    for kind in (requests.Denied, requests.BudgetExceeded, requests.TooLarge):
        assert issubclass(kind, requests.RequestException)
        err = kind("why", code="E330", operation="http.get", remedy="add it")
        assert (str(err), err.code, err.operation, err.remedy) == ("why", "E330", "http.get", "add it")
