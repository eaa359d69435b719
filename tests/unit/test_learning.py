"""Lines of policies that are learned from what was done, and what other lines would have decided."""

from __future__ import annotations

from pathlib import Path

from processor.policy import Ask, Rules, asked, asks_of, changes, lines_for, load

NOW_US = 1_800_000_000_000_000


def rules(tmp_path: Path, text: str) -> Rules:
    (tmp_path / "policy.toml").write_text(text)
    return load([tmp_path / "policy.toml"])


def test_an_entry_says_what_was_asked() -> None:
    """A call and the secrets that it used; nothing where it was denied, cut, or is of something else."""
    entry = {"e": "http", "d": "allow", "route": "r", "op": "post", "on": "https://a.example/x"}
    assert [*asks_of(entry | {"secrets": ["key"]})] == [
        ("r", Ask("http", "post", "https://a.example/x")),
        ("r", Ask("secret", "use", "key")),
    ]
    assert [*asks_of(entry | {"d": "shadow"})] == [("r", Ask("http", "post", "https://a.example/x"))]
    for odd in ({"d": "deny"}, {"cut": True}, {"e": "run"}, {"op": "fetch"}, {"on": 7}, {"route": ""}):
        assert [*asks_of(entry | odd)] == [], odd


def test_learned_lines_allow_what_was_done_and_nothing_else(tmp_path: Path) -> None:
    """A line for each target, whoever used it how often; more than five targets below a path are one."""
    urls = [f"https://a.example/v1/names/{number}" for number in range(6)]
    few = [f"https://a.example/v2/{number}" for number in range(5)]
    used = {("enrich", asked("http.get", url)): 2 for url in [*urls, *few]}
    used |= {("other", asked("http.get", few[0])): 1, ("enrich", asked("http.post", few[0])): 1}
    used |= {("a*b", asked("secret", "pay*")): 7}
    text = lines_for(used)
    assert text.count("[[capability]]") == 1 + 5 + 1 + 1
    assert '# used 12 times\n[[capability]]\nname = "http"\nresource = "https://a.example/v1/names/*"' in text
    made = rules(tmp_path, text)
    for route, ask in used:
        assert made.decide(route, ask, NOW_US).is_allowed, (route, ask)
    for route, op, target in (
        ("enrich", "http.get", "https://a.example/v2/7"),
        ("enrich", "http.post", few[1]),
        ("other", "http.get", few[1]),
        ("enrich", "http.get", "https://a.example/v1/names/1/x"),
        ("axb", "secret", "pay*"),
        ("a*b", "secret", "pay_key"),
    ):
        assert not made.decide(route, asked(op, target), NOW_US).is_allowed, (route, op, target)


def test_what_another_policy_would_change_is_listed(tmp_path: Path) -> None:
    """Both ways, with how often it was done; what both decide alike is not."""
    used = {("r", asked("stock", name)): count for name, count in (("IBM", 3), ("AAPL", 1), ("MSFT", 2))}
    used |= {("gone", asked("stock", "IBM")): 9}
    line = "[[capability]]\nname = 'stock'\nresource = '{}'\nmethods = ['read']\n"
    old = {"r": rules(tmp_path, line.format("IBM") + line.format("AAPL"))}
    new = {"r": rules(tmp_path, line.format("AAPL") + line.format("MSFT"))}
    found = changes(used, old, new, NOW_US)
    assert [
        (each.ask.target, each.times, each.before.is_allowed, each.after.is_allowed) for each in found
    ] == [
        ("IBM", 3, True, False),
        ("MSFT", 2, False, True),
    ]
