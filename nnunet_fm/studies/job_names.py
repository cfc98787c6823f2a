"""Names of runs, plans and jobs: readable, legal as file names, equal for equal content."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any


def digest(what: Any, length: int) -> str:
    """Short hash of a JSON value, equal in all processes."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:length]


def plain(text: str) -> str:
    """Reduce a text to ASCII letters, digits, dots, dashes and underscores, legal in every shell and file system."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")


def join(*words: str | None, sep: str = "_") -> str:
    """Join all words that are not empty."""
    return sep.join(word for word in words if word)


def job_id(rule: str, name: str, what: Any) -> str:
    """Id of a job: its rule, a readable name, and a hash of its arguments."""
    return f"{rule}-{plain(name)[:120]}-{digest(what, 8)}"


def with_cases(label: str, cases: int | None) -> str:
    """Add the number of training cases to the label of a few-shot run."""
    return label if cases is None else f"{label}, {cases} case{'s' * (cases > 1)}"
