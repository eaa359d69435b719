"""What the keys of a valid configuration say against each other, and the files that they name.

Each rule yields the place of the key to blame, a code and a sentence; `load` turns them into faults. A rule
exists for every combination in which a key would have no effect, so that none is accepted in silence.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import os
import re
from collections.abc import Container, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from processor.address import parse_url
from processor.config.auditing import AuditSettings
from processor.config.forms import Place, Settings, Text, read_secret
from processor.config.keys import Config, Nats, OutputSettings, RouteSettings
from processor.config.outside import SECRET_CHARS, SecretSource
from processor.config.source import LOGINS, YamlSource, dotted
from processor.errors import ConfigError, Faults
from processor.notes import read_private_key
from processor.reach import BoundSecret
from processor.route import Route, Routing, Selector
from processor.schedule import has_calendar, is_once
from processor.subject import app_patterns, check_subject, overlaps

Contradiction = tuple[Place, str, str]
S = TypeVar("S", bound=Settings)
_NEARLY = 0.75  # `prased` is that to `parsed`, `clean` is not to `raw`


def route_faults(route: RouteSettings, app: str) -> Iterator[Contradiction]:
    """What the keys of a route of `app` say against each other: place and text start below the route."""
    yield from _program_faults(route)
    template = route.output_template
    stream, ism = route.mode == "stream", route.input.codec == "ism"
    if not ism and not route.input.subject and not route.input.schedule:
        yield (
            ("input", "subject"),
            "E105",
            "input.subject is missing: the subject or pattern that the route reads",
        )
    yield from _input_faults(route)
    if route.key == "none" and route.partitions > 1:
        yield ("partitions",), "E106", "partitions has no effect while `key` is none: there is one context"
    if route.concurrency > route.partitions:
        text = (
            f"concurrency is {route.concurrency}, but the keys are spread over {route.partitions} partitions:"
            f" at most {route.partitions} guests can work"
        )
        if route.key == "none":
            text = (
                f"concurrency is {route.concurrency} while `key` is none: one context cannot be in several"
                " guests"
            )
        yield ("concurrency",), "E106", text
    if route.key_source.kind == "json" and route.input.codec == "raw":
        yield (
            ("key",),
            "E106",
            f"key is {route.key}, but messages of `codec: raw` are not JSON; use subject.N or header.NAME",
        )
    yield from _token_faults(route)
    if template:
        if template.needs_key and route.key == "none":
            yield (
                ("output",),
                "E106",
                f"output has {{key}} ('{template.text}') while `key` is none; set `key`",
            )
        if template.needs_session and not stream:
            yield (
                ("output",),
                "E106",
                f"output has {{session}} ('{template.text}'), which only `mode: stream` has",
            )
        if stream and template.fields:
            names = ", ".join(f"{{{name}}}" for name in template.fields)
            yield (
                ("output",),
                "E106",
                f"output has {names}, but in `mode: stream` it must be known before there is a chunk",
            )
    if route.output and stream and "ttl" in route.output.model_fields_set:
        text = "output.ttl has no effect in `mode: stream`: chunks do not pass through the app's stream"
        yield ("output", "ttl"), "E106", text
    if route.output and not route.output.durable and "max_age" in route.output.model_fields_set:
        yield (
            ("output", "max_age"),
            "E106",
            "output.max_age has no effect with `durable: false`: there is no stream",
        )
    if stream and "batch" in route.model_fields_set:
        yield (
            ("batch",),
            "E106",
            "batch has no effect in `mode: stream`: each message is a run and a commit of its own",
        )
    for place, pattern in (("output", template and template.pattern), ("events", route.events_subject)):
        if pattern and route.input.subject and overlaps(pattern, route.input.subject):
            text = (
                f"{place} '{pattern}' overlaps the route's own input '{route.input.subject}': it would"
                " read what it writes"
            )
            yield (place,), "E106", text
        for own in app_patterns(app):
            if pattern and app and overlaps(pattern, own):
                yield (
                    (place,),
                    "E106",
                    f"{place} '{pattern}' overlaps {own}, which the app itself publishes to",
                )
    yield from _emit_faults(route, app)
    yield from _codec_faults(route)


def _emit_faults(route: RouteSettings, app: str) -> Iterator[Contradiction]:
    """What the subjects to emit to are at odds with: one stream keeps each, and takes nothing else."""
    template, output = route.output_template, route.output
    for index, pattern in enumerate(route.emits):
        here: Place = ("emits", index)
        for own in app_patterns(app):
            if app and overlaps(pattern, own):
                text = f"emits '{pattern}' overlaps {own}, which the app itself publishes to"
                yield here, "E106", text
        others = {other: f"emits '{other}'" for other in route.emits[:index]}
        if pattern in others:
            yield here, "E106", f"emits '{pattern}' is listed twice"
        if route.events_subject:
            others[route.events_subject] = f"events '{route.events_subject}'"
        if template and output:
            others[template.pattern] = f"output '{template.text}'"
            if pattern == template.pattern and (route.mode == "stream" or not output.durable):
                how = "`mode: stream`" if route.mode == "stream" else "`durable: false`"
                text = f"emits '{pattern}' is the subject of the output, which has no copies with {how}"
                yield here, "E106", text
        for other, what in others.items():
            if other != pattern and overlaps(other, pattern):
                text = (
                    f"emits '{pattern}' overlaps {what}, and one stream keeps a subject: make it one pattern"
                )
                yield here, "E106", text


def _program_faults(route: RouteSettings) -> Iterator[Contradiction]:
    if route.runnable and route.code:
        yield ("code",), "E106", "runnable and code are both given; a route has one Runnable"
    if not route.runnable and not route.code:
        yield (
            (),
            "E105",
            "runnable is missing: the Python file with `class Runnable` (or its source as `code`)",
        )
    if route.packages and route.language != "python":
        yield (
            ("packages",),
            "E106",
            f"packages has no effect with `language: {route.language}`; set `language: python`",
        )


def _input_faults(route: RouteSettings) -> Iterator[Contradiction]:
    given, schedule = route.input.model_fields_set, route.input.schedule
    if not schedule:
        for key in ("document", "time_zone", "catch_up"):
            if getattr(route.input, key) not in (None, True):
                yield ("input", key), "E106", f"input.{key} has no effect without input.schedule"
    else:
        for key in ("subject", "create", "start", "repartition"):
            if key in given and getattr(route.input, key) not in (None, False, "all"):
                text = f"input.{key} has no effect beside input.schedule, which sends what the route reads"
                yield ("input", key), "E106", text
        if route.input.codec != "json":
            text = f"input.codec is {route.input.codec}, but what a schedule sends is a JSON document"
            yield ("input", "codec"), "E106", text
        if route.input.time_zone and not has_calendar(schedule):
            text = f"input.time_zone has no effect on '{schedule}': it has no time of day"
            yield ("input", "time_zone"), "E106", text
        if not route.input.catch_up and is_once(schedule):
            text = f"input.catch_up has no effect on '{schedule}', which is due once"
            yield ("input", "catch_up"), "E106", text
        if route.key_source.kind in ("subject", "header"):
            text = f"key is {route.key}, but what a schedule sends has only its document; use json./pointer"
            yield ("key",), "E106", text
        if route.output_template and route.output_template.subject_tokens:
            text = "output has {subject.N}, but what a schedule sends has no subject of its own"
            yield ("output",), "E106", text
    if route.input.repartition and route.key == "none":
        text = "input.repartition has no effect while `key` is none: there is one partition"
        yield ("input", "repartition"), "E106", text


def _token_faults(route: RouteSettings) -> Iterator[Contradiction]:
    subject = route.input.subject
    if not subject:
        return
    tokens = len(subject.split("."))
    limit = 99 if subject.endswith(">") else tokens
    if route.key_source.number > limit:
        yield ("key",), "E106", f"key is {route.key}, but the subjects of '{subject}' have {tokens} tokens"
    for number in route.output_template.subject_tokens if route.output_template else ():
        if number > limit:
            yield (
                ("output",),
                "E106",
                f"output has {{subject.{number}}}, but the subjects of '{subject}' have {tokens} tokens",
            )


def _codec_faults(route: RouteSettings) -> Iterator[Contradiction]:
    codec, stream = route.input.codec, route.mode == "stream"
    if route.cloudevents and codec != "cloudevents":
        yield ("cloudevents",), "E106", f"cloudevents has no effect with `codec: {codec}`"
    if route.cloudevents and stream:
        yield (
            ("cloudevents",),
            "E106",
            "cloudevents has no effect in `mode: stream`: chunks are sent as they are",
        )
    if route.ism and codec != "ism":
        yield ("ism",), "E106", f"ism has no effect with `codec: {codec}`; set input to {{codec: ism}}"
    if codec != "ism":
        return
    if not route.ism:
        yield ("input",), "E105", "ism is missing: `codec: ism` needs the routing file and the outputs"
        return
    if route.input.subject:
        yield (
            ("input", "subject"),
            "E106",
            "input.subject has no effect with `codec: ism`: the routing file names it",
        )
    if route.key != "none":
        yield ("key",), "E106", f"key is {route.key}, but an ISM processor has one context; remove it"
    if route.output:
        yield (
            ("output",),
            "E106",
            "output has no effect with `codec: ism`: use ism.outputs, the routing file names the subjects",
        )
    if stream and len(route.ism.outputs) != 1:
        yield (
            ("ism", "outputs"),
            "E106",
            f"ism.outputs has {len(route.ism.outputs)} states; `mode: stream` sends to exactly one",
        )
    for index, output in enumerate(route.ism.outputs):
        if stream and {"next", "sync"} & output.model_fields_set:
            yield (
                ("ism", "outputs", index),
                "E106",
                "next and sync have no effect in `mode: stream`: chunks are sent as they are",
            )
        elif not stream and not output.next and not output.sync:
            yield (
                ("ism", "outputs", index),
                "E106",
                f"ism.outputs.{index} sends nothing: `sync` is false and `next` is empty",
            )


def app_faults(config: Config) -> Iterator[Contradiction]:
    """What the keys outside of routes, or of several routes, say against each other."""
    yield from nats_faults(config.nats)
    yield from _file_fault(("dev", "feed"), config.dev.feed if config.dev else None)
    yield from _topic_faults(config)
    yield from _secret_faults(config)
    yield from _root_faults(config)
    yield from _tool_faults(config)
    yield from _endpoint_faults(config)
    yield from _audit_faults(config)


def _audit_faults(config: Config) -> Iterator[Contradiction]:
    audit, unset = config.audit, AuditSettings()
    chosen = [name for name in AuditSettings.model_fields if getattr(audit, name) != getattr(unset, name)]
    if config.audit_level == "off":
        for name in (name for name in chosen if name != "level"):
            why = "its level is off" if audit.level else "there is no policy, and audit.level is not set"
            yield ("audit", name), "E106", f"audit.{name} has no effect: {why}"
        return
    if audit.stream == "external" and "keep" in chosen:
        yield ("audit", "keep"), "E106", "audit.keep has no effect: the stream is made by others"
    place: Place = ("audit", "key_file")
    if audit.key_file is None or (yield from _file_fault(place, audit.key_file)):
        return
    try:
        read_private_key(Path(audit.key_file).read_bytes())
    except (OSError, ValueError) as err:
        yield place, "E107", f"audit.key_file is {audit.key_file}: {err}; `processor audit keygen` makes one"


def nearly_connected(config: Config) -> Iterator[tuple[str, str]]:
    """Of each route whose input is nearly what another writes, and meets none: its name and a sentence."""
    routes = config.routes.values()
    written = [(route.name, subject) for route in routes for subject in _written(route)]
    fed = [(route.name, config.dev.template.pattern) for route in routes] if config.dev else []
    read = [subject for route in routes if not route.input.schedule for subject in route.input.subjects]
    for route in routes:
        if route.input.schedule or route.ism:
            continue
        for subject in route.input.subjects:
            if any(overlaps(subject, other) for _, other in [*written, *fed]):
                continue
            for writer, other in written:
                if _is_nearly(subject, other) and not any(overlaps(other, each) for each in read):
                    yield (
                        route.name,
                        f"no route writes to the input {subject}, and none reads {other}, which route "
                        f"{writer} writes: is that meant?",
                    )
                    break


def _written(route: Route) -> list[str]:
    template = route.output_template
    events = [route.events_subject] if route.events_subject else []
    return [*([template.pattern] if template else []), *route.emits, *events]


def _is_nearly(subject: str, other: str) -> bool:
    """Whether one token of two subjects differs, by what may be a slip of the hand."""
    left, right = subject.split("."), other.split(".")
    pairs = zip(left, right, strict=False)
    slips = [(a, b) for a, b in pairs if a != b and not {a, b} & {"*", ">"}]
    is_as_long = len(left) == len(right) or ">" in (left[-1], right[-1])
    if not is_as_long or len(slips) != 1:
        return False
    [(a, b)] = slips
    # Parts and versions are numbered on purpose.
    is_numbered = re.sub(r"\d", "", a) == re.sub(r"\d", "", b)
    return not is_numbered and difflib.SequenceMatcher(None, a, b).ratio() >= _NEARLY


def nats_faults(nats: Nats) -> Iterator[Contradiction]:
    """What the keys of a connection say against each other, and files that are not there."""
    logins = [keys for keys in (("user",), *LOGINS[1:]) if any(getattr(nats, key) for key in keys)]
    if len(logins) > 1:
        names = " and ".join(keys[0] for keys in logins)
        yield ("nats", logins[-1][0]), "E106", f"nats has {names}; a connection has one way to log in"
    if nats.password and nats.password_file:
        yield ("nats", "password_file"), "E106", "nats.password and nats.password_file are both given"
    if nats.token and nats.token_file:
        yield ("nats", "token_file"), "E106", "nats.token and nats.token_file are both given"
    if nats.nkey_seed and nats.nkey_seed_file:
        yield ("nats", "nkey_seed_file"), "E106", "nats.nkey_seed and nats.nkey_seed_file are both given"
    if (nats.password or nats.password_file) and not nats.user:
        yield ("nats", "user"), "E105", "nats.user is missing: a password belongs to a user"
    if nats.tls and bool(nats.tls.cert) != bool(nats.tls.key):
        yield ("nats", "tls"), "E106", "nats.tls.cert and nats.tls.key need each other"
    if "embedded" in nats.url and not nats.embedded:
        yield ("nats", "url"), "E106", "nats.url has `embedded` together with other servers"
    if nats.embedded:
        if nats.replicas > 1:
            yield (
                ("nats", "replicas"),
                "E106",
                f"nats.replicas is {nats.replicas}, but the embedded server is alone",
            )
        if logins or nats.tls:
            yield ("nats", "url"), "E106", "nats.url is `embedded`, which needs no login and no TLS"
    for key in ("password_file", "token_file"):
        yield from _file_fault(("nats", key), getattr(nats, key))
    yield from _nkey_faults(nats)
    for key in ("ca", "cert", "key"):
        yield from _file_fault(("nats", "tls", key), getattr(nats.tls, key) if nats.tls else None)


_NO_SEED = "is no nkey seed of a user: SU and 56 more letters and digits, as `nk -gen user` writes it"
_NO_CREDENTIALS = (
    "is no credentials file: a user's JWT and nkey seed between their markers, as `nsc` writes it"
)
_CREDENTIALS = re.compile(
    rb"BEGIN NATS USER JWT[^\n]*\n(?P<jwt>[\w.-]+)\n"
    rb"(?:.*\n)*?.*BEGIN USER NKEY SEED[^\n]*\n(?P<seed>[^\n]*)\n"
)
_SEED_PREFIX = bytes([18 << 3 | 20 >> 2, (20 & 3) << 6])  # of a seed, 18, and that of a user, 20; 5 bits each


def _nkey_faults(nats: Nats) -> Iterator[Contradiction]:
    """Seeds and credentials that nobody can log in with, wherever they come from; none is ever shown."""
    if nats.nkey_seed and not _is_seed(nats.nkey_seed.get_secret_value().strip().encode()):
        yield ("nats", "nkey_seed"), "E104", f"nats.nkey_seed {_NO_SEED}"
    content = yield from _content(("nats", "nkey_seed_file"), nats.nkey_seed_file)
    if content is not None and not _is_seed(content.strip()):
        text = f"nats.nkey_seed_file is {nats.nkey_seed_file}, and what it holds {_NO_SEED}"
        yield ("nats", "nkey_seed_file"), "E107", text
    content = yield from _content(("nats", "creds_file"), nats.creds_file)
    if content is not None and _login(content) is None:
        text = f"nats.creds_file is {nats.creds_file}, which {_NO_CREDENTIALS}"
        yield ("nats", "creds_file"), "E107", text


def read_login(creds_file: str) -> tuple[str, str]:
    """The user's JWT and nkey seed of a credentials file as it is now. Raises ConfigError E107."""
    try:
        found = _login(Path(creds_file).read_bytes())
    except OSError as err:
        raise ConfigError("E107", f"cannot be read: {err.strerror}", place=creds_file) from err
    if found is None:
        raise ConfigError("E107", _NO_CREDENTIALS, place=creds_file)
    return found


def _login(content: bytes) -> tuple[str, str] | None:
    found = _CREDENTIALS.search(content)
    return (found["jwt"].decode(), found["seed"].decode()) if found and _is_seed(found["seed"]) else None


def _content(place: Place, file: str | None) -> Generator[Contradiction, None, bytes | None]:
    """What a file holds; a fault where it cannot be read."""
    try:
        return Path(file).read_bytes() if file else None
    except FileNotFoundError:
        yield place, "E107", f"{dotted(place)} is {file}, which does not exist"
    except OSError as err:
        yield place, "E107", f"{dotted(place)} is {file}, which cannot be read: {err.strerror}"
    return None


def _is_seed(seed: bytes) -> bool:
    """Whether this is a user's nkey seed: base32 of a prefix, 32 bytes and their checksum (CRC-16/XMODEM)."""
    try:
        raw = base64.b32decode(seed + b"=" * (-len(seed) % 8))
    except binascii.Error:
        return False
    return (
        len(raw) == len(_SEED_PREFIX) + 32 + 2
        and raw.startswith(_SEED_PREFIX)
        and binascii.crc_hqx(raw[:-2], 0) == int.from_bytes(raw[-2:], "little")
    )


def _topic_faults(config: Config) -> Iterator[Contradiction]:
    topics: dict[str, tuple[str, OutputSettings]] = {}
    for name, route in config.route_settings.items():
        output = route.output
        if not output or not route.output_template:
            continue
        first, other = topics.setdefault(route.output_template.pattern, (name, output))
        if (other.durable, other.max_age) != (output.durable, output.max_age):
            text = (
                f"routes.{name}.output and routes.{first}.output share '{route.output_template.pattern}'"
                " but differ in durable or max_age"
            )
            yield ("routes", name, "output"), "E106", text
    for name, route in config.route_settings.items():
        for index, pattern in enumerate(route.emits):
            for theirs, where, is_kept in _topics_of_others(config, name):
                if not overlaps(theirs, pattern) or (is_kept and theirs == pattern):
                    continue
                why = "and one stream keeps a subject: make it one pattern"
                why = why if is_kept else "which no stream keeps (`durable: false`)"
                text = f"routes.{name}.emits '{pattern}' overlaps {where} '{theirs}', {why}"
                yield ("routes", name, "emits", index), "E106", text


def _topics_of_others(config: Config, name: str) -> Iterator[tuple[str, str, bool]]:
    for other, route in config.route_settings.items():
        if other != name:
            yield from topics(other, route)


def topics(name: str, route: RouteSettings) -> Iterator[tuple[str, str, bool]]:
    """The patterns that a route sends to, the key of each, and whether a stream keeps them."""
    if route.output and route.output_template:
        yield route.output_template.pattern, f"routes.{name}.output", route.output.durable
    if route.events_subject:
        yield route.events_subject, f"routes.{name}.events", True
    for pattern in route.emits:
        yield pattern, f"routes.{name}.emits", True


def _file_fault(place: Place, file: str | None) -> Generator[Contradiction, None, bool]:
    """A file that is named and cannot be read; whether it is so."""
    if file and not os.access(file, os.R_OK):
        why = "cannot be read" if os.path.exists(file) else "does not exist"
        yield place, "E107", f"{dotted(place)} is {file}, which {why}"
        return True
    return False


# What a route's missing keys are taken from at the top.
INHERITED = ("stock", "state_api", "outbound")


def filled(default: S, own: S) -> S:
    """`own` with the keys that it lacks taken from `default`."""
    return default.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})


def read_secrets(
    config: Config, env: Mapping[str, str], found: dict[str, BoundSecret]
) -> Iterator[Contradiction]:
    """Put the secrets' values into `found`; what is wrong with them."""
    for name, source in config.secrets.items():
        value, fault = _secret(("secrets", name), source, env)
        if fault:
            yield fault
        else:
            found[name] = BoundSecret(name, value, source.bindings)


def is_absence(found: Contradiction, keys: Container[str]) -> bool:
    """Whether a value from outside that one of these top-level keys names is missing here, or unusable."""
    place, code, _ = found
    return place[0] in keys and code in ("E107", "E108")


def _secret(here: Place, source: SecretSource, env: Mapping[str, str]) -> tuple[str, Contradiction | None]:
    """The value of the secret at `here`, or what is wrong with it."""
    place, code = (*here, "file" if source.file else "env"), "E107" if source.file else "E108"
    if bool(source.env) == bool(source.file):
        how = "has both" if source.env else "has neither"
        return "", (here, "E106", f"{dotted(here)} {how} env and file; a secret comes from one of them")
    if source.file:
        if fault := next(_file_fault(place, source.file), None):
            return "", fault
        try:
            value = read_secret(source.file)
        except ConfigError as err:
            return "", (place, code, f"{dotted(place)}: {err.what} ({err.place})")
    else:
        value = env.get(source.env or "", "").strip()
        if not value:
            return "", (place, code, f"{dotted(place)} is {source.env}, which is not set")
    if len(value) < SECRET_CHARS:
        what = f"{dotted(here)} has fewer than {SECRET_CHARS} characters: a Runnable could guess it"
        return "", (here, code, what)
    if not value.isprintable():
        return "", (here, code, f"{dotted(here)} holds a line break or a control character")
    return value, None


def _secret_faults(config: Config) -> Iterator[Contradiction]:
    for name, route in config.route_settings.items():
        for used in route.secrets:
            if used not in config.secrets:
                yield unknown_secret(("routes", name, "secrets"), used, config)
        api = filled(config.state_api, route.state_api)
        above: Place = ("routes", name) if "secret" in route.state_api.model_fields_set else ()
        place = (*above, "state_api", "secret")
        if api.secret:
            yield from _bound_secret_faults(place, api.secret, api.base_url, config)


def _root_faults(config: Config) -> Iterator[Contradiction]:
    for name, root in config.roots.items():
        if not os.path.isdir(root.path):
            why = "is no directory" if os.path.exists(root.path) else "does not exist"
            yield ("files", name, "path"), "E107", f"files.{name}.path is {root.path}, which {why}"
    for name, route in config.route_settings.items():
        for used in route.files:
            if used not in config.roots:
                known = ", ".join(config.roots) or "none"
                what = f"routes.{name}.files names {used!r}, which is no directory of `files`: {known}"
                yield ("routes", name, "files"), "E106", what


def _tool_faults(config: Config) -> Iterator[Contradiction]:
    for name, tool in config.tools.items():
        here: Place = ("tools", name)
        for place, code, text in tool.contradictions(name):
            yield (*here, *place), code, f"{dotted((*here, *place))}: {text}"
        if tool.kind == "mcp" and tool.secret is not None:
            yield from _bound_secret_faults((*here, "secret"), tool.secret, tool.mcp or "", config)
    listed: list[tuple[Place, Sequence[str]]] = [
        *((("routes", route, "tools"), keys.tools) for route, keys in config.route_settings.items()),
        *((("nodes", group, "tools"), keys.tools) for group, keys in config.group_keys.items()),
    ]
    for place, names in listed:
        for used in names:
            own, slash, _ = used.partition("/")
            kind = config.tools[own].kind if own in config.tools else None
            if kind is None:
                known = ", ".join(config.tools) or "none"
                yield place, "E106", f"{dotted(place)} names {used!r}, which is no tool of `tools`: {known}"
            elif kind and (kind == "mcp") != bool(slash):
                what = f"which is a server: write {own}/*" if kind == "mcp" else "which is no MCP server"
                yield place, "E106", f"{dotted(place)} names {used!r}, {what}"


def _endpoint_faults(config: Config) -> Iterator[Contradiction]:
    for name, endpoint in config.endpoints.items():
        if endpoint.secret is not None:
            here: Place = ("inference", name, "secret")
            yield from _bound_secret_faults(here, endpoint.secret, endpoint.base_url, config)
    listed: list[tuple[Place, Sequence[str]]] = [
        *((("routes", route, "inference"), keys.inference) for route, keys in config.route_settings.items()),
        *((("nodes", group, "inference"), keys.inference) for group, keys in config.group_keys.items()),
    ]
    for place, names in listed:
        for used in names:
            if used not in config.endpoints:
                known = ", ".join(config.endpoints) or "none"
                what = f"{dotted(place)} names {used!r}, which is no endpoint of `inference`: {known}"
                yield place, "E106", what


def _bound_secret_faults(place: Place, name: str, url: str, config: Config) -> Iterator[Contradiction]:
    """Whether there is a secret of this name, and it may be sent to the host of `url`."""
    if name not in config.secrets:
        yield unknown_secret(place, name, config)
        return
    server = parse_url(url)
    if not any(binding.covers(server) for binding in config.secrets[name].bindings):
        text = f"{dotted(place)} is {name}, which is not bound to {server.scheme}://{server.authority}"
        yield place, "E106", f"{text}; add the host to secrets.{name}.hosts"


def unknown_secret(place: Place, name: str, config: Config) -> Contradiction:
    """What is wrong with a key at `place` that names a secret which there is not."""
    known = ", ".join(config.secrets) or "none"
    return (
        place,
        "E106",
        f"{dotted(place)} names {name!r}, which is not a secret; under `secrets` there are: {known}",
    )


class _Entry(BaseModel):
    """An entry of an ISM routing file. The file is another system's: unknown keys stay its own."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)

    selector: Text
    name: Text
    subject: Text
    url: str = ""
    jetstream_enabled: bool = True
    concurrent_priority_enabled: bool = False


_ISM_STATE = "processor/state"
_ISM_SELECTORS = {
    "monitor": "processor/monitor",
    "usage": "processor/usage",
    "sync": "processor/state/sync",
    "router": "processor/state/router",
    "state": _ISM_STATE,
}


def read_routing(route: RouteSettings) -> Routing:
    """The entries that the route needs; raises Faults with all that is wrong in its routing file."""
    assert route.ism
    source = YamlSource.read(Path(route.ism.routing_file), missing="E107")
    outer = source.data.get("messageConfig")
    listed = outer.get("routes") if isinstance(outer, dict) else None
    top: Place = ("messageConfig", "routes")
    if not isinstance(listed, list):
        raise Faults(
            [source.fault(top, "E105", "messageConfig.routes is missing: the list of selectors and subjects")]
        )
    faults = list(source.faults)
    entries: dict[str, tuple[int, _Entry]] = {}
    broken: set[object] = set()
    for index, raw in enumerate(listed):
        try:
            entry = _Entry.model_validate(raw)
        except ValidationError as err:
            faults += [
                source.explain({**error, "loc": (*top, index, *error["loc"])}) for error in err.errors()
            ]
            broken.add(raw.get("selector") if isinstance(raw, dict) else None)
        else:
            entries.setdefault(entry.selector, (index, entry))
    found: dict[str, Selector] = {}
    states = [output.state_id for output in route.ism.outputs] or ["x"]
    for role, selector in {"input": route.ism.selector, **_ISM_SELECTORS}.items():
        match = _find_entry(selector, entries)
        if match is None and selector in broken:
            continue
        if match is None:
            faults.append(
                source.fault(top, "E105", f"no entry of messageConfig.routes has the selector '{selector}'")
            )
            continue
        index, entry = match
        subject = entry.subject.replace("{state_id}", states[0]) if role == "state" else entry.subject
        try:
            check_subject(subject, wildcards=False)
        except ValueError as err:
            faults.append(
                source.fault((*top, index, "subject"), "E104", f"subject of '{entry.selector}': {err}")
            )
        if role == "input" and not entry.jetstream_enabled:
            text = (
                f"'{entry.selector}' has jetstream_enabled: false; a route reads from a stream, which can"
                " be read again"
            )
            faults.append(source.fault((*top, index, "jetstream_enabled"), "E106", text))
        found[role] = Selector(
            entry.selector,
            entry.name,
            entry.subject,
            entry.url,
            entry.jetstream_enabled,
            entry.concurrent_priority_enabled,
        )
    if len({entry.url for entry in found.values()}) > 1:
        text = "the entries of one processor have different servers as `url`; a processor has one connection"
        faults.append(source.fault(top, "E106", text))
    if faults:
        raise Faults(faults)
    return Routing(**found)


def _find_entry(selector: str, entries: Mapping[str, tuple[int, _Entry]]) -> tuple[int, _Entry] | None:
    """The entry for `selector`: its own, or the one with the longest prefix that ends in `/*`."""
    if selector in entries:
        return entries[selector]
    prefixes = [name for name in entries if name.endswith("/*") and selector.startswith(name[:-1])]
    return entries[max(prefixes, key=len)] if prefixes else None
