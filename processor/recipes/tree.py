"""The folder that a recipe begins in: a recipe, a step in Python and one for a shell, their test, and shims.

`tree()` has every file; what they are called, and where they lie, is what people know from the guide of such
folders. Programs among them do nothing themselves that `processor` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

EXAMPLE = "orchestrator/recipes/example.yaml"

_README = """\
# Steps over one context

    processor recipe run orchestrator/recipes/example.yaml --shell
    processor recipe check orchestrator/recipes/example.yaml
    processor scriptlet orchestrator/scriptlets/python/steps/sample_step.py --params '{"message": "Hi"}'
    ECHO_TEXT=Hi orchestrator/scriptlets/shell/sample.sh
    processor context serve --file orchestrator/Data/context.json
    ./update_state.sh set data.value '42'

Steps are files in `orchestrator/scriptlets`; a recipe names them, in their order, with their parameters. What
one leaves in the context the next ones find. With the wheel `processor-compat` a step is a program of its
own, too, and `pytest -q` runs the tests:

    python orchestrator/scriptlets/python/steps/sample_step.py --params '{"message": "Hi"}'
    python orchestrator/runner.py --recipe orchestrator/recipes/example.yaml

Leave `orchestrator/` without an `__init__.py`: the wheel has a part of that package.
"""

_RUNNER = '''\
"""python orchestrator/runner.py --recipe FILE: `processor recipe run FILE --shell`, and its other options."""
import sys
from processor.cli import main

arguments = [each.removeprefix("--recipe=") for each in sys.argv[1:] if each != "--recipe"]
sys.exit(main(["recipe", "run", *arguments, "--shell"]))
'''

_SERVER = '''\
"""python run_context_server.py: `processor context serve`, for the context of this folder."""
import sys
from pathlib import Path
from processor.cli import main

context = Path(__file__).parent / "orchestrator" / "Data" / "context.json"
sys.exit(main(["context", "serve", "--file", str(context), *sys.argv[1:]]))
'''

_EXAMPLE = """\
# Purpose: one step in Python, and one for a shell
test_meta:
  test_id: EXAMPLE1
  tester: user
  description: Sample steps
steps:
  - idx: 1
    name: sample_python
    type: python
    module: orchestrator.scriptlets.python.steps.sample_step
    class: SampleStep
    params:
      message: "Hello"
  - idx: 2
    name: sample_shell
    type: shell
    cmd: orchestrator/scriptlets/shell/sample.sh
    args:
      ECHO_TEXT: "World"
"""

_STEP = '''\
"""
NAME: sample_step.py
DESCRIPTION: Keep a message in the context.
USAGE:
  python orchestrator/scriptlets/python/steps/sample_step.py --params '{"message":"CLI hello"}'
RETURNS:
  {"status":"ok","recorded_key":"sample.message_v1"}
LIMITATIONS:
  - message becomes a text
"""
import argparse, json
from orchestrator.context import Context
from orchestrator.scriptlets.python.core.base import BaseScriptlet
from orchestrator.scriptlets.python.core.logging import get_logger
from orchestrator.scriptlets.python.core.resource import track_resources

logger = get_logger(__name__)


class SampleStep(BaseScriptlet):
    def validate(self, ctx, params):
        assert "message" in params, "message required"

    @track_resources
    def run(self, ctx, params):
        self.validate(ctx, params)
        msg = str(params["message"])
        key = "sample.message_v1"
        ctx.set(key, msg, who="sample_step")
        logger.info("recorded %s", key)
        return {"status": "ok", "recorded_key": key}


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--params", required=True)
    args = ap.parse_args()
    out = SampleStep().run(Context(), json.loads(args.params))
    print(json.dumps(out))
'''

_SHELL = r"""#!/usr/bin/env bash
# NAME: sample.sh
# DESC: Give a text back as JSON.
# USAGE: ECHO_TEXT=Hello orchestrator/scriptlets/shell/sample.sh
# RETURNS: {"status":"ok","echo":<text>}
set -euo pipefail
text="${ECHO_TEXT:-}"
text="${text//\\/\\\\}"
text="${text//\"/\\\"}"
text="${text//$'\n'/\\n}"
text="${text//$'\t'/\\t}"
printf '{"status":"ok","echo":"%s"}\n' "$text"
"""

_TEST = """\
from orchestrator.context import Context
from orchestrator.scriptlets.python.steps.sample_step import SampleStep


def test_sample_step():
    ctx = Context()
    out = SampleStep().run(ctx, {"message": "Hello"})
    assert out["status"] == "ok"
    assert ctx.get("sample.message_v1") == "Hello"
"""

_PYTEST = """\
[pytest]
pythonpath = .
testpaths = tests
"""

_UPDATE = r"""#!/usr/bin/env bash
# USAGE: ./update_state.sh full | get PATH | set PATH JSON | append PATH JSON | delete PATH | pop PATH [INDEX]
# Asks run_context_server.py, at CONTEXT_PORT (8765) of this machine, and prints the value that it answers.
set -euo pipefail
exec python3 - "$@" <<'PYTHON'
import json, os, socket, sys

op, *rest = sys.argv[1:] or ["full"]
request = {"op": op, **dict(zip(("path",), rest))}
try:
    if rest[1:]:
        request["index" if op == "pop" else "value"] = json.loads(rest[1])
except ValueError:
    sys.exit(f"{rest[1]} is not JSON; a text has quotes: '\"text\"'")
try:
    address = ("127.0.0.1", int(os.environ.get("CONTEXT_PORT", "8765")))
    with socket.create_connection(address, 10) as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(connection.makefile("rb").readline())
except (OSError, ValueError) as err:
    sys.exit(f"no answer ({err}); does run_context_server.py run?")
if not answer["ok"]:
    sys.exit(answer["error"])
print(json.dumps(answer["value"]))
PYTHON
"""

_SCENARIO = """\
#!/usr/bin/env bash
# A scenario of changes to a context, one after the other; run_context_server.py has to run.
set -euo pipefail
cd "$(dirname "$0")"
./update_state.sh set data.user '{"name":"Alice"}'
./update_state.sh get data.user
./update_state.sh append data.numbers '1'
./update_state.sh append data.numbers '2'
./update_state.sh get data.numbers
./update_state.sh pop data.numbers
./update_state.sh delete data.user
./update_state.sh full
"""


class TreeFile(NamedTuple):
    """A file of the folder."""

    text: str
    is_program: bool = False


def tree() -> Mapping[str, TreeFile]:
    """The files by their paths in the folder."""
    kept = {f"orchestrator/{name}/.gitkeep": TreeFile("") for name in _FOLDERS}
    steps = "orchestrator/scriptlets"
    return {
        "README.md": TreeFile(_README),
        EXAMPLE: TreeFile(_EXAMPLE),
        "orchestrator/runner.py": TreeFile(_RUNNER),
        f"{steps}/python/steps/sample_step.py": TreeFile(_STEP),
        f"{steps}/shell/sample.sh": TreeFile(_SHELL, is_program=True),
        **kept,
        "pytest.ini": TreeFile(_PYTEST),
        "run_context_server.py": TreeFile(_SERVER),
        "test.sh": TreeFile(_SCENARIO, is_program=True),
        "tests/test_sample_step.py": TreeFile(_TEST),
        "update_state.sh": TreeFile(_UPDATE, is_program=True),
    }


_FOLDERS = ("Assets", "Data", "Logs", "templates", "tools")


def write_tree(folder: Path) -> list[Path]:
    """Write the files into a folder, which is made where it is not there; what was written.

    Raises FileExistsError, before anything is written, where one of them is there, and OSError.
    """
    files = {folder / name: file for name, file in tree().items()}
    for path in files:
        if path.exists() or path.is_symlink():
            raise FileExistsError(f"{path} is there already")
    for path, file in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as opened:
            opened.write(file.text)
        if file.is_program:
            path.chmod(path.stat().st_mode | 0o111)
    return list(files)
