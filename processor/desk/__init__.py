"""Requests over NATS: what the command line does to an app, for programs and for people elsewhere.

Each running processor answers on `ctl.<app>.api.<verb>` as an instance of the micro service
`processor-<app>`; of several, one takes a request. `VERBS` is the table: a verb is the fields of its request,
what is done, and a sentence about it. Everything is done by the same functions that the command line calls.

What must stay true:
- A request that is not understood changes nothing: unknown fields, wrong types and missing ones are refused.
- An answer fits into one message: lists are cut, and `next` says where to go on.
- Who may ask is decided by NATS: every verb has a subject of its own. What a request says of its author is
  written down, not believed.
"""

from __future__ import annotations

from processor.desk.answers import VERBS, Desk, Verb, api_subject
from processor.desk.forms import read_request

__all__ = ["VERBS", "Desk", "Verb", "api_subject", "read_request"]
