"""What nodes declare of their secrets, held against the values that they would get.

A node has a class `Secrets`, whose schema a guest tells of in its manifest. Guests get marks in place of
values, which no rule of that class is for; so the values are checked here, when a group of nodes starts and
when it is loaded again. What is said of a value is the name of its field and of the rule that it breaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from processor.schema import Schema


class Misfit(NamedTuple):
    """A field of a node's `Secrets` that has no value, or one that does not fit (E705). No value is in it."""

    node: str  # the name of its class
    field: str
    text: str


def misfits(
    group: str,
    manifest: Mapping[str, Mapping[str, Any]],
    secrets: Mapping[str, str],
    settings: Mapping[str, str],
) -> list[Misfit]:
    """What a group of nodes lacks of what these nodes declare, in the order of the manifest.

    `secrets` are the values by name, and `settings` the texts that are no secrets; of one name the secret is
    the one that counts. The manifest comes from a guest and may be any JSON that `wire.read_manifest` takes.
    """
    found: list[Misfit] = []
    for node, told in manifest.items():
        schema = told["secrets"]
        fields = schema.get("properties") if isinstance(schema, dict) else None
        if not isinstance(fields, dict) or not fields:
            continue
        found += _of_node(group, node, schema, fields, secrets, settings)
    return found


def _of_node(
    group: str,
    node: str,
    schema: Mapping[str, Any],
    fields: Mapping[str, Any],
    secrets: Mapping[str, str],
    settings: Mapping[str, str],
) -> Iterator[Misfit]:
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    definitions = {name: schema[name] for name in ("$defs", "definitions", "$schema") if name in schema}
    for name, field in fields.items():
        if name not in secrets and name not in settings:
            if name in required:
                text = (
                    f"{node} needs the secret '{name}', and group {group} has none of that name. Add it to"
                    f" nodes.{group}.secrets, or to nodes.{group}.settings if it is no secret."
                )
                yield Misfit(node, name, text)
            continue
        try:
            rules = Schema(orjson.dumps({**definitions, "properties": {name: field}}))
        except ValueError as err:
            yield Misfit(node, name, f"{node}.Secrets.{name} cannot be checked: {err}")
            continue
        is_secret = name in secrets
        broken = rules.broken({name: secrets[name] if is_secret else settings[name]})
        if broken and not is_secret and not rules.broken({name: _read(settings[name])}):
            continue  # a number, say, that the class reads from its text
        if broken:
            what = f"the secret '{name}'" if is_secret else f"the setting '{name}'"
            how = "its value breaks" if len(broken) == 1 else "its value breaks the rules"
            text = f"{what} of group {group} does not fit {node}.Secrets: {how} {', '.join(broken)}."
            if is_secret and any(rule.startswith("type ") for rule in broken):
                text += " A secret is a text: declare it as str."
            yield Misfit(node, name, text)


def _read(text: str) -> Any:
    """A value that is written as JSON; the text itself where it is not."""
    try:
        return orjson.loads(text)
    except ValueError:
        return text
