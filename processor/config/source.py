"""A YAML file as plain data that still knows where every key stands, and the environment laid over it.

`YamlSource` serves the configuration and the routing files that it names. It turns what YAML and pydantic say
into faults for the person who wrote the file: with line and column, the key in full, the value found (never
a secret's), and what would be right.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.scalarstring import LiteralScalarString

from processor.config.forms import Place, Settings, alias_of, default_text
from processor.config.keys import field_at, model_at
from processor.errors import ERRORS, Fault, Faults

# Environment variable -> the key it replaces. A variable that is empty counts as not set; one way to log in
# that comes from the environment replaces every way that the file gives.
ENVIRONMENT: dict[str, tuple[Place, str]] = {
    "NATS_URL": (("nats", "url"), "server, or servers separated by commas; or `embedded`"),
    "NATS_USER": (("nats", "user"), "user name"),
    "NATS_PASSWORD": (("nats", "password"), "password"),
    "NATS_TOKEN": (("nats", "token"), "token"),
    "NATS_NKEY_SEED": (("nats", "nkey_seed"), "nkey seed itself, not a file"),
    "NATS_CREDS": (("nats", "creds_file"), "path of a credentials file"),
    "NATS_CA": (("nats", "tls", "ca"), "path of the certificate authorities to trust"),
    "NATS_CERT": (("nats", "tls", "cert"), "path of our certificate"),
    "NATS_KEY": (("nats", "tls", "key"), "path of our private key"),
    "PROCESSOR_LOG_LEVEL": (("logs", "level"), "debug, info, warning or error"),
    "PROCESSOR_LOG_FORMAT": (("logs", "format"), "human or json"),
    "PROCESSOR_HTTP_HOST": (("http", "host"), "address of metrics and health"),
    "PROCESSOR_HTTP_PORT": (("http", "port"), "port of metrics and health; 0 for any"),
    "PROCESSOR_DRAIN_S": (("drain_s",), "seconds that SIGTERM may take"),
}
# The ways to log in, each with the keys that belong to it.
LOGINS = (
    ("user", "password", "password_file"),
    ("token", "token_file"),
    ("nkey_seed", "nkey_seed_file"),
    ("creds_file",),
)


class YamlSource:
    """A YAML file as plain data that still knows the line and column of every key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = {}
        self.faults: list[Fault] = []
        self.origins: dict[Place, str] = {}
        self._positions: dict[Place, tuple[int, int]] = {(): (1, 1)}
        self._literals: set[Place] = set()

    @classmethod
    def read(cls, path: Path, *, missing: str = "E101") -> YamlSource:
        """The file's content; raises Faults where it cannot be read or is not YAML."""
        source = cls(path)
        try:
            text = path.read_bytes().decode("utf-8-sig")
            node = YAML(typ="rt").load(text)
        except OSError as err:
            text = f"cannot be read: {err.strerror}. {ERRORS[missing].remedy}"
            raise Faults([source._at((1, 1), missing, text)]) from err
        except UnicodeDecodeError as err:
            raise Faults(
                [source._at((1, 1), "E102", f"is not UTF-8: {err.reason} at byte {err.start}")]
            ) from err
        except MarkedYAMLError as err:
            mark = err.problem_mark or err.context_mark
            place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise Faults([source._at(place, "E102", _yaml_problem(err))]) from err
        except RecursionError as err:
            raise Faults([source._at((1, 1), "E102", "is nested too deeply")]) from err
        except YAMLError as err:
            raise Faults([source._at((1, 1), "E102", "holds characters that YAML does not allow")]) from err
        if node is None:
            return source
        if not isinstance(node, CommentedMap):
            raise Faults([source._at((1, 1), "E102", "must be a mapping of keys to values")])
        source.data = source._plain(node, ())
        return source

    def fault(self, place: Place, code: str, text: str) -> Fault:
        """A fault at the key `place`, or at the nearest one above it that is written in the file."""
        for end in range(len(place), -1, -1):
            if place[:end] in self.origins:
                return Fault(f"${self.origins[place[:end]]}", 1, 1, "E108", text)
            if place[:end] in self._positions:
                return self._at(self._positions[place[:end]], code, text)
        return self._at((1, 1), code, text)

    def explain(self, error: ErrorDetails) -> Fault:
        """What a validation error means for the person who wrote the file."""
        place, kind, context = error["loc"], error["type"], error.get("ctx", {})
        key = dotted(place)
        if kind == "extra_forbidden":
            model = model_at(place[:-1])
            known = [alias_of(name, each) for name, each in model.model_fields.items()] if model else []
            near = difflib.get_close_matches(str(place[-1]), known, n=1) or _near_below(place, known)
            hint = f"did you mean `{near[0]}`?" if near else f"keys here are {', '.join(known)}."
            return self.fault(place, "E103", f"{key} is not a key; {hint}")
        info = field_at(place)
        if kind == "missing":
            return self.fault(place, "E105", f"{key} is missing. {info.description if info else ''}".rstrip())
        if place[-1:] == ("[key]",):
            what = f"the name {place[-2]!r} cannot be used: letters, digits, - and _, at most 64"
            return self.fault(place[:-1], "E104", what)
        why = (
            str(context["error"])
            if kind == "value_error"
            else _REASONS.get(kind, error["msg"]).format(**context)
        )
        text = f"{key}{_shown(error['input'], place)}: {why}."
        if (
            info
            and info.default is not None
            and not info.is_required()
            and not isinstance(info.default, Settings)
        ):
            text += f" Remove it to use the default, {default_text(info)}."
        return self.fault(place, "E104", text)

    def lay_over(self, env: Mapping[str, str]) -> None:
        """Replace what the environment gives, and remember which variable gave it."""
        given = {name: env[name] for name in ENVIRONMENT if env.get(name)}
        nats = self.data.get("nats")
        if isinstance(nats, (str, list)):
            self.data["nats"] = nats = {"url": nats}
        logins = {key for login in LOGINS for key in login}
        if isinstance(nats, dict) and any(
            ENVIRONMENT[name][0][-1] in logins or (name == "NATS_URL" and "@" in value)
            for name, value in given.items()
        ):
            self.data["nats"] = nats = {key: value for key, value in nats.items() if key not in logins}
            if "url" in nats:
                nats["url"] = _without_login(nats["url"])
        for name, text in given.items():
            place = ENVIRONMENT[name][0]
            node: Any = self.data
            for key in place[:-1]:
                if node.get(key) in (None, "off", False):
                    node[key] = {}
                node = node[key]
                if not isinstance(node, dict):
                    break
            else:
                node[place[-1]] = _environment_value(place, text)
                self.origins[place] = name

    def position(self, place: Place) -> tuple[int, bool]:
        """The line of the key at `place`, and whether its value is a literal block that starts below it."""
        return self._positions.get(place, (1, 1))[0], place in self._literals

    def _at(self, position: tuple[int, int], code: str, text: str) -> Fault:
        return Fault(str(self.path), *position, code, text)

    def _plain(self, node: Any, place: Place) -> Any:
        tag = getattr(getattr(node, "tag", None), "value", None)
        if tag and not str(tag).startswith("tag:yaml.org"):
            text = f"{dotted(place)}: the tag {tag} has no meaning here"
            self.faults.append(self.fault(place, "E104", text))
            node = getattr(node, "value", node)
        if len(place) > 40:
            text = f"{dotted(place[:4])}... is nested too deeply"
            raise Faults([self.fault(place, "E102", text)])
        if isinstance(node, CommentedMap):
            out: dict[str, Any] = {}
            for key, value in node.items():
                inner = (*place, str(key))
                if key in (node.lc.data or {}):
                    line, column = node.lc.key(key)
                    self._positions[inner] = (line + 1, column + 1)
                if not isinstance(key, str):
                    text = f"{dotted(inner)}: the key {key!r} is not text; quote it."
                    self.faults.append(self.fault(inner, "E104", text))
                    continue
                out[str(key)] = self._plain(value, inner)
            return out
        if isinstance(node, CommentedSeq):
            for index in node.lc.data or {}:
                line, column = node.lc.item(index)
                self._positions[*place, index] = (line + 1, column + 1)
            return [self._plain(value, (*place, index)) for index, value in enumerate(node)]
        if isinstance(node, LiteralScalarString):
            self._literals.add(place)
        if isinstance(node, (bool, ScalarBoolean)):
            return bool(node)
        for kind in (str, int, float):
            if isinstance(node, kind):
                return kind(node)
        return node


_REASONS = {
    "int_type": "it must be a whole number",
    "float_type": "it must be a number",
    "string_type": "it must be text; quote it",
    "bool_type": "it must be true or false",
    "tuple_type": "it must be a list",
    "dict_type": "it must be a mapping",
    "model_type": "it must be a mapping",
    "model_attributes_type": "it must be a mapping",
    "literal_error": "it must be {expected}",
    "greater_than": "it must be more than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be less than {lt}",
    "less_than_equal": "it must be at most {le}",
    "string_too_short": "it must not be empty",
    "too_short": "it must not be empty",
    "finite_number": "it must be a finite number",
    "string_pattern_mismatch": "it must match {pattern}",
}
_SECRETS = frozenset({"password", "token", "nkey_seed"})


def _yaml_problem(err: MarkedYAMLError) -> str:
    if isinstance(err, DuplicateKeyError):
        # The parser's own sentence quotes both values, and one may be a secret.
        found = re.search(r'duplicate key "([^"]*)"', err.problem or "")
        return f"the key {found[1] if found else ''!r} is given twice"
    return f"is not YAML: {err.problem or err.context}"


def dotted(place: Place) -> str:
    return ".".join(map(str, place)) or "the file"


def _shown(value: object, place: Place) -> str:
    if isinstance(value, (dict, list, tuple, Settings)) or _SECRETS & set(place) or place[:1] == ("secrets",):
        return ""
    text = "empty" if value is None else repr(value)
    return f" is {text if len(text) <= 80 else text[:77] + '...'}"


def _environment_value(place: Place, text: str) -> object:
    if place[-1] == "port" and re.fullmatch(r"\d{1,9}", text):
        return int(text)
    if place[-1] == "drain_s" and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return float(text)
    # Paths in the file are relative to it; those in the environment to where the command was started.
    return os.path.abspath(text) if "tls" in place or place[-1] == "creds_file" else text


def _without_login(url: object) -> object:
    if isinstance(url, list):
        return [_without_login(one) for one in url]
    return re.sub(r"(^|//)[^/@]*@", r"\1", url) if isinstance(url, str) else url


def _near_below(place: Place, known: Sequence[str]) -> list[str]:
    """The key one level further down that is most like the last of `place`, which is not one here."""
    below = {
        alias_of(name, each): f"{key}.{alias_of(name, each)}"
        for key in known
        if (model := model_at((*place[:-1], key)))
        for name, each in model.model_fields.items()
    }
    return [below[name] for name in difflib.get_close_matches(str(place[-1]), below, n=1)]
