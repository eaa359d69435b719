"""The snapshots of a recipe's runs: one file for each run, with its context and how far its steps are.

A file is replaced as a whole after each step, so that a run that is killed, with its machine even, leaves
what there was after the last step that ended well. `context` has the format; here is where the files lie, and
which of them a later run goes on from.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from processor.errors import ProcessorError
from processor.graphs.progress import SUCCESS
from processor.recipes.context import RecipeContext, Snapshot, dump, read, save
from processor.recipes.definition import FOLDER, Recipe

_LONGEST_WRITE_S = 3600.0
_PREFIX, _SUFFIX = "context_", ".json"


def home_of(recipe: Recipe) -> Path:
    """The folder that `Data`, `Logs` and `Assets` of a recipe lie in."""
    folder = recipe.root / FOLDER
    return folder if folder.is_dir() else recipe.root


class SnapshotFile:
    """Where one run keeps its context; `id` names the run."""

    def __init__(self, path: Path) -> None:
        """A file that is read before, and replaced: the one of many runs."""
        self.path = path
        self.id = _id(time.time_ns() // 1_000_000)

    @classmethod
    def create(cls, recipe: Recipe) -> SnapshotFile:
        """A file of its own for a run that begins now. Raises ProcessorError E717."""
        folder = home_of(recipe) / "Data"
        made = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
            while True:
                made.id = _id(time.time_ns() // 1_000_000)
                made.path = folder / f"{_PREFIX}{made.id}{_SUFFIX}"
                try:
                    made.path.open("xb").close()
                except FileExistsError:  # of another run that began in this millisecond
                    time.sleep(0.001)
                else:
                    return made
        except OSError as err:
            raise _unkept(folder, err) from err

    def text(self, context: RecipeContext, run: Mapping[str, Any]) -> bytes:
        """What `replace` is to write: the context as it is now, and what the run says of itself."""
        return dump(context, {"id": self.id, **run})

    def replace(self, text: bytes) -> None:
        """Replace what is in the file. Raises ProcessorError E717; then it has what it had before."""
        try:
            save(self.path, text)
        except OSError as err:
            raise _unkept(self.path, err) from err


def _sweep(folder: Path) -> None:
    """Remove what runs that were killed had half written; none of those that live writes for so long."""
    for path in folder.glob(f".{_PREFIX}*{_SUFFIX}.*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LONGEST_WRITE_S:
                path.unlink()


def _id(now_ms: int) -> str:
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now_ms // 1000))}{now_ms % 1000:03d}"


def _unkept(path: Path, err: OSError) -> ProcessorError:
    return ProcessorError("E717", f"the context cannot be written: {err.strerror}", place=str(path))


def earlier_run(recipe: Recipe, id: str | None) -> Snapshot:
    """What a run of the recipe left: the one of this id, or the last one.

    Raises ProcessorError E713 where there is none, and E719 where its file cannot be read.
    """
    folder = home_of(recipe) / "Data"
    if id is not None:
        path = folder / f"{_PREFIX}{id}{_SUFFIX}"
        if "/" not in id and path.is_file() and (found := read(path)).run.get("recipe") == recipe.name:
            return found
        what = f"run {id!r:.80} has left no snapshot of recipe {recipe.name!r} in {folder}"
        raise ProcessorError("E713", what, place="--run", remedy="Name a run by the <ts> of its file.")
    for path in sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}"), reverse=True):
        if path.stat().st_size and (found := read(path)).run.get("recipe") == recipe.name:
            return found
    what = f"no run of recipe {recipe.name!r} has left a snapshot in {folder}"
    raise ProcessorError("E713", what, place="--resume-from", remedy="Run the recipe without it.")


def steps_in(run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """How far each step was, by its name: at least its `state`, as a run says of itself in its snapshot."""
    steps = run.get("steps")
    found = steps.items() if isinstance(steps, dict) else ()
    return {name: each for name, each in found if isinstance(each, dict) and type(each.get("state")) is str}


def done_in(run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The steps that had ended well."""
    return {name: each for name, each in steps_in(run).items() if each["state"] == SUCCESS}
