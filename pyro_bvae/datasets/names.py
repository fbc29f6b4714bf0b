"""Names that a stranger's file or folder gives: spelt in one way, and shown on one short line."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_LISTED = 8


def clean(word: str | bytes) -> str:
    """A name as it is compared, kept and shown.

    Accents are one character with their letter, as Linux and Windows write them and macOS does not. What
    is no UTF-8 is replaced.
    """
    raw = word if isinstance(word, bytes) else word.encode("utf-8", "surrogateescape")
    return unicodedata.normalize("NFC", raw.decode("utf-8", "replace"))


def listed(names: Sequence[str]) -> str:
    """The first of the names a file holds, on one line whatever they are."""
    shown = [name if name.isprintable() else repr(name) for name in names[:_LISTED]]
    more = [f"{len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return ", ".join([name if len(name) <= 30 else name[:27] + "..." for name in shown] + more)
