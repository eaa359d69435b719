"""Who may do what: the lines of policy files, and what they say about one call.

A line allows, or denies, some methods on some resources of one kind to some routes. Without a file everything
is allowed that the configuration declares; with one, only what a line allows. `kinds` says what lines are
about, `rules` decides, `reading` reads files and `lint` doubts what they say.

The grammar is that of seed 001 (`[[capability]]`, TOML); `docs/` has it for users.
"""

from processor.policy.kinds import KINDS, Ask, asked, file_target, url_target
from processor.policy.lint import lints
from processor.policy.reading import load
from processor.policy.rules import ALLOWED, NO_POLICY, Expectation, Policy, Rule, Rules, Verdict, suggest

__all__ = [
    "ALLOWED",
    "KINDS",
    "NO_POLICY",
    "Ask",
    "Expectation",
    "Policy",
    "Rule",
    "Rules",
    "Verdict",
    "asked",
    "file_target",
    "lints",
    "load",
    "suggest",
    "url_target",
]
