"""Strings, formatting and templates."""
import html
import io
import string
import textwrap
import unicodedata
import pprint
from pprint import pformat
from string import Template


class User:
    def __init__(self, name, tags): self.name, self.tags = name, tags
    def __format__(self, spec): return f"<{self.name}:{spec}>"
    def __repr__(self): return f"User({self.name!r})"


def check_format():
    u = User("ann", {"a": [1, 2]})
    width, value = 8, 3.14159
    return [
        "{} {1}".replace("{}", "{0}").format("a", "b"), "{name:>{w}}|".format(name="x", w=5), "{0.name} {0.tags[a][1]}".format(u), "{u.name!r:>8}".format(u=u), "{:05.1f} {:,} {:x}".format(2.25, 12345, 255), "{a[k]}".format(a={"k": "v"}), "{:{}}".format("x", 3), "{{}}".format(),
        "{x} {y}".format_map({"x": 1, "y": 2}), f"{value:{width}.2f}|{value!r}|{u!s}|{u:long}|{value = :.1f}|{u.name.upper()=}", f"{'nested ' + f'{1 + 1}'}", f"{{literal}} {[x for x in range(2)]} {dict(a=1)['a']}", "%s is %d, %5.2f, %-4s|%04d %x %r %%" % ("a", 3, 1.5, "z", 7, 255, "q"), "%(k)s=%(v)r" % {"k": 1, "v": "2"}, "%s" % u, "%s" % (1,), "{:%}".format(0.5), "{!r}".format("x"), "{:^9}".format("mid"), "{0:b} {0:o} {0:e}".format(10), format(1234.5, ",.1f"), format(u, "s"),
    ]


class Defaults(dict):
    def __missing__(self, key): return "{" + key + "}"


def check_templates():
    t = Template("$who owes $$${amount} to ${who}s")
    return [t.substitute(who="ann", amount=5), t.safe_substitute(who="b"), Template("$x").substitute({"x": 1}), "{a} {b}".format_map(Defaults(a=1)), textwrap.dedent("""
        a
          b
        """), textwrap.fill("one two three four", 9), textwrap.shorten("hello big world", 10, placeholder="..."), textwrap.indent("a\nb", "> "), textwrap.wrap("aaa bbb ccc", 7), html.escape("<a href='x'>&"), html.unescape("&lt;&eacute;"), string.capwords("a bc"), string.punctuation[:3]]


def check_methods():
    s = "  Hello, World  "
    return [
        s.strip(), s.lstrip(), s.rstrip(), s.lower(), s.casefold(), s.title(), "ab".capitalize(), "a-b-c".split("-", 1), "a b  c".split(), "k=v=w".partition("="), "k=v=w".rpartition("="), "a,b".replace(",", ";"), "abcabc".find("c"), "abcabc".rfind("c"), "abc".index("b"), "aXbX".count("X"), "abc".startswith(("x", "a")), "abc".endswith("bc"), "ab".center(6, "*"), "7".rjust(3, "0"), "x".ljust(3) + "|", "a\nb\r\nc".splitlines(), "a\tb".expandtabs(4), "prefix-x".removeprefix("prefix-"), "x.txt".removesuffix(".txt"),
        "abc".isalpha(), "12".isnumeric(), "a1".isalnum(), " ".isspace(), "Ab".istitle(), "ab".islower(), "a_b".isidentifier(), "½".isdecimal(), "abc".encode().hex(), bytes.fromhex("6162").decode("ascii"), "ß".upper(), "straße".casefold(), ",".join(map(str, [1, 2])), "ab" * 2, "abc"[::-1], "abcdef"[1:5:2], "b" in "abc", "a" < "b", ord("a"), chr(8364), ascii("é"), "%s" % None, str(b"x", "utf-8"), "é".encode("latin-1").decode("cp1252"), "x".join([]), "a\\n", r"a\n", "é" == unicodedata.normalize("NFC", "e\u0301"), "a" "b",
        unicodedata.name("é"), unicodedata.category("A"), "".join(c for c in unicodedata.normalize("NFD", "éà") if not unicodedata.combining(c)), "abc".translate(str.maketrans("abc", "xyz")), "résumé".encode("ascii", "ignore").decode(), "a,b;c".replace(";", ",").split(","), str(3.0), repr("it's"), "\N{BULLET}",
    ]


def check_slug():
    def slugify(text):
        text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
        return "-".join("".join(c if c.isalnum() else " " for c in text).split())
    return slugify("Héllo,  Wörld! 2024")


def check_pretty():
    data = {"b": [1, 2, {"c": "d" * 30}], "a": ("x" * 20, "y" * 20, "z" * 20), "s": {3, 1}}
    return [pformat(data, width=40), pformat([1, 2]), pprint.pformat({"z": 1, "a": 2}, sort_dicts=False), pformat({"k": User("u", {})}), pprint.pformat("a long string " * 10, width=30), pprint.saferepr([1]), pprint.pformat({"a": {"b": {"c": 1}}}, depth=2)]


def check_report():
    rows = [("pen", 2, 1.5), ("notebook", 10, 12.25)]
    out = io.StringIO()
    print(f"{'item':<10}{'n':>4}{'price':>8}", file=out)
    for name, n, price in rows:
        print(f"{name:<10}{n:>4}{price:>8.2f}", file=out)
    print("-" * 22, "total", sum(n * p for _, n, p in rows), sep="|", end="\n", file=out)
    out.write("x")
    out.seek(0)
    return [out.read(), out.getvalue().count("\n"), io.StringIO("a\nb").readlines(), [line.rstrip() for line in io.StringIO("c\nd\n")], io.BytesIO(b"ab").read(1).decode()]


class Runnable:
    def process(self, queries):
        return [
            check_format(),
            check_templates(),
            check_methods(),
            check_slug(),
            check_pretty(),
            check_report(),
        ]
