"""`explain`: what the table of errors says of a code."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from processor.cli.terminal import EXIT_OK, Screen
from processor.errors import ERRORS, page_of


def explain(codes: Sequence[str], format: str | None) -> int:
    """Say what each code means and what to do. Raises BadParameter for what is no code."""
    unknown = [code for code in codes if code.upper() not in ERRORS]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not an error code, such as E304", param_hint="CODE")
    screen = Screen(format)
    for row in (ERRORS[code.upper()] for code in codes):
        if screen.is_json:
            named = {
                "code": row.code,
                "meaning": row.meaning,
                "remedy": row.remedy,
                "page": page_of(row.code),
            }
            screen.document(named)
        else:
            screen.heading(f"{row.code} {row.meaning}")
            screen.line(f"  {row.remedy}")
            screen.line(f"  {page_of(row.code)}")
    return EXIT_OK
