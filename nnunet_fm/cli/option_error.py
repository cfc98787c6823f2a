"""The error of a command that is called with options it cannot follow."""

from __future__ import annotations

import typer

from nnunet_fm.errors import FMError


class OptionError(FMError, typer.BadParameter):
    """Options that contradict one another, or a value that an option does not take: exit code 2.

    Args:
        message: what is wrong.
        code: stable short name of it.
        param_hint: the option that is named before the message.
    """

    def __init__(self, message: str, *, code: str | None = None, param_hint: str | None = None) -> None:
        super().__init__(message, code=code)
        self.param_hint = param_hint

    def format_message(self) -> str:
        return f"{super().format_message()} [{self.code}]"
