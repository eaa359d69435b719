"""Logs, CSV, numbers and ids, taken apart."""
import csv
import io
import json
import re
import shlex
import string
from typing import NamedTuple, Optional
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlencode, urljoin, urlparse, urlsplit, urlunparse

LINE = re.compile(
    r"""
    (?P<host>\S+)\s+\S+\s+(?P<user>\S+)\s+
    \[(?P<when>[^\]]+)\]\s+
    "(?P<method>[A-Z]+)\s(?P<path>\S+)[^"]*"\s+
    (?P<status>\d{3})\s(?P<size>\d+|-)
    """,
    re.VERBOSE,
)
LOG = '''
10.0.0.1 - ann [01/Mar/2024:10:00:00 +0000] "GET /a/b?x=1&y=2 HTTP/1.1" 200 512
10.0.0.2 - - [01/Mar/2024:10:00:01 +0000] "POST /login HTTP/1.1" 401 -
garbage
'''


class Hit(NamedTuple):
    """One request of an access log."""

    host: str
    path: str
    status: int
    size: Optional[int] = None

    @property
    def failed(self) -> bool:
        return self.status >= 400


def parse(line: str):
    if not (match := LINE.match(line)):
        raise ValueError(f"not a log line: {line!r}")
    parts = match.groupdict()
    size = int(parts["size"]) if parts["size"].isdigit() else None
    return Hit(match["host"], match.group("path"), int(match[6]), size)


def check_log():
    hits, bad = [], []
    for number, line in enumerate(LOG.strip().splitlines(), 1):
        try:
            hits.append(parse(line))
        except ValueError as err:
            bad.append((number, str(err)))
    return [[h._asdict() for h in hits], bad, [h.failed for h in hits], hits[0]._replace(size=1), Hit._fields, Hit(*"abc").size, hits[1].index(401)]


def check_regex():
    text = "a1b22c333 2024-01-02 foo@example.com bar@test.org"
    swap = re.sub(r"(\w+)@(\w+)\.(\w+)", r"\2.\3/\1", text)
    upper = re.sub(r"(?P<word>[a-z]+)", lambda m: m.group("word").upper(), "ab cd", count=1)
    spans = [(m.start(), m.end(), m.span(), m.group()) for m in re.finditer(r"\d+", text)]
    return [
        swap, upper, spans[:2], re.split(r"[\s,;]+", "a, b;c  d"), re.findall(r"(\d{4})-(\d\d)", text), re.subn("a", "b", "aaa"),
        bool(re.fullmatch(r"\d+", "12")), re.escape("a.b"), re.search(r"(?i)FOO", text)[0], re.compile("x", re.I | re.M).flags & re.I > 0,
        re.match("(a)(b)?", "a").groups(default="-"), re.match("(?P<n>a)", "a").lastgroup, re.compile(r"(?P<n>a)(b)").groupindex["n"], re.match("a", "ab").string, re.sub(r"\bx\b", "y", "x ax x", flags=re.I), re.match(r"(\d+)", "12").expand(r"<\1>"),
    ]


def check_csv():
    rows = list(csv.DictReader(io.StringIO("id,name,price\n1,\"Pen, blue\",1.50\n2,Ink,\n")))
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=["id", "total"], lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({"id": r["id"], "total": float(r["price"] or 0) * 2, "x": 1} for r in rows)
    simple = io.StringIO()
    csv.writer(simple, delimiter=";", quoting=csv.QUOTE_ALL, lineterminator="|").writerow([1, "a"])
    tabs = list(csv.reader("a\tb\nc\td".splitlines(), delimiter="\t"))
    return [[dict(r) for r in rows], out.getvalue(), simple.getvalue(), tabs, [row for row in csv.reader(["x,y"])]]


def check_numbers():
    def number(text):
        for kind in (int, float):
            try:
                return kind(text.replace(",", ""))
            except ValueError:
                continue
        return None
    return [number("1,234"), number("1.5e3"), number("x"), int("ff", 16), int("0b101", 0), float("inf") > 1, "12".zfill(5), f"{1234567.891:,.2f}", f"{255:#x} {255:08b} {0.256:.1%} {1e9:g} {5:+d} {3.14159:10.2f}|{'x':^5}|{'y':*>4}"]


def check_urls():
    url = urlparse("https://u:p@example.com:8443/a%20b/c?x=1&x=2&y=#frag")
    return [
        url.scheme, url.hostname, url.port, url.username, url.path, unquote(url.path), parse_qs(url.query), parse_qsl(url.query, keep_blank_values=True), url.fragment,
        urlencode({"a": "b c", "d": [1, 2]}, doseq=True), quote("a/b c", safe=""), urljoin("http://x/y/z", "../w"), urlunparse(url._replace(query="", fragment="")), urlsplit("http://h/p?q").query, url.geturl(),
    ]


def check_key_values():
    line = 'level=info msg="user logged in" user=ann ms=12'
    pairs = dict(token.partition("=")[::2] for token in shlex.split(line))
    found = {k: v.strip('"') for k, v in re.findall(r'(\w+)=("[^"]*"|\S+)', line)}
    return [pairs, found == pairs]


def check_ids():
    table = str.maketrans({"-": None, "_": " "})
    digits = [int(c) for c in "4539 1488 0343 6467" if c in string.digits]
    luhn = sum(sum(divmod(d * 2, 10)) if i % 2 else d for i, d in enumerate(reversed(digits))) % 10 == 0
    return ["ab-c_d".translate(table), luhn, "ORD-2024-0007".rsplit("-", 1), "x".join(string.ascii_lowercase[:3]), "CamelCaseName".swapcase(), re.sub(r"(?<!^)(?=[A-Z])", "_", "CamelCaseName").lower(), "snake_case_name".title().replace("_", "")]


def check_json_forms():
    class Point:
        def __init__(self, x):
            self.x = x

    class Encoder(json.JSONEncoder):
        def default(self, o):
            if isinstance(o, set):
                return sorted(o)
            return super().default(o)

    def default(o):
        if isinstance(o, Point):
            return {"x": o.x}
        raise TypeError(f"{type(o).__name__} is not serializable")

    try:
        json.loads('{"a": }')
    except json.JSONDecodeError as err:
        where = [err.pos, err.lineno, err.colno, err.msg]
    try:
        json.dumps(Point(1))
    except TypeError as err:
        what = str(err)
    from decimal import Decimal
    return [
        json.dumps({"b": {1, 2}, "a": None}, cls=Encoder, sort_keys=True), json.dumps([Point(3)], default=default, indent=2), where, what,
        str(json.loads("1.10", parse_float=Decimal)), json.loads('{"t": 1}', object_hook=lambda d: list(d.items())), json.loads('{"a":1,"a":2}', object_pairs_hook=lambda p: p), json.dumps("é", ensure_ascii=False), json.dumps([1, 2], separators=(",", ":")), json.loads(b"[1]"),
    ]


class Runnable:
    def process(self, queries):
        return [
            check_log(),
            check_regex(),
            check_csv(),
            check_numbers(),
            check_urls(),
            check_key_values(),
            check_ids(),
            check_json_forms(),
        ]
