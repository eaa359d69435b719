"""What a URL means and what a list of hosts allows: the tables, and that no spelling gets around them."""

from __future__ import annotations

import ipaddress
import string
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.address import URL_CHARS, Allowed, Binding, Entry, carried, is_public, parse_url


@pytest.mark.parametrize(
    "text, canonical",
    [
        ("http://Example.COM", "http://example.com/"),
        ("https://example.com.:443/a?b=c#d", "https://example.com/a?b=c"),
        ("https://example.com:8443", "https://example.com:8443/"),
        ("http://example.com?q=1", "http://example.com/?q=1"),
        ("http://bücher.example/ü", "http://xn--bcher-kva.example/%C3%BC"),
        ("http://example.com/a b?c=d e", "http://example.com/a%20b?c=d%20e"),
        ("http://example.com/%2e%2e/%zz", "http://example.com/%2e%2e/%zz"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/"),
        ("http://[2001:DB8::0:1]:8080/", "http://[2001:db8::1]:8080/"),
        ("HTTPS://a_b.example/", "https://a_b.example/"),
    ],
)
def test_a_url_has_one_form(text: str, canonical: str) -> None:
    """Case, a last dot, default ports, fragments and characters beyond ASCII are put into one form."""
    assert str(parse_url(text)) == canonical
    assert str(parse_url(canonical)) == canonical


@pytest.mark.parametrize(
    "text, why",
    [
        ("ftp://example.com/", "it must be http://"),
        ("//example.com/", "it must be http://"),
        ("example.com", "it must be http://"),
        (" http://example.com/", "it must be http://"),
        ("http:/example.com", "it must be http://"),
        ("http://exam\nple.com/", r"it holds the character '\n'"),
        ("http://example.com/\t", r"it holds the character '\t'"),
        ("http://example.com/\x7f", "it holds the character"),
        ("http://example.com/\u2028", "it holds the character"),
        ("http://example.com\\@evil.com/", "it holds the character"),
        ("http://user:pw@example.com/", "a user or password"),
        ("http://example.com@evil.com/", "a user or password"),
        ("http://exam%70le.com/", "is no host"),
        ("http://exam ple.com/", "is no host name"),
        ("http://example..com/", "is no host name"),
        ("http://example.com../", "is no host name"),
        ("http://-a.com/", "is no host name"),
        ("http:///path", "is no host"),
        ("http://:80/", "is no host"),
        ("http://example.com:/", "is no host"),
        ("http://example.com:80:81/", "is no host"),
        ("http://example.com:٨٠/", "is no host"),
        ("http://example.com:0/", "there is no port 0"),
        ("http://example.com:65536/", "there is no port 65536"),
        ("http://2130706433/", "is a number and not four"),
        ("http://0x7f000001/", "is a number and not four"),
        ("http://0177.0.0.1/", "is a number and not four"),
        ("http://127.1/", "is a number and not four"),
        ("http://127.0.0.0x1/", "is a number and not four"),
        ("http://1.2.3.4.5/", "is a number and not four"),
        ("http://host.0x/", "is a number and not four"),
        ("http://１２７.0.0.1/", "is a number and not four"),
        ("http://①27.0.0.1/", "is a number and not four"),
        ("http://example。com/", "only looks like a dot"),
        ("http://[::1/", "is no host"),
        ("http://[::1%25eth0]/", "is no host"),
        ("http://[127.0.0.1]/", "is no IPv6 address"),
        ("http://[::1].example.com/", "is no host"),
        ("http://example.com/\ud800", "lone surrogate"),
        ("http://🎉.example/", "is no host name"),
        ("http://" + "a" * URL_CHARS, "are the most"),
    ],
)
def test_what_two_readers_could_take_for_two_urls_is_refused(text: str, why: str) -> None:
    """A URL is refused, with its reason, where another reader could see another host in it."""
    with pytest.raises(ValueError, match=r".") as refused:
        parse_url(text)
    assert why in str(refused.value)


def test_parameters_go_to_the_end_of_the_query() -> None:
    """Names and values are escaped, so that none of them can begin another."""
    url = parse_url("http://example.com/a?b=c").with_query([("d&", "e=#"), ("f", "g h")])
    assert url.target == "/a?b=c&d%26=e%3D%23&f=g+h"


NOT_PUBLIC = """
    0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1
    192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
    255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254
    64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 2001::1 2001:0:1:2:3:4:5:6 2001:db8::1
    2002:7f00:1:: 2002:a9fe:a9fe::1 2002:c0a8:101::1 3fff::1 5f00::1 fc00::1 fd12:3456::1 fe80::1 fec0::1
    ff02::1 2600:1f00::5efe:7f00:1 2600:1f00::200:5efe:10.0.0.1
"""
PUBLIC = (
    "8.8.8.8 1.1.1.1 172.32.0.1 100.128.0.1 2606:4700::1111 ::ffff:8.8.8.8 2002:808:808::1 64:ff9b::808:808"
)


@pytest.mark.parametrize("text", NOT_PUBLIC.split())
def test_an_address_that_is_not_of_the_internet_is_not_public(text: str) -> None:
    """Private, loopback, link-local, multicast, shared, reserved and tunnelled addresses are none."""
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC.split())
def test_an_address_of_the_internet_is_public(text: str) -> None:
    """So is one that carries such an address."""
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "entry, yes, no",
    [
        ("example.com", "https://example.com/ http://EXAMPLE.com./x", "https://a.example.com/ https://example.com:8443/"),
        ("example.com", "http://example.com/", "http://example.com:443/ https://example.com:80/"),
        ("example.com:8443", "https://example.com:8443/", "https://example.com/ http://example.com/"),
        ("*.example.com", "https://a.example.com/ https://a.b.example.com/", "https://example.com/ https://badexample.com/"),
        ("*", "https://example.com/ http://8.8.8.8/", "http://localhost/ http://127.0.0.1/ http://[::1]/ http://a.b:81/"),
        ("*:81", "http://a.b:81/", "http://a.b/ http://127.0.0.1:81/"),
        ("127.0.0.1", "http://127.0.0.1/ http://[::ffff:127.0.0.1]/", "http://127.0.0.2/ http://127.0.0.1:81/ http://localhost/"),
        ("10.0.0.0/8", "http://10.9.8.7/ https://10.0.0.0/", "http://11.0.0.1/ http://10.0.0.1:8080/"),
        ("[::1]:8080", "http://[::1]:8080/", "http://[::1]/ http://[::2]:8080/"),
        ("fd00::/8", "https://[fd00::1]/", "https://[fe00::1]/"),
        ("Bücher.example", "https://xn--bcher-kva.example/", "https://bucher.example/"),
        ("localhost", "http://localhost/", "http://localhost:8080/ http://localhost.example.com/"),
    ],
)  # fmt: skip
def test_an_entry_covers_what_it_says(entry: str, yes: str, no: str) -> None:
    """A name is a whole name, a suffix ends at a dot, and without a port it is 80 for http, 443 for https."""
    allowed = Allowed.of([entry])
    assert [url for url in yes.split() if not allowed.permits(parse_url(url))] == []
    assert [url for url in no.split() if allowed.permits(parse_url(url))] == []
    assert not Allowed().permits(parse_url(yes.split()[0]))


@pytest.mark.parametrize(
    "entry",
    [
        "", "*.", "**", "*.*", "a*", "*a.com", "a.*.com", "http://a.com", "a.com/x", "a b", "a@b", "a.com:0",
        "a.com:99999", "a.com:", "127.1", "2130706433", "*.5", "10.0.0.1/8", "fe80::1%eth0", "[::1",
        "[a.com]", "a..b", "-a.com",
    ],
)  # fmt: skip
def test_what_is_no_entry_is_refused(entry: str) -> None:
    """An entry that could never match, or would match something else than it looks like, does not load."""
    with pytest.raises(ValueError, match=r"."):
        Entry.parse(entry)


@pytest.mark.parametrize(
    "entries, address, port, is_allowed",
    [
        (["a.com"], "93.184.216.34", 443, True),
        (["a.com"], "10.0.0.1", 443, False),
        (["*"], "169.254.169.254", 80, False),
        (["a.com", "10.0.0.1"], "10.0.0.1", 443, True),
        (["a.com:8443", "10.0.0.1"], "10.0.0.1", 8443, False),
        (["a.com:8443", "10.0.0.1:8443"], "10.0.0.1", 8443, True),
        (["a.com", "10.0.0.0/8"], "::ffff:10.1.1.1", 80, True),
        (["a.com", "10.0.0.0/8"], "64:ff9b::10.1.1.1", 80, True),
        (["a.com", "10.0.0.0/8"], "::ffff:192.168.0.1", 80, False),
    ],
)
def test_a_name_is_found_only_at_public_or_listed_addresses(
    entries: list[str], address: str, port: int, is_allowed: bool
) -> None:
    """That a name is listed says nothing about where it may be; a private address is listed by itself."""
    assert Allowed.of(entries).permits_address(ipaddress.ip_address(address), port) is is_allowed


@pytest.mark.parametrize(
    "binding, yes, no",
    [
        ("api.example.com", "https://api.example.com/", "http://api.example.com/ https://example.com/"),
        ("https://api.example.com", "https://api.example.com/", "http://api.example.com/"),
        ("http://api.example.com", "https://api.example.com/ http://api.example.com/", "http://example.com/"),
        ("*.example.com", "https://a.example.com/", "https://example.com/ http://a.example.com/"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080/", "http://127.0.0.1/"),
        ("10.0.0.1", "https://10.0.0.1/", "http://10.0.0.1/"),
    ],
)
def test_a_secret_is_bound_to_https(binding: str, yes: str, no: str) -> None:
    """A host takes a secret over https, unless http:// is written in front or it is this machine."""
    bound = Binding.parse(binding)
    assert [url for url in yes.split() if not bound.covers(parse_url(url))] == []
    assert [url for url in no.split() if bound.covers(parse_url(url))] == []


def test_a_secret_is_not_bound_to_every_host() -> None:
    """`*` says where a Runnable may go, and not who may have a secret."""
    with pytest.raises(ValueError, match="every host"):
        Binding.parse("*")


PIECES = st.sampled_from(
    [
        "http", "https", "HTTP", "ftp", ":", "//", "/", "\\", "@", "?", "#", "[", "]", "%", "%40", "%2f",
        "127.0.0.1", "127.1", "0x7f.1", "2130706433", "::1", "::ffff:10.0.0.1", "169.254.169.254", "%00",
        "localhost", "allowed.example", "evil.example", ".", "。", "１", "ⓐ", ":80", ":8080", "\t", "\n", " ",
        "\x00", "é", "-", "_", "user", "xn--", "ß", "\u00ad", "\u200b",
    ]
)  # fmt: skip
URLS = st.one_of(
    st.lists(PIECES, max_size=8).map(lambda parts: "http://" + "".join(parts)),
    st.lists(PIECES, max_size=10).map("".join),
    st.text(alphabet=string.printable + "\u3002\uff0e\u2028", max_size=40).map(lambda text: f"http://{text}"),
)


@settings(max_examples=300)
@given(URLS)
def test_no_other_reader_sees_another_host_in_a_url_that_is_taken(text: str) -> None:
    """What `parse_url` takes, urllib reads as the same host and port; and the form it gives is stable."""
    try:
        url = parse_url(text)
    except ValueError:
        return
    canonical = str(url)
    assert parse_url(canonical) == url
    assert canonical.isascii()
    assert not set(" \t\r\n\\") & set(canonical)
    seen = urlsplit(canonical)
    assert (seen.scheme, seen.hostname, seen.username) == (url.scheme, url.host, None)
    assert (seen.port or {"http": 80, "https": 443}[seen.scheme]) == url.port
    if text.isascii():
        raw = urlsplit(text)
        assert (raw.hostname or "").removesuffix(".") == url.host or url.address is not None


@settings(max_examples=300)
@given(URLS, st.sampled_from(["*", "allowed.example", "*.example", "allowed.example:8080"]))
def test_no_url_of_a_private_address_is_permitted(text: str, entry: str) -> None:
    """However a URL is spelled, a list of names permits no address that is not public."""
    try:
        url = parse_url(text)
    except ValueError:
        return
    if Allowed.of([entry]).permits(url) and url.address is not None:
        assert is_public(url.address)
        assert carried(url.address).is_global


@given(st.integers(0, (1 << 128) - 1).map(ipaddress.IPv6Address))
def test_no_ipv6_address_is_public_that_python_calls_private(address: ipaddress.IPv6Address) -> None:
    """Our own list of networks is the stricter of the two."""
    if is_public(address):
        assert carried(address).is_global
        assert not carried(address).is_private


@given(st.integers(0, (1 << 32) - 1).map(ipaddress.IPv4Address))
def test_no_ipv4_address_is_public_that_python_calls_private(address: ipaddress.IPv4Address) -> None:
    """Our own list of networks is the stricter of the two, in every IPv6 form of an address, too."""
    mapped = ipaddress.IPv6Address(f"::ffff:{address}")
    nat64 = ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | int(address))
    assert is_public(mapped) is is_public(nat64) is is_public(address)
    if is_public(address):
        assert address.is_global
        assert not address.is_private
        assert not address.is_multicast
        assert not address.is_reserved
