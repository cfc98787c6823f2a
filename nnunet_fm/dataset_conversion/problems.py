"""What a converter says when data are not as they should be: always the file and the rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One line of the table of problems.

    Attributes:
        file: path inside the source, or the source itself.
        rule: what is wrong with it, as the rest of a sentence that begins with the file.
        case: name of the case that cannot be converted because of it.
    """

    file: str
    rule: str
    case: str | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.rule}"


class ConversionError(RuntimeError):
    """The conversion as a whole cannot be done; nothing has been written."""

    def __init__(self, reason: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(reason, tuple(problems))
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return str(self.args[0])


class Invalid(Exception):
    """One case cannot be converted: which file is against which rule."""

    def __init__(self, file: str, rule: str) -> None:
        super().__init__(file, rule)
        self.file, self.rule = file, rule

    def __str__(self) -> str:
        return f"{self.file}: {self.rule}"


class LeftOut(Exception):
    """One case is sound, but the dataset's own rule leaves it out; the message is the reason."""


class UsageError(ValueError):
    """An option that this dataset does not know, or a value it does not take (exit code 2)."""
