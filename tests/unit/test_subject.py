"""Subjects: which are valid, which patterns meet, and how data becomes a subject without ever escaping."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from processor.errors import ProcessorError
from processor.model import SAFE_TOKEN
from processor.subject import (
    MAX_SUBJECT_BYTES,
    SubjectIndex,
    Template,
    check_subject,
    covers,
    intersection,
    matches,
    overlaps,
)

TOKENS = st.sampled_from(["a", "b", "stats", "x-1", "é"])
SUBJECTS = st.lists(TOKENS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.builds(
    lambda tokens, tail: ".".join([*tokens, *tail]),
    st.lists(st.one_of(TOKENS, st.just("*")), min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
)
PIECES = st.sampled_from(
    ["{key}", "{session}", "{subject.1}", "{subject.2}", "{name}", "{a.b}", "lit", "x-{key}-y"]
)
TEMPLATES = st.lists(PIECES, max_size=4).map(lambda pieces: ".".join(["out", *pieces]))


def as_regex(pattern: str) -> re.Pattern[str]:
    """What NATS documents about wildcards, said a second time in another language."""
    tokens = {"*": r"[^.]+", ">": r"[^.]+(\.[^.]+)*"}
    return re.compile(r"\.".join(tokens.get(token, re.escape(token)) for token in pattern.split(".")) + r"\Z")


@pytest.mark.parametrize(
    "text", ["a", "ticks.*", "a.>", ">", "*.b", "$KV.bucket.key", "a.b-c_d.é", "$JS.EVENT.>"]
)
def test_valid_subjects_are_returned_as_they_are(text: str) -> None:
    """A pattern may hold wildcards as whole tokens, and may read what the server publishes."""
    assert check_subject(text) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("a..b", "empty token"),
        (".a", "empty token"),
        ("a.", "empty token"),
        ("a b", "'a b'"),
        ("a.b\tc", "white space"),
        ("a.b*", "'b*'"),
        ("a.>.b", "'>' before its end"),
        ("a\x00", "control characters"),
        ("a." * 600 + "a", f"{MAX_SUBJECT_BYTES} bytes"),
        ("a." + "x" * 300, "1 to 256"),
    ],
)
def test_an_invalid_subject_says_what_is_wrong_with_it(text: str, why: str) -> None:
    """The message shows the subject (bounded) and the rule that it breaks."""
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        check_subject(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["a.*", "a.>"])
def test_one_exact_subject_has_no_wildcards(text: str) -> None:
    """Where a message is published to, a wildcard is refused by name."""
    with pytest.raises(ValueError, match="wildcard"):
        check_subject(text, wildcards=False)


@given(PATTERNS, SUBJECTS)
def test_matching_is_that_of_nats(pattern: str, subject: str) -> None:
    """`*` is one token, `>` is one or more at the end."""
    assert matches(pattern, subject) == bool(as_regex(pattern).match(subject))


@given(PATTERNS, PATTERNS, SUBJECTS)
def test_patterns_that_share_a_subject_overlap(a: str, b: str, subject: str) -> None:
    """Overlap is symmetric, and never denied while a common subject exists."""
    assert overlaps(a, b) == overlaps(b, a)
    assert overlaps(a, a)
    if matches(a, subject) and matches(b, subject):
        assert overlaps(a, b)


@given(PATTERNS, PATTERNS)
def test_patterns_that_overlap_share_a_subject(a: str, b: str) -> None:
    """Overlap is never claimed without a common subject; one is built here from both patterns."""
    assume(overlaps(a, b))
    left, right = a.split("."), b.split(".")
    common = []
    for place in range(max(len(left), len(right))):
        here = [tokens[place] if place < len(tokens) else ">" for tokens in (left, right)]
        common.append(next((token for token in here if token not in ("*", ">")), "free"))
    assert matches(a, ".".join(common))
    assert matches(b, ".".join(common))


def test_a_template_says_what_it_needs() -> None:
    """Pattern, fields and tokens are known before any message is there."""
    template = Template.parse("out.{key}.{subject.2}.{a.b}.s-{symbol}.{a.b}.{session}")
    assert template.pattern == "out.*.*.*.*.*.*"
    assert template.fields == ("a.b", "symbol")
    assert template.subject_tokens == (2,)
    assert template.needs_key
    assert template.needs_session
    plain = Template.parse("out.all")
    assert (plain.pattern, plain.fields, plain.subject_tokens) == ("out.all", (), ())
    assert not plain.needs_key
    assert not plain.needs_session


def test_a_template_renders_its_values_unchanged() -> None:
    """A safe value goes into the subject as it is."""
    template = Template.parse("out.{key}.{subject.2}.{a.b}.s-{symbol}.{session}")
    subject = template.render(key="k=1", subject="ticks.MSFT", fields=("x", "Ü"), session="S-1")
    assert subject == "out.k=1.MSFT.x.s-Ü.S-1"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("out.{subject}", "subject.1"),
        ("out.{subject.0}", "subject.1"),
        ("out.{}", "no placeholder"),
        ("out.{a b}", "no placeholder"),
        ("out.{key", "brace"),
        ("out.key}", "brace"),
        ("{key}.out", "first token must be fixed"),
        ("a-{key}.out", "first token must be fixed"),
        ("out.*", "wildcard"),
        ("out.{key}*", "token"),
        ("out..{key}", "empty token"),
        ("$JS.API.{key}", "belongs to the NATS server"),
        ("_INBOX.{key}", "belongs to the NATS server"),
        ("", "empty"),
    ],
)
def test_a_template_that_cannot_work_is_refused_when_it_is_read(text: str, why: str) -> None:
    """Nothing about a template is found out only when a message comes."""
    with pytest.raises(ValueError, match=re.escape(why)):
        Template.parse(text)


@pytest.mark.parametrize("value", ["", "a.b", "a b", "*", ">", "a>", "\n", "x" * 257, "\x7f", "\ud800"])
def test_a_value_that_is_no_token_is_e308(value: str) -> None:
    """Data with dots, wildcards or spaces stops the message instead of addressing another subject."""
    with pytest.raises(ProcessorError) as caught:
        Template.parse("out.{name}").render(fields=(value,))
    assert caught.value.code == "E308"
    assert "{name}" in str(caught.value)
    assert len(str(caught.value)) < 400
    str(caught.value).encode()


def test_a_missing_token_of_the_input_subject_is_e308() -> None:
    """An input of `a.>` may be shorter than the template hopes."""
    with pytest.raises(ProcessorError, match=r"E308 \{subject.3\} of 'out.\{subject.3\}' has no value"):
        Template.parse("out.{subject.3}").render(subject="a.b")


def test_a_subject_that_grows_too_long_is_e308() -> None:
    """The server closes a connection whose protocol line is too long, so no subject may come near."""
    template = Template.parse("out." + ".".join(f"{{f{n}}}" for n in range(5)))
    with pytest.raises(ProcessorError, match="E308"):
        template.render(fields=("é" * 256,) * 5)


@given(TEMPLATES, st.data())
def test_whatever_the_data_a_rendered_subject_is_one_of_the_templates_pattern(
    text: str, data: st.DataObject
) -> None:
    """Either one exact, valid subject that the pattern matches, or E308."""
    value = st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=8), st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True)
    )
    template = Template.parse(text)
    fields = tuple(data.draw(value) for _ in template.fields)
    key, session = data.draw(value), data.draw(value)
    subject = data.draw(st.sampled_from(["ticks", "ticks.a", "ticks.a.b"]))
    used = [*fields, *([key] if template.needs_key else []), *([session] if template.needs_session else [])]
    if not all(map(SAFE_TOKEN.match, used)) or len(subject.split(".")) < max(
        template.subject_tokens, default=0
    ):
        with pytest.raises(ProcessorError, match="E308"):
            template.render(key=key, subject=subject, fields=fields, session=session)
    else:
        rendered = template.render(key=key, subject=subject, fields=fields, session=session)
        assert check_subject(rendered, wildcards=False) == rendered
        assert matches(template.pattern, rendered)


SHORT = [
    "a",
    "b",
    "*",
    ">",
    "a.a",
    "a.b",
    "a.*",
    "*.a",
    "*.*",
    "a.>",
    "*.>",
    "a.b.>",
    "a.*.a",
    "*.b.*",
    "a.b.a",
]
ALL_SHORT = [".".join(tokens) for n in (1, 2, 3, 4) for tokens in itertools.product("abc", repeat=n)]


@pytest.mark.parametrize("left", SHORT)
def test_what_two_patterns_share_is_what_both_match(left: str) -> None:
    """A pattern covers another, and meets it, as the subjects that they match say."""
    for right in SHORT:
        ours, theirs = ({s for s in ALL_SHORT if matches(pattern, s)} for pattern in (left, right))
        shared = intersection(left, right)
        assert {s for s in ALL_SHORT if shared and matches(shared, s)} == ours & theirs, (left, right)
        assert overlaps(left, right) == bool(ours & theirs), (left, right)
        assert covers(left, right) == (theirs <= ours), (left, right)


@given(st.lists(PATTERNS, max_size=12), PATTERNS)
def test_an_index_finds_every_pattern_that_meets_another(patterns: list[str], other: str) -> None:
    """It finds the same, in the same order, as a look at all of them does."""
    places = [(pattern, place) for place, pattern in enumerate(patterns)]
    assert SubjectIndex(places).meeting(other) == [p for pattern, p in places if overlaps(pattern, other)]
