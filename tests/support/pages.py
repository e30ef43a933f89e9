"""The pages of the documentation, and the blocks of code and commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FOUND = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("studies/**/*.md")]
# OptunaHub's package is a page of another site; test_optunahub.py runs it.
PAGES = sorted(page for page in _FOUND if "optunahub" not in page.parts)


def name(page: Path) -> str:
    """Return a page's path from the root, to name it in a test."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of code of a page that are in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def with_blocks(language: str) -> list[Path]:
    """Return the pages that have a block in a language."""
    return [page for page in PAGES if blocks(page, language)]


def commands(block: str) -> list[list[str]]:
    """Return the commands of a block of shell, as words, without what is set before them."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found
