"""URLs, hosts and addresses as data: what a URL means, and whether a list of entries allows it.

The configuration checks its entries here, and `http` decides here about every URL that a guest asks for and
every address that a name resolves to. Nothing here looks a name up or opens a connection.

One reading of a URL must be the only one: what two parsers could take for two different hosts is refused,
not repaired. An address is judged by where its packets end up, so one that carries another (mapped, 6to4,
NAT64) is judged as that other one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import quote, quote_plus, urljoin

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

URL_CHARS = 8192
PORTS = {"http": 80, "https": 443}

_PARTS = re.compile(r"(?i:(https?))://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#.*)?\Z", re.DOTALL)
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]%]+))(?::([0-9]{1,5}))?\Z")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_NUMERIC = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")
_UNUSABLE = re.compile("[\x00-\x1f\x7f-\xa0\\\\\u2028\u2029]")
_DOTS = re.compile("[\u3002\uff0e\uff61]")  # what some readers take for a dot
_KEPT = "/%:@!$&'()*+,;=~-._"


@dataclass(frozen=True, slots=True)
class Url:
    """A URL that has one meaning. `host` is ASCII, in lower case, without brackets or a last dot."""

    scheme: str
    host: str
    port: int
    path: str
    query: str = ""
    address: Address | None = None  # set where the host is an address and not a name

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def target(self) -> str:
        """What a request asks for: path and query, in ASCII."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def authority(self) -> str:
        """The host as a Host header names it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def with_query(self, pairs: Sequence[tuple[str, str]]) -> Url:
        """This URL with more fields at the end of its query. Raises ValueError."""
        more = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in pairs)
        return replace(self, query="&".join(filter(None, (self.query, more))))

    def joined(self, location: str) -> Url:
        """Where a redirect from here to `location` leads. Raises ValueError."""
        return parse_url(urljoin(str(self), location.strip(" \t")))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


@lru_cache(256)  # one request is judged in several places
def parse_url(text: str) -> Url:
    """The meaning of an absolute URL. Raises ValueError, whose sentence says what is wrong with it."""
    if len(text) > URL_CHARS:
        raise ValueError(f"a URL of {len(text)} characters; {URL_CHARS} are the most")
    if found := _UNUSABLE.search(text):
        raise ValueError(f"it holds the character {found[0]!r}")
    parts = _PARTS.match(text)
    if not parts:
        raise ValueError("it must be http://host/path or https://host/path")
    scheme, netloc = parts[1].lower(), parts[2]
    if "@" in netloc:
        raise ValueError("a user or password in a URL is not taken; use `auth` or a header")
    authority = _AUTHORITY.match(netloc)
    if not authority:
        raise ValueError(f"{netloc[:80]!r} is no host, with a port or without")
    port = int(authority[3]) if authority[3] else PORTS[scheme]
    if not 0 < port < 65536:
        raise ValueError(f"there is no port {port}")
    host, address = _host(authority[1], authority[2])
    try:
        path, query = quote(parts[3] or "/", safe=_KEPT), quote(parts[4] or "", safe=_KEPT + "?")
    except UnicodeEncodeError:
        raise ValueError("it holds a lone surrogate, which is not text") from None
    return Url(scheme, host, port, path, query, address)


@lru_cache(maxsize=256)  # a program asks a few hosts again and again, and reading one takes most of the time
def _host(bracketed: str | None, name: str | None) -> tuple[str, Address | None]:
    if bracketed is not None:
        try:
            v6 = ipaddress.IPv6Address(bracketed)
        except ValueError:
            raise ValueError(f"[{bracketed[:60]}] is no IPv6 address") from None
        return str(v6), v6
    host = canonical_name(name or "")
    if not _NUMERIC.match(host.rpartition(".")[2]):
        return host, None
    try:
        # Nothing else that ends in a number: 127.1, 0x7f.0.0.1 and 2130706433 are addresses to some readers.
        v4 = ipaddress.IPv4Address(name.removesuffix(".") if name else "")
    except ValueError:
        raise ValueError(f"{host[:80]!r} is a number and not four decimal ones, such as 192.0.2.1") from None
    return str(v4), v4


def canonical_name(name: str) -> str:
    """A host name in ASCII, lower case, without its last dot. Raises ValueError."""
    shown = name[:80]
    if not name.isascii():
        import idna  # its tables take their time; few hosts need them

        if _DOTS.search(name):
            raise ValueError(f"{shown!r} holds a character that only looks like a dot")
        try:
            name = idna.encode(name, uts46=True, std3_rules=True).decode("ascii")
        except idna.IDNAError:
            raise ValueError(f"{shown!r} is no host name") from None
    host = name.lower().removesuffix(".")
    if len(host) > 253 or not all(_LABEL.match(label) for label in host.split(".")):
        raise ValueError(f"{shown!r} is no host name")
    return host


# Networks of IPv4 that no packet of the public internet belongs to; Python's own list differs by version.
_NOT_PUBLIC_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
            "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        ),
    )
)  # fmt: skip
# All of the public IPv6 is in 2000::/3, but for these parts of it.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})


def carried(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    number = int(address)
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or (number >> 32) & 0xFFFFFFFF in _ISATAP:
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    return address


def is_public(address: Address) -> bool:
    """Whether packets to `address` go out into the internet, and nowhere nearer."""
    inner = carried(address)
    if isinstance(inner, ipaddress.IPv4Address):
        return not any(inner in network for network in _NOT_PUBLIC_V4)
    return inner in _GLOBAL_V6 and not any(inner in network for network in _NOT_PUBLIC_V6)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list of hosts: a name, `*.suffix`, `*`, an address or a network; perhaps with a port.

    Without a port it means 80 for http and 443 for https.
    """

    text: str
    name: str = ""  # a whole name; with a dot in front a suffix; or *
    network: Network | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Raises ValueError, whose sentence says how an entry is written."""
        if "://" in text:
            raise ValueError("it must be a host alone, not a URL; with :port where it needs one")
        rest, port = text, None
        found = re.match(r"(\[[^\]]*\](?:/[0-9]+)?|[^:]+)(?::([0-9]{1,5}))?\Z", text)
        if found:
            rest, port = found[1], int(found[2]) if found[2] else None
        if port is not None and not 0 < port < 65536:
            raise ValueError(f"there is no port {port}")
        network = _network(rest)
        if network is not None:
            return cls(text, network=network, port=port)
        if rest == "*":
            return cls(text, name="*", port=port)
        try:
            name = canonical_name(rest.removeprefix("*."))
        except ValueError:
            name = "0"
        if _NUMERIC.match(name.rpartition(".")[2]):
            raise ValueError("it must be a host, *.suffix, *, an address, or a network such as 10.0.0.0/8")
        return cls(text, name=f".{name}" if rest.startswith("*.") else name, port=port)

    def covers(self, url: Url) -> bool:
        """Whether this entry names the host and the port of `url`."""
        if url.port != (PORTS[url.scheme] if self.port is None else self.port):
            return False
        if url.address is not None:
            if self.network is not None:
                return _contains(self.network, url.address)
            return self.name == "*" and is_public(url.address)
        if self.name == "*":
            return "." in url.host  # a name of one label is this network's own
        return url.host.endswith(self.name) if self.name.startswith(".") else url.host == self.name

    def covers_address(self, address: Address, port: int) -> bool:
        """Whether this entry names the address, with that port."""
        right_port = port in PORTS.values() if self.port is None else port == self.port
        return right_port and self.network is not None and _contains(self.network, address)


@dataclass(frozen=True, slots=True)
class Binding:
    """A host that a secret may be sent to: over https, or over http where `http://` stands in front.

    An address of this machine needs neither.
    """

    text: str
    entry: Entry
    is_plain: bool

    @classmethod
    def parse(cls, text: str) -> Binding:
        """Raises ValueError, whose sentence says how it is written."""
        is_plain = text.startswith("http://")
        entry = Entry.parse(re.sub(r"\Ahttps?://", "", text))
        if entry.name == "*":
            raise ValueError("a secret is bound to hosts by name, and '*' is every host")
        loopback = entry.network is not None and entry.network.is_loopback
        return cls(text, entry, is_plain or loopback)

    def covers(self, url: Url) -> bool:
        """Whether the secret may be part of a request to `url`."""
        return self.entry.covers(url) and (url.scheme == "https" or self.is_plain)


def _network(text: str) -> Network | None:
    bare = re.sub(r"\[([^\]]*)\]", r"\1", text)
    if "%" in bare:
        return None
    try:
        return ipaddress.ip_network(bare)
    except ValueError:
        return None


def _contains(network: Network, address: Address) -> bool:
    return address in network or carried(address) in network


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be reached: hosts by their entries, and of their addresses the public and the listed ones."""

    entries: tuple[Entry, ...] = ()
    any_address: bool = False  # the person who wrote the one host answers for where it is

    @classmethod
    def of(cls, texts: Iterable[str]) -> Allowed:
        """Raises ValueError for a text that is no entry."""
        return cls(tuple(map(Entry.parse, texts)))

    @classmethod
    def only(cls, url: Url) -> Allowed:
        """Nothing but the host and port of `url`, wherever it is."""
        network = None if url.address is None else ipaddress.ip_network(url.address)
        name = "" if url.address is not None else url.host
        return cls((Entry(url.authority, name, network, url.port),), any_address=True)

    def permits(self, url: Url) -> bool:
        """Whether the host of `url` may be asked, as far as its name says."""
        return any(entry.covers(url) for entry in self.entries)

    def permits_address(self, address: Address, port: int) -> bool:
        """Whether a name that may be asked may be found at this address."""
        if self.any_address or is_public(address):
            return True
        return any(entry.covers_address(address, port) for entry in self.entries)
