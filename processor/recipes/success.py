"""Whether a step that has ended well left what its `success` names: keys of the context, and files."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from processor.model import Failure
from processor.route import Success


class EndedStep(Protocol):
    """What is looked at of a step."""

    @property
    def name(self) -> str: ...

    @property
    def success(self) -> Success: ...


def unmet(step: EndedStep, keys: Collection[str], root: Path) -> Failure | None:
    """What is missing of what a step was to leave (E714); None where nothing is.

    `keys` are those of the context with what the step set, and files are looked for below the root.
    """
    missing = [key for key in step.success.ctx_has_keys if key not in keys]
    absent = [file for file in step.success.files_exist if not os.path.exists(root / file)]
    what = []
    if missing:
        what.append(f"the context has no {_listed(missing)} (success.ctx_has_keys)")
    if absent:
        what.append(f"there is no {_listed(absent)} (success.files_exist)")
    if not what:
        return None
    return Failure("E714", f"step {step.name!r} ended well, but {', and '.join(what)}")


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))
