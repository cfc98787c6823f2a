"""One finding of ``nnunet-fm doctor``, and its way to print sizes."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, PROBLEM = "ok", "note", "problem"
GB = 10**9


@dataclass(frozen=True)
class Check:
    """One finding; a problem has a cure of one line."""

    name: str
    state: str
    detail: str
    cure: str = ""


def size(count: float) -> str:
    """A number of bytes as GB or MB."""
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / 10**6:.0f} MB"
