"""`processor try --learn`: the lines of a policy, made from what a Runnable asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from processor.cli.terminal import EXIT_CONFIG, EXIT_FAILED, EXIT_OK
from processor.policy import asked, load
from tests.integration.test_cli import Start, code, command, done

__all__ = ["command", "done"]  # fixtures

ASKING = """
class Runnable:
    def process(self, queries):
        for query in queries:
            self.files.write(f"out:/{query['i']}.txt", "x")
            self.emit("alerts.x", query)
            self.heap.alloc("counter", query)
            yield query
"""
CONFIG = """\
app: app
files: {out: {path: out, write: true}}
routes:
  r:
    input: {subject: "in.*", create: true}
    runnable: asking.py
    output: out
    emits: [alerts.*]
    files: [out]
    retry: {attempts: 1}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "asking.py").write_text(ASKING)
    (tmp_path / "app.yaml").write_text(CONFIG)
    return tmp_path / "app.yaml"


def test_what_was_learned_allows_that_alone(config: Path, tmp_path: Path, done: Start) -> None:
    """The lines let the same messages through, and deny the first that asks for another file."""
    policy = tmp_path / "policy.toml"
    learned = done("try", config, "r", "-", "--learn", policy, given='{"i": 1}\n{"i": 2}\n')
    assert code(learned) == EXIT_OK, learned.err
    rules = load([policy])
    for op, target in (
        ("file.write", "out:/1.txt"),
        ("file.write", "out:/2.txt"),
        ("emit", "alerts.x"),
        ("heap.alloc", "counter"),
    ):
        assert rules.decide("r", asked(op, target), 0).is_allowed, op
    config.write_text(f"policy: policy.toml\n{CONFIG}")
    same = done("try", config, "r", "-", given='{"i": 1}\n{"i": 2}\n')
    assert code(same) == EXIT_OK, same.out + same.err
    other = done("try", config, "r", "-", given='{"i": 3}\n')
    assert code(other) == EXIT_FAILED
    assert '"code":"E330"' in other.out


def test_a_policy_that_denies_does_not_hide_what_is_asked_for(
    config: Path, tmp_path: Path, done: Start
) -> None:
    """Learning denies nothing, whatever the files of the configuration say."""
    (tmp_path / "policy.toml").write_text(
        '[[capability]]\neffect = "deny"\nname = "file"\nresource = "**"\nmethods = ["*"]\n'
    )
    config.write_text(f"policy: policy.toml\n{CONFIG}")
    learned = done("try", config, "r", "-", "--learn", tmp_path / "new.toml", given='{"i": 1}\n')
    assert code(learned) == EXIT_OK, learned.out + learned.err
    assert load([tmp_path / "new.toml"]).decide("r", asked("file.write", "out:/1.txt"), 0).is_allowed


def test_a_file_that_is_there_is_not_written_over(config: Path, tmp_path: Path, done: Start) -> None:
    """Nothing is run, and the file stays as it is."""
    (tmp_path / "policy.toml").write_text("# ours\n")
    refused = done("try", config, "r", "-", "--learn", tmp_path / "policy.toml", given='{"i": 1}\n')
    assert code(refused) == EXIT_CONFIG
    assert "policy.toml E107 is there already" in refused.err
    assert (tmp_path / "policy.toml").read_text() == "# ours\n"
    assert list((tmp_path / "out").iterdir()) == []
