"""Sections of the report's page, one file each, and its style. A section without data says how to get them."""

from importlib import resources


def part(name: str) -> str:
    """Text of a file beside this one: ``page.html``, ``style.css`` or ``script.js``."""
    return (resources.files(__name__) / name).read_text(encoding="utf-8")
