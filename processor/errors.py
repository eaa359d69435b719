"""Every error a user can meet, by number: what it means and what to do.

The same code is printed by the CLI, logged by the service, put in dead-letter headers and used as the
`reason` of metrics, so that one search finds all of them. `CODES` is the table; README's list of errors
is checked against it.

Numbers: E1xx configuration, E2xx the language of a Runnable, E3xx a message's run, E4xx the broker,
E5xx the jail, E6xx a request to a running app.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

CODES: dict[str, str] = {
    "E101": "the configuration file cannot be read",
    "E102": "the configuration is not YAML",
    "E103": "unknown configuration key",
    "E104": "a configuration value is out of range or of the wrong type",
    "E105": "a required configuration key is missing",
    "E106": "two configuration keys contradict each other",
    "E107": "a file named in the configuration does not exist",
    "E108": "an environment variable has a value that cannot be used",
    "E109": "an address cannot be listened on",
    "E110": "there is no route of that name",
    "E114": "a module of the user's has a name that it cannot be imported by",
    "E201": "the Runnable's source is not Python",
    "E202": "a construct is not part of the language of a Runnable",
    "E203": "a module cannot be imported by a Runnable",
    "E204": "the source defines no class Runnable",
    "E205": "the source is too large or too deeply nested",
    "E206": "the Runnable's module-level code failed while it was loaded",
    "E207": "the Runnable has no method that its mode calls",
    "E301": "the message is not JSON, or has a number or a text in it that no value stands for",
    "E302": "the message is not the envelope that its codec expects",
    "E303": "the message has no key, or one that cannot be used",
    "E304": "the Runnable raised an exception",
    "E305": "the Runnable rejected the message",
    "E306": "an output, an emit or an event cannot be written as JSON",
    "E307": "the outputs of one message exceed a limit",
    "E308": "an output's subject cannot be made from its template",
    "E309": "a context value cannot be kept",
    "E310": "the context exceeds its limit",
    "E311": "the Runnable used more CPU time than its limit",
    "E312": "the Runnable ran longer than its limit",
    "E313": "the Runnable used more memory than its limit, or the machine ran out of it",
    "E314": "the guest process ended by itself, or was killed from outside",
    "E315": "the guest process broke the protocol and was killed",
    "E316": "the guest process was stopped by the jail",
    "E317": "a capability call was refused or failed",
    "E318": "a text at the boundary is longer than its limit",
    "E319": "a container at the boundary holds more than its limit",
    "E320": "a value at the boundary is nested too deeply",
    "E321": "log lines over the limit were dropped",
    "E322": "the Runnable made more requests for one message than its limit",
    "E323": "an HTTP request or answer has more bytes than its limit",
    "E324": "the Runnable made more outputs in one run than its limit",
    "E325": "a host or an address is not among the allowed ones",
    "E326": "a secret cannot be used there",
    "E327": "a message cannot be emitted to that subject",
    "E328": "a path leads to nothing in the context, or to something of another kind",
    "E350": "a stream does not take the copies of committed outputs",
    "E357": "a message of a stream cannot be read",
    "E358": "a file of the configuration was cut off",
    "E359": "a reload would remove routes",
    "E365": "an error of Processor's own ended a call or a run",
    "E366": "a context cannot be read",
    "E367": "the guest used the processor while nothing was asked of it",
    "E401": "no stream holds the input subject",
    "E402": "the NATS server is too old or has JetStream switched off",
    "E403": "the NATS server refused the credentials or a permission is missing",
    "E404": "the NATS server cannot be reached",
    "E405": "another processor owns this route",
    "E406": "the stream refused to store a commit",
    "E407": "the input stream is not the one that the position belongs to",
    "E408": "a stream or a consumer that the app needs cannot be created or updated",
    "E409": "messages between the position and the start of the input stream are gone",
    "E410": "an existing app stream does not have the settings that commits need",
    "E411": "the embedded NATS server cannot be started",
    "E412": "a reset of the route is not finished",
    "E413": "the stream deletes what was processed, so it cannot be read again",
    "E417": "the streams do not hold a subject as the route needs it",
    "E418": "a position is ahead of the end of its input: the server lost messages that it had acknowledged",
    "E419": "a stream has copied more of the app's stream than that holds: the server lost commits",
    "E420": "the app's stream has gone back: the server lost commits that it had acknowledged",
    "E421": "a position cannot be read",
    "E501": "the jail is below the level that the configuration demands",
    "E502": "the guest could not be started",
    "E503": "the guests of a route keep dying, and its circuit breaker is open",
    "E504": "plain Python needs a jail of level confined",
    "E505": "a package of a route is not installed, or cannot be imported in the jail",
    "E601": "a control request cannot be understood",
    "E602": "what a control request names is not there",
    "E603": "more control requests wait than are taken",
    "E604": "a control request ran into an error of Processor's own",
    "E605": "a control request was not done in time",
    "E606": "the answer to a control request does not fit into a message",
}


class ProcessorError(Exception):
    """An error with a code, a place and a remedy; `str()` is the one line a user reads."""

    def __init__(self, code: str, what: str, *, place: str = "", remedy: str = "") -> None:
        assert code in CODES, code
        self.code = code
        self.what = what
        self.place = place
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.place} " if self.place else ""
        tail = f" {self.remedy}" if self.remedy else ""
        return f"{head}{self.code} {self.what}{'' if self.what.endswith('.') else '.'}{tail}"


class ConfigError(ProcessorError):
    """One fault in the configuration; `place` is `file:line:column`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a Runnable's source or a configuration file, at a place in a file."""

    file: str
    line: int
    column: int
    code: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column} {self.code} {self.text}"


class Faults(Exception):
    """Everything that is wrong with a configuration or a Runnable's source, found in one pass."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        super().__init__("\n".join(map(str, faults)))


class BrokerError(ProcessorError):
    """The NATS server or a stream refused or cannot be used; a person has to act."""


class Fenced(BrokerError):
    """Somebody else committed to this partition: whatever is in hand here must be dropped."""


class Edited(Fenced):
    """Somebody changed a context of this partition from outside; it may be claimed again at once."""

    def __init__(self, route: str, partitions: Collection[int]) -> None:
        self.partitions = partitions  # that had something in hand
        what = f"a context of route {route} was changed from outside"
        super().__init__("E405", what, remedy="What was in hand is done again, with the change.")


class GuestError(ProcessorError):
    """A guest could not be started or loaded."""


class LanguageError(GuestError):
    """Plain Python cannot be had: the jail is too weak (E504), or a package is not usable (E505)."""

    def __init__(self, code: str, what: str, *, package: str = "", remedy: str = "") -> None:
        self.package = package
        super().__init__(code, what, remedy=remedy)
