"""Who may do what: the lines of policy files, and what they say about one call.

A line allows, or denies, some methods on some resources of one kind to some routes. Without a file everything
is allowed that the configuration declares; with one, only what a line allows. `kinds` says what lines are
about and `budgets` what is counted, `rules` decides, `reading` reads files, `lint` doubts what they say, and
`cedar` says it in another language. `learning` makes lines of what was asked for.

The grammar is that of seed 001 (`[[capability]]`, TOML); `docs/` has it for users.
"""

from processor.policy.budgets import BUDGET_KINDS, LIMIT_MAX, Budget, Window, window_at
from processor.policy.cedar import to_cedar
from processor.policy.kinds import KINDS, Ask, asked, file_target, glob_regex, near, url_target
from processor.policy.learning import asks_of, changes, lines_for
from processor.policy.lint import lints
from processor.policy.reading import clashes, load
from processor.policy.rules import ALLOWED, NO_POLICY, Expectation, Policy, Rule, Rules, Verdict, suggest

__all__ = [
    "ALLOWED",
    "BUDGET_KINDS",
    "KINDS",
    "LIMIT_MAX",
    "NO_POLICY",
    "Ask",
    "Budget",
    "Expectation",
    "Policy",
    "Rule",
    "Rules",
    "Verdict",
    "Window",
    "asked",
    "asks_of",
    "changes",
    "clashes",
    "file_target",
    "glob_regex",
    "lines_for",
    "lints",
    "load",
    "near",
    "suggest",
    "to_cedar",
    "url_target",
    "window_at",
]
