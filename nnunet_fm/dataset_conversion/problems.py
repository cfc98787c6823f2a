"""Problems of a download: each names the file and the rule that it breaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnunet_fm.errors import FMError


@dataclass(frozen=True)
class Problem:
    """One line of the table of problems.

    Attributes:
        file: path inside the source, or the source itself.
        rule: what is wrong with it, as the rest of a sentence that begins with the file.
        case: name of the case that cannot be converted because of it.
        code: stable short name of the rule, as of an `FMError`.
    """

    file: str
    rule: str
    case: str | None = None
    code: str = FMError.code

    def __str__(self) -> str:
        return f"{self.file}: {self.rule}"


class ConversionError(FMError, RuntimeError):
    """The conversion as a whole cannot be done; nothing has been written."""

    def __init__(self, reason: str, problems: Sequence[Problem] = (), *, code: str | None = None) -> None:
        super().__init__(reason, tuple(problems), code=code)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return str(self.args[0])


class Invalid(FMError):
    """One case cannot be converted: which file is against which rule."""

    def __init__(self, file: str, rule: str, *, code: str | None = None) -> None:
        super().__init__(file, rule, code=code)
        self.file, self.rule = file, rule

    def problem(self, case: str | None = None) -> Problem:
        """The line for the table of problems."""
        return Problem(self.file, self.rule, case, self.code)

    def __str__(self) -> str:
        return f"{self.file}: {self.rule}"


class LeftOut(FMError):
    """One case is sound, but the dataset's own rule leaves it out; the message is the reason."""

    code = "case-left-out"


class UnknownConverterError(FMError, LookupError):
    """A dataset without a converter; the message names those that have one."""

    code = "converter-unknown"


class UsageError(FMError, ValueError):
    """An option that this dataset does not know, or a value it does not take (exit code 2)."""
