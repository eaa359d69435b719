"""The pages as a site: built as a release builds them, complete, and without anything from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from processor.errors import ERRORS, page_of

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "docs" / "build.py"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; the build fails where a link or a heading leads nowhere."""
    pytest.importorskip("zensical", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("pages") / "site"
    done = subprocess.run(
        [sys.executable, str(BUILD), "--into", str(folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_the_site_has_a_place_for_every_error(site: Path) -> None:
    """Where an error of the command line and a dead letter point to is in the site."""
    for code in ERRORS:
        folder, _, anchor = page_of(code).partition("#")
        assert f'id="{anchor}"' in (site / folder / "index.html").read_text()


def test_the_site_fetches_nothing(site: Path) -> None:
    """Fonts, styles, scripts and pictures are its own: it works where there is no network."""
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link)\b[^>]*?(?:src|href)="?([^" >]+)', page.read_text())
        assert loaded
        assert [target for target in loaded if re.match(r"https?:|//", target)] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:|//)", style.read_text())


def test_the_pages_of_llms_txt_are_there(site: Path) -> None:
    """Each is served as Markdown at the address that llms.txt names."""
    named = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text())
    assert named
    assert [name for name in named if not (site / name).is_file()] == []


def test_a_link_that_leads_nowhere_is_found(site: Path) -> None:
    """What the build looks for can fail: a heading and a file that are not there are both named."""
    page = site / "start" / "index.html"
    written = page.read_text()
    page.write_text(written + '<a href="../gone/">x</a><a href="../reference/errors/#e999">x</a>')
    try:
        program = (
            f"import sys; sys.path.insert(0, {str(BUILD.parent)!r}); import build; from pathlib import Path; "
            f"print(*build.broken(Path({str(site)!r})), sep='\\n')"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    finally:
        page.write_text(written)
    assert done.stdout.splitlines() == [
        "start/index.html: ../gone/ leads nowhere",
        "start/index.html: ../reference/errors/#e999 leads nowhere",
    ]
