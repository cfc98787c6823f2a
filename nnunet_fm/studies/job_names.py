"""Names of runs, plans and jobs: readable, legal as file names, and the same whenever they mean the same."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any


def digest(what: Any, length: int) -> str:
    """Short name of a JSON value, the same in every process."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:length]


def plain(text: str) -> str:
    """ASCII letters, digits, dots, dashes and underscores of a text: what every shell and file system takes."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_")


def join(*words: str | None, sep: str = "_") -> str:
    """The words that are there."""
    return sep.join(word for word in words if word)


def job_id(rule: str, name: str, what: Any) -> str:
    """Id of a job: its rule, what people recognise it by, and a digest of what it does."""
    return f"{rule}-{plain(name)[:120]}-{digest(what, 8)}"


def with_cases(label: str, cases: int | None) -> str:
    """Label of a few-shot run."""
    return label if cases is None else f"{label}, {cases} case{'s' * (cases > 1)}"
