"""Secrets on the host: the marks that stand for them in a guest, and taking their values out of answers.

A guest knows a secret by a mark, an unguessable text made for this process's life of the route. `Vault`
puts the value in its place, in the parts of a request that may carry one, when the request goes to a host
that the secret is bound to. `Scrubber` takes values out of what comes back.

Invariant: a value leaves this module only in what `Vault.fill` and `Vault.fill_body` return, and these go
to the one server that was named to them.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html.entities import codepoint2name
from typing import Any
from urllib.parse import quote_plus

from processor.address import Url, parse_url
from processor.capability.permit import Permit, allow_all
from processor.errors import ProcessorError
from processor.policy import Ask
from processor.reach import BoundSecret
from processor.sandbox import documents
from processor.sandbox.bounds import nests_deeper
from processor.sandbox.values import DEPTH

GONE = b"***"
STEP_BYTES = 128 << 10
PATH_CHARS = 8  # of a path that is a secret by itself; as of secrets
BASE_CHARS = 1024  # of a secret that a URL begins with
ESCAPED_BYTES = 20  # of one character, in the longest of the forms below


@dataclass(frozen=True, slots=True)
class Located:
    """The URL of a request. Where it begins with a secret, nobody may read it, and `name` is the secret's."""

    url: Url = field(repr=False)
    name: str = ""
    mark: str = ""
    base: Url | None = field(default=None, repr=False)  # what the secret says

    def hide(self, text: str) -> str:
        """A sentence with the name of the secret in place of what it says."""
        return self._says.sub(f"secret.{self.name}", text) if self.base is not None else text

    def shown(self, url: Url) -> str:
        """A URL that the call has led to, as the guest may know it: with the mark, to be used again."""
        text = str(url)
        if self.base is None:
            return text
        beginning = f"{self.base.scheme}://{self.base.authority}{self.base.path.rstrip('/')}"
        rest = text.removeprefix(beginning)
        return self.mark + rest if rest != text and rest[:1] in ("", "/", "?") else self.hide(text)

    @property
    def _says(self) -> re.Pattern[str]:
        base, path = self.base, self.base.path.rstrip("/") if self.base is not None else ""
        assert base is not None
        server = f"{base.scheme}://{base.authority}"
        parts = dict.fromkeys(filter(None, (server + path, server, base.authority, base.host, path)))
        return re.compile("|".join(rf"(?<![\w.-]){re.escape(part)}(?![\w-])" for part in parts))


class Vault:
    """The secrets that one route may use. `marks` is what its guests get: a text for each name."""

    def __init__(self, bound: Sequence[BoundSecret]) -> None:
        self._bound = bound
        self._permit: Permit = allow_all
        self._scrubbers: dict[frozenset[str], Scrubber] = {}
        self.marks = {secret.name: f"secret.{secret.name}.{secrets.token_hex(16)}" for secret in bound}
        self._by_mark = {self.marks[secret.name]: secret for secret in bound}
        self._marks = re.compile("|".join(map(re.escape, self._by_mark)) or r"(?!)")

    def under(self, permit: Permit) -> Vault:
        """The same secrets, of each of which `permit` is asked before its value is given out."""
        other = copy.copy(self)
        other._permit = permit
        return other

    def scrubber(self, url: Url) -> Scrubber:
        """What takes out of an answer of that server the secrets that are bound to it.

        No others: what is taken out of the answer of a server that can say anything would confirm guesses of
        a secret that it never gets.
        """
        ours = [secret for secret in self._bound if _covers(secret, url)]
        names = frozenset(secret.name for secret in ours)
        if names not in self._scrubbers:
            values = [secret.value for secret in ours]
            self._scrubbers[names] = Scrubber([*values, *filter(None, map(_path_of, values))])
        return self._scrubbers[names]

    def locate(self, text: str) -> Located:
        """What a URL means. It may begin with a secret, whose value is then all that says which server it is.

        Raises ValueError for what is no URL, and ProcessorError E326 for a secret that no URL may begin with,
        or not this one.
        """
        found = self._marks.match(text)
        if found is None:
            return Located(parse_url(text))
        secret, rest = self._by_mark[found[0]], text[found.end() :]
        base, name = _base_of(secret.value), secret.name
        if rest[:1] not in ("", "/", "?"):
            what = f"the URL goes on with {rest[0]!r} behind the secret {name!r}"
            raise _misplaced(what, "Only '/' or '?' may follow a secret that a URL begins with.")
        if base is None:
            what = f"a URL cannot begin with the secret {name!r}"
            raise _misplaced(what, "Its value has to be http:// or https://, a host, and a path at most.")
        if not _covers(secret, base):
            what = f"the secret {name!r} may not be sent to the server that it names"
            raise _misplaced(what, f"To allow it: add that host to secrets.{name}.hosts.")
        self.refuse_marks(rest.partition("?")[0], "the path of a URL")
        # What it complains of says nothing of the secret, not even how long it is.
        parse_url(f"{base.scheme}://host{'/' * BASE_CHARS}{rest}")
        return Located(parse_url(secret.value + rest), name, found[0], base)

    def use(self, located: Located) -> None:
        """Return if the secret that a URL begins with may be used. Raises ProcessorError E330 and E331."""
        if located.name:
            self._permit(Ask("secret", "use", located.name))

    def holds_mark(self, text: str) -> bool:
        return bool(self._marks.search(text))

    def refuse_marks(self, text: str, what: str) -> None:
        """Raise ProcessorError E326 where a secret stands in a part of a request that may not carry one."""
        if found := self._marks.search(text):
            raise ProcessorError(
                "E326",
                f"the secret {self._by_mark[found[0]].name!r} cannot be used in {what}",
                place="requests",
                remedy="It can stand in the values of headers, params, JSON and form fields, in `auth`,"
                " and at the beginning of a URL.",
            )

    def fill(self, text: str, url: Url, write: Callable[[str], str] = str) -> str:
        """`text` with the values, written with `write`, of the secrets that are bound to the host of `url`.

        Raises ProcessorError E326 for any other secret.
        """
        return self._marks.sub(lambda found: write(self._value(self._by_mark[found[0]], url)), text)

    def fill_body(self, body: bytes, kind: str, url: Url) -> bytes:
        """A body of JSON or of form fields with its secrets filled in. Raises ProcessorError E326."""
        text = body.decode("utf-8", "replace")
        if not self.holds_mark(text):
            return body
        if kind == "json":
            try:
                document = documents.loads(body)
            except ValueError:
                document, is_deep = None, True
            else:
                is_deep = nests_deeper(body, document, DEPTH)
            if is_deep:
                raise ProcessorError(
                    "E317", f"a body that is not JSON, or has more than {DEPTH} levels", place="requests"
                )
            document = self._fill_document(document, url)
            return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        if kind == "form":
            return self.fill(text, url, quote_plus).encode()
        self.refuse_marks(text, "a body that is neither JSON nor form fields")
        return body

    def _fill_document(self, value: Any, url: Url) -> Any:
        if isinstance(value, str):
            return self.fill(value, url)
        if isinstance(value, list):
            return [self._fill_document(item, url) for item in value]
        if isinstance(value, dict):
            for key in value:
                self.refuse_marks(key, "a key of JSON")
            return {key: self._fill_document(item, url) for key, item in value.items()}
        return value

    def _value(self, secret: BoundSecret, url: Url) -> str:
        if _covers(secret, url):
            self._permit(Ask("secret", "use", secret.name))
            return secret.value
        raise ProcessorError(
            "E326",
            f"the secret {secret.name!r} may not be sent to {url.scheme}://{url.authority}",
            place="requests",
            remedy="To allow it: add the host to "
            f"secrets.{secret.name}.hosts{'' if url.scheme == 'https' else ', with http:// in front'}.",
        )


def _misplaced(what: str, remedy: str) -> ProcessorError:
    return ProcessorError("E326", what, place="requests", remedy=remedy)


def _base_of(value: str) -> Url | None:
    """The URL that a secret is, where others may begin with it."""
    if "?" in value or "#" in value or len(value) > BASE_CHARS:
        return None
    with contextlib.suppress(ValueError):
        return parse_url(value)
    return None


def _path_of(value: str) -> str:
    """The path of a secret that is a URL, where that is long enough to be a secret by itself."""
    base = _base_of(value)
    path = base.path.rstrip("/") if base is not None else ""
    return path if len(path) >= PATH_CHARS else ""


def _covers(secret: BoundSecret, url: Url) -> bool:
    return any(binding.covers(url) for binding in secret.bindings)


class Scrubber:
    """Takes values out of bytes, in every form in which a server may repeat them.

    As they are, in small or capital letters, and as URLs, JSON, HTML, base64 and hexadecimal digits write
    them. What a server encrypts, compresses or turns around is beyond it.
    """

    def __init__(self, values: Iterable[str]) -> None:
        values = sorted({value for value in values if value}, key=len, reverse=True)
        plain = {form for value in values for form in _plain_forms(value)}
        self._plain = [
            (form.lower(), re.compile(re.escape(form), re.IGNORECASE))
            for form in sorted(plain, key=len, reverse=True)
        ]
        patterns = [b"".join(map(_escaped_forms, value)) for value in values]
        self._escaped = re.compile(b"|".join(patterns), re.IGNORECASE) if patterns else None
        self._longest = ESCAPED_BYTES * max(map(len, values), default=0)
        self._values = values
        self._beginnings: list[_Beginnings] | None = None
        self._signs = [b"\\", b"%", b"&", *([b"+"] if any(" " in value for value in values) else [])]

    def body(self, data: bytes) -> bytes:
        lowered = data.lower() if self._plain else b""
        for form, pattern in self._plain:
            if form in lowered:
                data = pattern.sub(GONE, data)
        # Only with one of these can a text stand in another form than its own; the search below is slow.
        if self._escaped and any(sign in data for sign in self._signs):
            data = self._without_escaped(self._escaped, data)
        return data

    def _without_escaped(self, pattern: re.Pattern[bytes], data: bytes) -> bytes:
        # In steps, since a search lets no other thread run: 60 ms for a MiB that is full of escapes.
        kept, start, position = [], 0, 0
        while position < len(data):
            found = pattern.search(data, position, position + STEP_BYTES + self._longest)
            if found is None:
                position += STEP_BYTES
                continue
            kept += [data[start : found.start()], GONE]
            start = position = found.end()
        return b"".join([*kept, data[start:]]) if kept else data

    def stream(self) -> ScrubbedStream:
        """What takes the values out of bytes that come in pieces."""
        if self._beginnings is None:
            self._beginnings = [_Beginnings(value) for value in self._values]
        return ScrubbedStream(self)

    def settled(self, data: bytes) -> int:
        """How many bytes of `data` are decided: whatever follows, no form of a value begins in them that does
        not end there.
        """
        lowered, cut = data.lower(), len(data)
        for form, _ in self._plain:
            cut = min(cut, _beginning_of(form, lowered))
        for value in self._beginnings or ():
            cut = min(cut, value.earliest(lowered))
        while 0 < cut < len(data) and (start := self._form_across(data, lowered, cut)) is not None:
            cut = start
        return cut

    def _form_across(self, data: bytes, lowered: bytes, cut: int) -> int | None:
        """Where a whole form begins that a cut would divide."""
        for form, _ in self._plain:
            start = lowered.find(form, max(0, cut - len(form) + 1), cut + len(form) - 1)
            if 0 <= start < cut:
                return start
        start = max(0, cut - self._longest)
        while self._escaped and (found := self._escaped.search(data, start)) and found.start() < cut:
            if found.end() > cut:
                return found.start()
            start = found.start() + 1
        return None

    def text(self, text: str) -> str:
        if not self._plain:
            return text
        return self.body(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")


class ScrubbedStream:
    """Takes the values of a scrubber out of what comes in pieces, wherever these divide one.

    What may be the beginning of a value is held back until more has come.
    """

    def __init__(self, scrubber: Scrubber) -> None:
        self._scrubber = scrubber
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """What may go on of this piece, and of what was held back before it."""
        data = self._held + piece
        cut = self._scrubber.settled(data)
        self._held = data[cut:]
        return self._scrubber.body(data[:cut])

    def finish(self) -> bytes:
        """The rest: nothing more will come."""
        held, self._held = self._held, b""
        return self._scrubber.body(held)


class _Beginnings:
    """Finds where at the end of a text a value may begin, each of its characters in any of its forms."""

    def __init__(self, value: str) -> None:
        self._chars = [re.compile(_escaped_forms(char), re.IGNORECASE) for char in value]
        self._bytes = [char.encode().lower() for char in value]
        first = re.escape(self._bytes[0][:1]) + (b"+" if value[0] == " " else b"")
        self._first = re.compile(rb"[\\%&" + first + b"]")
        self._window = ESCAPED_BYTES * len(value)

    def earliest(self, lowered: bytes) -> int:
        """The first place from where the rest may be the beginning of the value; the end without one."""
        for found in self._first.finditer(lowered, max(0, len(lowered) - self._window)):
            if self._may_begin(lowered, found.start()):
                return found.start()
        return len(lowered)

    def _may_begin(self, lowered: bytes, at: int) -> bool:
        for form, char in zip(self._chars, self._bytes, strict=True):
            if at == len(lowered) or _OPEN_ESCAPE.match(lowered, at) or char.startswith(lowered[at:]):
                return True
            found = form.match(lowered, at)
            if found is None:
                return False
            at = found.end()
        return False  # it is whole


# What may be the beginning of an escaped character.
_OPEN_ESCAPE = re.compile(rb"[\\%%&][\\%%&#a-z0-9]{0,%d}\Z" % ESCAPED_BYTES)


def _beginning_of(form: bytes, lowered: bytes) -> int:
    """The first place from where all of the rest is the beginning of a form; the end without one."""
    at = lowered.find(form[:1], max(0, len(lowered) - len(form) + 1))
    while at >= 0:
        if form.startswith(lowered[at:]):
            return at
        at = lowered.find(form[:1], at + 1)
    return len(lowered)


def _plain_forms(value: str) -> Iterable[bytes]:
    data = value.encode()
    yield data
    if not value.isascii():
        yield data.decode("latin-1").encode()  # the bytes of a header, as an answer gives them
    for coding in ("utf-16-le", "utf-16-be"):
        yield value.encode(coding)
    yield data.hex().encode()
    for before in range(3):
        # The digits that hold bits of the value alone, whatever stands in front of it and behind.
        digits = base64.b64encode(b"\0" * before + data)[-(-before * 8 // 6) : (before + len(data)) * 8 // 6]
        yield digits
        yield digits.translate(bytes.maketrans(b"+/", b"-_"))


def _escaped_forms(char: str) -> bytes:
    """A pattern for one character, as itself or as URLs, JSON and HTML escape it."""
    data = char.encode()
    units = char.encode("utf-16-be").hex()
    unicode = b"".join(rb"\\u" + _digits(units[at : at + 4]) for at in range(0, len(units), 4))
    forms = [b"".join(b"%" + _digits(f"{byte:02x}") for byte in data), unicode]
    forms += [rb"\\x" + _digits(f"{byte:02x}") for byte in data[:1] if len(data) == 1]
    forms += [rb"&#0{0,7}%d;" % ord(char), rb"&#[xX]0{0,7}" + _digits(f"{ord(char):x}") + b";"]
    forms += [b"&" + codepoint2name[ord(char)].encode() + b";"] if ord(char) in codepoint2name else []
    forms += [b"&apos;"] if char == "'" else []
    forms += [rb"\\" + re.escape(data)] if char in "\"\\/'" else []
    forms += [rb"\+"] if char == " " else []
    forms.append(re.escape(data))  # last: a backslash is also the beginning of two
    return b"(?:" + b"|".join(forms) + b")"


def _digits(text: str) -> bytes:
    """Hexadecimal digits in either case."""
    return b"".join(
        f"[{digit}{digit.upper()}]".encode() if digit.isalpha() else digit.encode() for digit in text
    )
