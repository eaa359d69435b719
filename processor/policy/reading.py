"""Reads policy files: TOML, of which every fault is told at once, by line and column.

`tomllib` has no positions, so a scan of the lines finds the tables; where it cannot tell them apart the place
is the file alone, never a wrong line.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from processor.errors import Fault, Faults
from processor.policy.kinds import KINDS, asked, near
from processor.policy.rules import Expectation, Policy, Rule, Rules

MAX_EXPIRES_MINUTES = 525_600
_HEADER = re.compile(r"^\s*\[\[?\s*([\w.-]+)\s*\]\]?")

_TABLES = ("settings", "capability", "test")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "settings": ("mode",),
    "capability": ("name", "resource", "methods", "routes", "effect", "expires_minutes", "expires_at"),
    "test": ("route", "op", "target", "expect"),
}


def load(paths: Sequence[str | Path]) -> Rules:
    """The rules of these files. Raises Faults with every E111 in all of them, by line and column."""
    faults: list[Fault] = []
    policies = []
    for path in map(Path, paths):
        name = str(path)
        try:
            text = path.read_bytes().decode()
            document = tomllib.loads(text)
        except OSError as err:
            faults.append(Fault(name, 1, 1, "E107", f"the policy cannot be read: {err.strerror}"))
        except UnicodeDecodeError:
            faults.append(Fault(name, 1, 1, "E111", "the policy is not UTF-8 text"))
        except tomllib.TOMLDecodeError as err:
            found = re.search(r"\(at line (\d+), column (\d+)\)", str(err))
            line, column = (int(found[1]), int(found[2])) if found else (text.count("\n") + 1, 1)
            what = re.sub(r" \(at .*", "", str(err))
            faults.append(Fault(name, line, column, "E111", f"the policy is not TOML: {what}"))
        except (ValueError, RecursionError) as err:  # a number of too many digits, lists nested too deep
            faults.append(Fault(name, 1, 1, "E111", f"the policy cannot be read: {err}"))
        else:
            reader = _Reader(name, text)
            policies.append(reader.read(document))
            faults += reader.faults
    if faults:
        raise Faults(faults)
    return Rules(tuple(policies))


class _Reader:
    """Reads one file, and finds what is wrong with it."""

    def __init__(self, file: str, text: str) -> None:
        self.faults: list[Fault] = []
        self._file = file
        self._lines = text.splitlines()
        heads = [
            (number, found[1]) for number, line in enumerate(self._lines) if (found := _HEADER.match(line))
        ]
        self._heads = heads

    def read(self, document: Mapping[str, Any]) -> Policy:
        for name in document:
            if name not in _TABLES:
                self._fault((self._table(name, 0), None), f"there is no table {name!r}{near(name, _TABLES)}")
        settings = document.get("settings", {})
        mode = self._settings(settings) if isinstance(settings, dict) else "enforce"
        return Policy(
            Path(self._file).name,
            tuple(self._entries(document, "capability", self._rule)),
            tuple(self._entries(document, "test", self._case)),
            mode == "shadow",
        )

    def _settings(self, settings: Mapping[str, Any]) -> str:
        at = self._table("settings", 0)
        self._check_keys("settings", settings, at)
        mode = settings.get("mode", "enforce")
        if mode not in ("enforce", "shadow"):
            self._fault((at, "mode"), f"mode is 'enforce' or 'shadow', not {mode!r}")
        return str(mode)

    def _entries(
        self, document: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any], int | None], Any]
    ) -> Iterator[Any]:
        entries = document.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            self._fault((self._table(name, 0), None), f"{name} is a list of tables: write [[{name}]]")
            return
        # A header inside of a text would shift the places: then none is better than a wrong one.
        is_clear = sum(head == name for _, head in self._heads) == len(entries)
        for number, entry in enumerate(entries):
            at = self._table(name, number) if is_clear else None
            self._check_keys(name, entry, at)
            known = len(self.faults)
            made = read(entry, at)
            if len(self.faults) == known:
                yield made

    def _rule(self, entry: Mapping[str, Any], at: int | None) -> Rule | None:
        name = self._text(entry, "name", at)
        kind = KINDS.get(name)
        if kind is None:
            self._fault(
                (at, "name"), f"there is no kind {name!r}; there are {', '.join(KINDS)}{near(name, KINDS)}"
            )
            return None
        resource = self._text(entry, "resource", at)
        is_matched: Callable[[str], bool] = lambda target: False  # noqa: E731
        try:
            is_matched = kind.matcher(resource) if isinstance(entry.get("resource"), str) else is_matched
        except ValueError as err:
            self._fault((at, "resource"), f"resource {resource!r}, {kind.resource}: {err}")
        methods = self._texts(entry, "methods", at)
        for method in methods:
            if method != "*" and method not in kind.methods:
                what = f"{name} has no method {method!r}; it has {', '.join(kind.methods)}"
                self._fault((at, "methods"), what + near(method, kind.methods))
        routes = self._texts(entry, "routes", at) if "routes" in entry else ()
        effect = entry.get("effect", "allow")
        if effect not in ("allow", "deny"):
            self._fault((at, "effect"), f"effect is 'allow' or 'deny', not {effect!r}")
        minutes, moment = entry.get("expires_minutes"), entry.get("expires_at")
        if minutes is not None and not (type(minutes) is int and 1 <= minutes <= MAX_EXPIRES_MINUTES):
            what = f"expires_minutes is a whole number from 1 to {MAX_EXPIRES_MINUTES}, not {minutes!r}"
            self._fault((at, "expires_minutes"), what)
        ends_us = None
        if moment is not None:
            if getattr(moment, "tzinfo", None) is None:
                what = f"expires_at is a time with its zone, such as 2026-12-01T08:00:00Z, not {moment!s}"
                self._fault((at, "expires_at"), what)
            else:
                ends_us = int(moment.timestamp() * 1e6)
        if effect == "deny" and (minutes is not None or moment is not None):
            self._fault((at, "effect"), "a deny does not expire: remove the line when it is to end")
        place = self._place(at)
        return Rule(
            place,
            name,
            resource,
            frozenset(methods),
            tuple(routes),
            effect == "deny",
            minutes,
            ends_us,
            is_matched,
        )

    def _case(self, entry: Mapping[str, Any], at: int | None) -> Expectation | None:
        route, op, target = (self._text(entry, key, at) for key in ("route", "op", "target"))
        expect = entry.get("expect", "allow")
        if expect not in ("allow", "deny", "expired"):
            self._fault((at, "expect"), f"expect is 'allow', 'deny' or 'expired', not {expect!r}")
        try:
            ask = asked(op, target)
        except ValueError as err:
            self._fault((at, "op"), str(err))
            return None
        return Expectation(self._place(at), route, ask, expect)

    def _place(self, at: int | None) -> str:
        """How a verdict names the line: people know their files by name."""
        name = Path(self._file).name
        return name if at is None else f"{name}:{at + 1}"

    def _check_keys(self, table: str, entry: Mapping[str, Any], at: int | None) -> None:
        for key in entry:
            if key not in _KEYS[table]:
                self._fault((at, key), f"there is no key {key!r} in {table}{near(key, _KEYS[table])}")

    def _text(self, entry: Mapping[str, Any], key: str, at: int | None) -> str:
        value = entry.get(key)
        if not isinstance(value, str):
            is_there = key in entry
            self._fault((at, key if is_there else None), f"{key} is {'a text' if is_there else 'missing'}")
            return ""
        return value

    def _texts(self, entry: Mapping[str, Any], key: str, at: int | None) -> tuple[str, ...]:
        value = entry.get(key)
        if not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
            is_there = key in entry
            what = f"{key} is {'a list of texts with at least one' if is_there else 'missing'}"
            self._fault((at, key if is_there else None), what)
            return ()
        return tuple(value)

    def _table(self, name: str, number: int) -> int | None:
        """The line of a table's header, from 0."""
        lines = [line for line, head in self._heads if head == name]
        return lines[number] if number < len(lines) else None

    def _fault(self, at: tuple[int | None, str | None], what: str) -> None:
        line, key = at
        if line is None:
            self.faults.append(Fault(self._file, 1, 1, "E111", what))
            return
        end = next((head for head, _ in self._heads if head > line), len(self._lines))
        begins = re.compile(rf"\s*(?=[\"']?{re.escape(key or '')}[\"']?\s*=)")
        for number in range(line, end) if key is not None else ():
            if found := begins.match(self._lines[number]):
                self.faults.append(Fault(self._file, number + 1, found.end() + 1, "E111", what))
                return
        column = len(self._lines[line]) - len(self._lines[line].lstrip()) + 1
        self.faults.append(Fault(self._file, line + 1, column, "E111", what))
