"""`verify-release`: whether a release is as it was signed."""

from __future__ import annotations

from pathlib import Path

from processor.cli.terminal import EXIT_OK, Screen
from processor.errors import ProcessorError
from processor.release import KEY, verify


def show_verified(folder: Path, key: Path | None) -> int:
    """Verify a folder, and say what was checked. Raises ProcessorError E509."""
    file = folder / KEY if key is None else key
    try:
        pem = file.read_bytes()
    except OSError as err:
        what = f"{file} cannot be read: {err.strerror}"
        raise ProcessorError("E509", what, remedy="Name the public key with --key FILE.") from err
    found = verify(folder, pem)
    screen = Screen("human")
    for name in found.files:
        screen.line(f"{name} is what was signed")
    screen.line(f"made from commit {found.commit}")
    screen.line(f"signed by the key {found.key}")
    if key is None:
        screen.line("That key came with the folder: compare its fingerprint with one from elsewhere.")
    return EXIT_OK
