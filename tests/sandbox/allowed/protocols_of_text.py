"""Small parsers: tokens, expressions, ini, templates, roman numerals, cron, semantic versions."""
import re
from collections import namedtuple
from dataclasses import dataclass
from enum import Enum
from functools import total_ordering
from typing import Iterator, NamedTuple

Token = namedtuple("Token", "kind text pos")
SPEC = [("NUM", r"\d+(\.\d+)?"), ("ID", r"[A-Za-z_]\w*"), ("OP", r"[-+*/()^]"), ("WS", r"\s+"), ("BAD", r".")]
PATTERN = re.compile("|".join(f"(?P<{k}>{v})" for k, v in SPEC))


def tokenize(text: str) -> Iterator[Token]:
    for m in PATTERN.finditer(text):
        kind = m.lastgroup
        if kind == "WS":
            continue
        if kind == "BAD":
            raise SyntaxError(f"unexpected {m.group()!r} at {m.start()}")
        yield Token(kind, m.group(), m.start())


class Parser:
    def __init__(self, text, names=None):
        self.tokens = [*tokenize(text), Token("END", "", len(text))]
        self.at = 0
        self.names = names or {}

    @property
    def current(self): return self.tokens[self.at]

    def accept(self, *texts):
        if self.current.text in texts:
            self.at += 1
            return self.tokens[self.at - 1].text
        return None

    def expr(self):
        value = self.term()
        while op := self.accept("+", "-"):
            right = self.term()
            value = value + right if op == "+" else value - right
        return value

    def term(self):
        value = self.factor()
        while op := self.accept("*", "/"):
            right = self.factor()
            value = value * right if op == "*" else value / right
        return value

    def factor(self):
        if self.accept("-"):
            return -self.factor()
        base = self.atom()
        return base ** self.factor() if self.accept("^") else base

    def atom(self):
        if self.accept("("):
            value = self.expr()
            if not self.accept(")"):
                raise SyntaxError("expected )")
            return value
        token = self.current
        self.at += 1
        match token:
            case Token(kind="NUM", text=text):
                return float(text)
            case Token("ID", name, _) if name in self.names:
                return self.names[name]
            case Token(kind, text):
                raise SyntaxError(f"unexpected {kind} {text!r}")


def check_calculator():
    out = []
    for text in ("1 + 2 * 3", "(1+2)*3", "2^3^2", "-x/4", "1 +", "1 $ 2", "(1"):
        try:
            out.append(Parser(text, {"x": 10}).expr())
        except SyntaxError as err:
            out.append(err.msg)
    return out


def check_ini():
    section, out = None, {}
    for number, raw in enumerate("# c\n[a]\nx = 1\ny= two words ; note\n\n[b]\nflag\n".splitlines(), 1):
        line = raw.split(";")[0].strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            section = out.setdefault(line[1:-1], {})
        elif "=" in line:
            k, v = map(str.strip, line.split("=", 1))
            section[k] = int(v) if v.isdigit() else v
        else:
            section[line] = True
    return out


def check_template():
    def render(text, **values):
        def one(m):
            name, _, filters = m[1].partition("|")
            value = values.get(name.strip(), "")
            for f in filter(None, map(str.strip, filters.split("|"))):
                value = {"upper": str.upper, "len": len, "trim": str.strip}[f](value)
            return str(value)
        return re.sub(r"\{\{(.*?)\}\}", one, text)
    return render("Hi {{ name | upper }}, {{name|len}} {{missing}}!", name="ann")


def check_roman():
    table = dict(zip("IVXLCDM", (1, 5, 10, 50, 100, 500, 1000)))
    def roman(s): return sum(-table[a] if table[a] < table.get(b, 0) else table[a] for a, b in zip(s, s[1:] + " "))
    return [roman(s) for s in ("XIV", "MCMXCIV")]


@total_ordering
class Version:
    pattern = re.compile(r"^(\d+)\.(\d+)\.(\d+)(?:-([\w.]+))?$")
    def __init__(self, text):
        if not (m := self.pattern.match(text)): raise ValueError(f"not a version: {text!r}")
        self.parts, self.pre = tuple(map(int, m.groups()[:3])), m[4]
    def _key(self): return (self.parts, self.pre is None, self.pre or "")
    def __eq__(self, o): return self._key() == o._key() if isinstance(o, Version) else NotImplemented
    def __lt__(self, o): return self._key() < o._key()
    def __hash__(self): return hash(self._key())
    def __repr__(self): return ".".join(map(str, self.parts)) + (f"-{self.pre}" if self.pre else "")


def check_versions():
    try: Version("x")
    except ValueError as e: bad = str(e)
    return [repr(sorted(map(Version, ["1.10.0", "1.2.0", "1.2.0-rc.1"]))), Version("1.0.0") >= Version("1.0.0-a"), Version("1.0.0") == 3, bad, len({Version("1.0.0"), Version("1.0.0")})]


def check_cron():
    def expand(text, low, high):
        out = set()
        for part in text.split(","):
            part, _, step = part.partition("/")
            a, b = (low, high) if part == "*" else (part.split("-") * 2)[:2] if "-" not in part else part.split("-")
            out |= set(range(int(a), int(b) + 1, int(step or 1)))
        return sorted(out)
    return [expand("*/20", 0, 59), expand("1-3,7", 0, 9)]


def check_duration():
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    def seconds(text): return sum(int(n) * units[u] for n, u in re.findall(r"(\d+)([dhms])", text))
    def human(n):
        parts = []
        for u, size in units.items():
            k, n = divmod(n, size)
            if k: parts.append(f"{k}{u}")
        return "".join(parts) or "0s"
    return [seconds("1h30m"), human(5405), human(0)]


def check_diff():
    old, new = {"a": 1, "b": 2, "c": {"x": 1}}, {"a": 1, "b": 3, "d": 4}
    return {"added": sorted(new.keys() - old.keys()), "removed": sorted(old.keys() - new.keys()), "changed": {k: [old[k], new[k]] for k in old.keys() & new.keys() if old[k] != new[k]}}


def check_json_path():
    doc = {"a": [{"b": 1}, {"b": 2}], "c": {"d": "e"}}
    def get(doc, path, default=None):
        for part in path.strip("/").split("/"):
            try:
                doc = doc[int(part)] if isinstance(doc, list) else doc[part]
            except (KeyError, IndexError, ValueError, TypeError):
                return default
        return doc
    return [get(doc, "/a/1/b"), get(doc, "/c/d"), get(doc, "/a/9/b", "none"), get(doc, "/c/d/e")]


class Runnable:
    def process(self, queries):
        return [
            check_calculator(),
            check_ini(),
            check_template(),
            check_roman(),
            check_versions(),
            check_cron(),
            check_duration(),
            check_diff(),
            check_json_path(),
        ]
