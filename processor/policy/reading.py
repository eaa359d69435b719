"""Reads policy files: TOML, of which every fault is told at once, by line and column.

`tomllib` has no positions, so a scan of the text finds tables, keys and the items of lists; where it cannot
tell them apart the place is the file alone, never a wrong line. Short tables (`[net]`, `[budgets]`) become
the lines that they stand for, each with the place of its item.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from processor.errors import Fault, Faults
from processor.policy.budgets import BUDGET_KINDS, LIMIT_MAX, UNCOUNTED, WINDOWS, Budget, Then, Window
from processor.policy.kinds import KINDS, asked, near
from processor.policy.rules import Expectation, Policy, Rule, Rules

MAX_EXPIRES_MINUTES = 525_600
_HEADER = re.compile(r"^\s*\[\[?\s*([\w.-]+)\s*\]\]?")
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""|' r"'''.*?'''" r'|"(?:\\.|[^"\\\n])*"|' r"'[^'\n]*'|#[^\n]*|[\[\]]", re.DOTALL
)
_BUDGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")

_Spot = tuple[int, int] | None


class _Short(NamedTuple):
    """What a key of a short table stands for."""

    kind: str
    methods: tuple[str, ...]
    is_deny: bool = False


_SHORT: Mapping[str, Mapping[str, _Short]] = {
    "fs": {
        "read": _Short("file", ("read", "list")),
        "write": _Short("file", ("write", "delete")),
        "deny": _Short("file", KINDS["file"].methods, True),
    },
    "net": {
        "allow": _Short("http", KINDS["http"].methods),
        "deny": _Short("http", KINDS["http"].methods, True),
    },
    "tools": {
        "allow": _Short("tool", KINDS["tool"].methods),
        "deny": _Short("tool", KINDS["tool"].methods, True),
    },
    "infer": {"models": _Short("infer", KINDS["infer"].methods)},
}
_KEYS: Mapping[str, tuple[str, ...]] = {
    "settings": ("mode",),
    "capability": (
        "name", "resource", "methods", "routes", "effect", "expires_minutes", "expires_at", "max_tokens",
    ),
    "budget": ("name", "kind", "limit", "window", "routes", "scope", "then"),
    "test": ("route", "op", "target", "expect"),
    **{name: tuple(keys) for name, keys in _SHORT.items()},
    "infer": ("models", "max_tokens"),
    "budgets": tuple(BUDGET_KINDS),
}  # fmt: skip


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
    rules = Rules(tuple(policies))
    faults += clashes([rules])
    if faults:
        raise Faults(faults)
    return rules


def clashes(found: Iterable[Rules]) -> list[Fault]:
    """Faults for budgets of one name that are not the same: an app has one account for a name."""
    faults = []
    known: dict[str, Budget] = {}
    for budget in (budget for rules in found for policy in rules.policies for budget in policy.budgets):
        other = known.setdefault(budget.name, budget)
        if other.at != budget.at:
            what = f"there is a budget {budget.name!r} already, in {other.place}: give one another name"
            faults.append(Fault(*budget.at, "E111", what))
    return list(dict.fromkeys(faults))


class _Reader:
    """Reads one file, and finds what is wrong with it.

    A place is a line from 0 and a column from 0, or None for the file alone.
    """

    def __init__(self, file: str, text: str) -> None:
        self.faults: list[Fault] = []
        self._file = file
        self._lines = re.split(r"\r?\n", text)
        self._text = "\n".join(self._lines)
        self._heads = [
            (number, found[1]) for number, line in enumerate(self._lines) if (found := _HEADER.match(line))
        ]

    def read(self, document: Mapping[str, Any]) -> Policy:
        for name in document:
            if name not in _KEYS:
                self._fault(
                    self._spot(self._table(name, 0)), f"there is no table {name!r}{near(name, _KEYS)}"
                )
        settings, at = self._single(document, "settings")
        mode = settings.get("mode", "enforce")
        if mode not in ("enforce", "shadow"):
            self._fault(self._spot(at, "mode"), f"mode is 'enforce' or 'shadow', not {mode!r}")
        rules = [*self._entries(document, "capability", self._rule)]
        for name in _SHORT:
            rules += self._short(document, name)
        budgets = [*self._entries(document, "budget", self._budget), *self._short_budgets(document)]
        return Policy(
            Path(self._file).name,
            tuple(rule for _, rule in sorted(rules, key=lambda each: each[0])),
            cases=tuple(case for _, case in self._entries(document, "test", self._case)),
            is_shadow=mode == "shadow",
            budgets=tuple(budget for _, budget in sorted(budgets, key=lambda each: each[0])),
        )

    def _entries(
        self, document: Mapping[str, Any], name: str, read: Callable[[Mapping[str, Any], int | None], Any]
    ) -> Iterator[tuple[int, Any]]:
        """What a list of tables stands for: the line of each, and what was read."""
        entries = document.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            self._fault(self._spot(self._table(name, 0)), f"{name} is a list of tables: write [[{name}]]")
            return
        # A header inside of a text would shift the places: then none is better than a wrong one.
        is_clear = sum(head == name for _, head in self._heads) == len(entries)
        for number, entry in enumerate(entries):
            at = self._table(name, number) if is_clear else None
            self._check_keys(name, entry, at)
            known = len(self.faults)
            made = read(entry, at)
            if len(self.faults) == known:
                yield at or 0, made

    def _single(self, document: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], int | None]:
        """A table that there is once, its keys checked, and the line of its header."""
        is_clear = sum(head == name for _, head in self._heads) == 1
        at = self._table(name, 0) if is_clear else None
        table = document.get(name, {})
        if not isinstance(table, dict):
            self._fault(self._spot(self._table(name, 0)), f"{name} is a table: write [{name}]")
            return {}, None
        self._check_keys(name, table, at)
        return table, at

    def _rule(self, entry: Mapping[str, Any], at: int | None) -> Rule | None:
        name = self._text_of(entry, "name", at)
        is_of_a_tool = (entry.get("resource"), entry.get("methods")) == ("*", ["execute"])
        if name and name not in KINDS and is_of_a_tool:
            # As the Authority Kernel has it: the name is that of a tool.
            name, entry = "tool", {**entry, "resource": KINDS["tool"].pattern(name)}
        kind = KINDS.get(name)
        if kind is None:
            what = f"there is no kind {name!r}; there are {', '.join(KINDS)}{near(name, KINDS)}"
            if "name" in entry:
                self._fault(self._spot(at, "name"), what)
            return None
        resource = self._text_of(entry, "resource", at)
        is_there = isinstance(entry.get("resource"), str)
        matched = self._matcher(name, resource, self._spot(at, "resource")) if is_there else _nothing
        methods = self._texts(entry, "methods", at)
        for method in methods:
            if method != "*" and method not in kind.methods:
                what = f"{name} has no method {method!r}; it has {', '.join(kind.methods)}"
                self._fault(self._spot(at, "methods"), what + near(method, kind.methods))
        routes = self._texts(entry, "routes", at) if "routes" in entry else ()
        effect = entry.get("effect", "allow")
        if effect not in ("allow", "deny"):
            self._fault(self._spot(at, "effect"), f"effect is 'allow' or 'deny', not {effect!r}")
        minutes, ends_us = self._expiry(entry, at)
        tokens = self._whole(entry, "max_tokens", at, LIMIT_MAX) if "max_tokens" in entry else None
        if "max_tokens" in entry and (name != "infer" or effect == "deny"):
            self._fault(self._spot(at, "max_tokens"), "max_tokens is for lines that allow models (infer)")
        return Rule(
            place=self._place(at),
            kind=name,
            resource=resource,
            methods=frozenset(methods),
            routes=routes,
            is_deny=effect == "deny",
            expires_minutes=minutes,
            expires_at_us=ends_us,
            is_matched=matched,
            max_tokens=tokens,
        )

    def _expiry(self, entry: Mapping[str, Any], at: int | None) -> tuple[int | None, int | None]:
        """The minutes and the moment after which a line allows nothing any more."""
        minutes = self._whole(entry, "expires_minutes", at, MAX_EXPIRES_MINUTES)
        moment, ends_us = entry.get("expires_at"), None
        if moment is not None:
            if getattr(moment, "tzinfo", None) is None:
                what = f"expires_at is a time with its zone, such as 2026-12-01T08:00:00Z, not {moment!s}"
                self._fault(self._spot(at, "expires_at"), what)
            else:
                ends_us = int(moment.timestamp() * 1e6)
        is_ending = minutes is not None or moment is not None
        if entry.get("effect") == "deny" and is_ending:
            what = "a deny does not expire: remove the line when it is to end"
            self._fault(self._spot(at, "effect"), what)
        return minutes, ends_us

    def _short(self, document: Mapping[str, Any], table: str) -> Iterator[tuple[int, Rule]]:
        """The lines that a short table stands for."""
        entry, at = self._single(document, table)
        tokens = None
        if table == "infer" and "max_tokens" in entry:
            tokens = self._whole(entry, "max_tokens", at, LIMIT_MAX)
            if not entry.get("models"):
                self._fault(self._spot(at, "max_tokens"), "max_tokens bounds the models, and there are none")
        for key, short in _SHORT[table].items():
            given = entry.get(key, [])
            if not (isinstance(given, list) and all(isinstance(item, str) for item in given)):
                self._fault(self._spot(at, key), f"{key} is a list of texts")
                continue
            spots = self._items(at, key, len(given))
            for resource, spot in zip(given, spots, strict=True):
                known = len(self.faults)
                matched = self._matcher(short.kind, resource, spot)
                if len(self.faults) == known:
                    line = None if spot is None else spot[0]
                    yield (
                        line or 0,
                        Rule(
                            place=self._place(line),
                            kind=short.kind,
                            resource=resource,
                            methods=frozenset(short.methods),
                            is_deny=short.is_deny,
                            is_matched=matched,
                            max_tokens=tokens,
                        ),
                    )

    def _matcher(self, kind: str, resource: str, spot: _Spot) -> Callable[[str], bool]:
        try:
            return KINDS[kind].matcher(resource)
        except ValueError as err:
            self._fault(spot, f"resource {resource!r}, {KINDS[kind].resource}: {err}")
            return _nothing

    def _budget(self, entry: Mapping[str, Any], at: int | None) -> Budget | None:
        name = self._text_of(entry, "name", at)
        if isinstance(entry.get("name"), str) and not _BUDGET_NAME.match(name):
            what = f"a name is up to 63 letters, digits, '_' and '-', not {name[:80]!r}"
            self._fault(self._spot(at, "name"), what)
        kind = self._text_of(entry, "kind", at)
        if isinstance(entry.get("kind"), str):
            self._check_counted(kind, self._spot(at, "kind"))
        if "limit" not in entry:
            self._fault(self._spot(at), "limit is missing")
        limit = self._whole(entry, "limit", at, LIMIT_MAX)
        window = self._choice(entry, "window", WINDOWS, at)
        scope = self._choice(entry, "scope", ("shared", "route"), at, "shared")
        routes = self._texts(entry, "routes", at) if "routes" in entry else ()
        counted = BUDGET_KINDS.get(kind)
        is_of_calls = counted is None or counted.is_of_calls
        then = self._choice(entry, "then", ("deny", "wait", "warn"), at, "deny" if is_of_calls else "wait")
        if then == "deny" and not is_of_calls:
            what = f"{kind} is known when a run has ended, and no call can be denied: then is wait or warn"
            self._fault(self._spot(at, "then"), what)
        if window == "run" and not is_of_calls:
            what = f"{kind} is known when a run has ended: a window of it is minute, hour, day, month or life"
            self._fault(self._spot(at, "window"), what)
        elif window == "run" and then == "wait":
            what = "a run does not wait for its own end: then is deny or warn, or the window another"
            self._fault(self._spot(at, "then"), what)
        if window == "run" and scope == "route" and "scope" in entry:
            what = "a budget of a run is nobody else's: leave scope out"
            self._fault(self._spot(at, "scope"), what)
        line, column = self._spot(at) or (0, 0)
        return Budget(
            place=self._place(at),
            name=name,
            kind=kind,
            limit=limit or 1,
            window=cast(Window, window),
            routes=routes,
            is_shared=scope == "shared",
            then=cast(Then, then),
            at=(self._file, line + 1, column + 1),
        )

    def _short_budgets(self, document: Mapping[str, Any]) -> Iterator[tuple[int, Budget]]:
        """The budgets of a run that `[budgets]` has, each named by its kind."""
        entry, at = self._single(document, "budgets")
        for kind in entry:
            spot = self._spot(at, kind)
            if kind not in BUDGET_KINDS:
                continue
            known = len(self.faults)
            limit = self._whole(entry, kind, at, LIMIT_MAX)
            if not BUDGET_KINDS[kind].is_of_calls:
                what = f"{kind} is known when a run has ended: write a [[budget]] with another window"
                self._fault(spot, what)
            line, column = spot or (0, 0)
            if len(self.faults) == known and limit is not None:
                place = self._place(None if spot is None else line)
                where = (self._file, line + 1, column + 1)
                yield line, Budget(place, kind, kind, limit, "run", at=where)

    def _check_counted(self, kind: str, spot: _Spot) -> None:
        if kind in UNCOUNTED:
            counted = ", ".join(BUDGET_KINDS)
            self._fault(spot, f"nothing counts {kind} in this release; what can be counted: {counted}")
        elif kind not in BUDGET_KINDS:
            known = ", ".join(BUDGET_KINDS)
            self._fault(
                spot, f"there is no kind {kind!r} of budgets; there are {known}{near(kind, BUDGET_KINDS)}"
            )

    def _case(self, entry: Mapping[str, Any], at: int | None) -> Expectation | None:
        route, op, target = (self._text_of(entry, key, at) for key in ("route", "op", "target"))
        expect = entry.get("expect", "allow")
        if expect not in ("allow", "deny", "expired"):
            self._fault(self._spot(at, "expect"), f"expect is 'allow', 'deny' or 'expired', not {expect!r}")
        try:
            ask = asked(op, target)
        except ValueError as err:
            self._fault(self._spot(at, "op"), str(err))
            return None
        return Expectation(self._place(at), route, ask, expect)

    def _place(self, at: int | None) -> str:
        """How a verdict names the line: people know their files by name."""
        name = Path(self._file).name
        return name if at is None else f"{name}:{at + 1}"

    def _check_keys(self, table: str, entry: Mapping[str, Any], at: int | None) -> None:
        for key in entry:
            if table == "budgets":
                self._check_counted(key, self._spot(at, key))
            elif key not in _KEYS[table]:
                what = f"there is no key {key!r} in {table}{near(key, _KEYS[table])}"
                self._fault(self._spot(at, key), what)

    def _text_of(self, entry: Mapping[str, Any], key: str, at: int | None) -> str:
        value = entry.get(key)
        if not isinstance(value, str):
            is_there = key in entry
            what = f"{key} is {'a text' if is_there else 'missing'}"
            self._fault(self._spot(at, key if is_there else None), what)
            return ""
        return value

    def _texts(self, entry: Mapping[str, Any], key: str, at: int | None) -> tuple[str, ...]:
        value = entry.get(key)
        if not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
            is_there = key in entry
            what = f"{key} is {'a list of texts with at least one' if is_there else 'missing'}"
            self._fault(self._spot(at, key if is_there else None), what)
            return ()
        return tuple(value)

    def _whole(self, entry: Mapping[str, Any], key: str, at: int | None, most: int) -> int | None:
        value = entry.get(key)
        if value is None or (type(value) is int and 1 <= value <= most):
            return value
        self._fault(self._spot(at, key), f"{key} is a whole number from 1 to {most}, not {str(value)[:80]}")
        return None

    def _choice(
        self, entry: Mapping[str, Any], key: str, known: Sequence[str], at: int | None, default: str = ""
    ) -> str:
        value = entry.get(key, default)
        if value in known:
            return str(value)
        if key not in entry:
            self._fault(self._spot(at), f"{key} is missing: it is {_either(known)}")
        else:
            hint = near(value, known) if isinstance(value, str) else ""
            what = f"{key} is {_either(known)}, not {str(value)[:80]!r}{hint}"
            self._fault(self._spot(at, key), what)
        return ""

    def _table(self, name: str, number: int) -> int | None:
        """The line of a table's header, from 0."""
        lines = [line for line, head in self._heads if head == name]
        return lines[number] if number < len(lines) else None

    def _spot(self, at: int | None, key: str | None = None) -> _Spot:
        """Where a key of the table stands whose header is in this line; the header where it is not found."""
        if at is None:
            return None
        end = next((head for head, _ in self._heads if head > at), len(self._lines))
        begins = re.compile(rf"\s*(?=[\"']?{re.escape(key or '')}[\"']?\s*=)")
        for number in range(at, end) if key is not None else ():
            if found := begins.match(self._lines[number]):
                return number, found.end()
        return at, len(self._lines[at]) - len(self._lines[at].lstrip())

    def _items(self, at: int | None, key: str, count: int) -> list[_Spot]:
        """Where each text of a list stands."""
        spot = self._spot(at, key)
        if spot is None or spot[0] == at:
            return [None if at is None else (at, 0)] * count
        found: list[_Spot] = []
        line, depth = spot[0], 0
        begin = sum(len(each) + 1 for each in self._lines[:line])
        for token in _TOKEN.finditer(self._text, begin):
            depth += {"[": 1, "]": -1}.get(token[0], 0)
            if token[0] == "]" and depth == 0:
                break
            if depth == 1 and token[0][0] in "\"'":
                line += self._text.count("\n", begin, token.start())
                begin = token.start()
                found.append((line, begin - self._text.rfind("\n", 0, begin) - 1))
        return found if len(found) == count else [spot] * count

    def _fault(self, spot: _Spot, what: str) -> None:
        line, column = spot or (0, 0)
        self.faults.append(Fault(self._file, line + 1, column + 1, "E111", what))


def _nothing(target: str) -> bool:
    """Matches for a line that has a fault."""
    return False


def _either(known: Sequence[str]) -> str:
    return f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
