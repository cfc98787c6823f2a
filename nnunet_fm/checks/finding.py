"""A finding of ``nnunet-fm doctor``, and sizes as it prints them."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, PROBLEM = "ok", "note", "problem"
GB = 10**9


@dataclass(frozen=True)
class Check:
    """One finding; a problem has a cure, in one line."""

    name: str
    state: str
    detail: str
    cure: str = ""


def size(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / 10**6:.0f} MB"
