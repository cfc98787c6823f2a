"""Errors of this package: one line for the user, and a short code that tests and documentation refer to."""

from __future__ import annotations

from typing import Any


class FMError(Exception):
    """Base class of all errors that this package raises for users.

    Subclasses also inherit from the built-in error of their kind, such as `ValueError`, so that callers may catch
    either. A subclass with a single meaning sets `code` itself; otherwise every ``raise`` names one.

    Args:
        args: the message, as for any exception.
        code: stable short name of what is wrong, such as ``plan-version``. It stays when the message is reworded.
    """

    code: str = "error"

    def __init__(self, *args: Any, code: str | None = None) -> None:
        super().__init__(*args)
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self.args), self.__dict__


class InvalidValueError(FMError, ValueError):
    """A value that cannot be used; the message says why, and what to do."""


class MissingFileError(FMError, FileNotFoundError):
    """A file or folder that is not there; the message says which, and what to do."""


class ExistingFileError(FMError, FileExistsError):
    """A file or folder that is there already and would be overwritten."""


class WriteError(FMError, OSError):
    """A file that could not be written; the message says why, and what to do."""


class FailedError(FMError, RuntimeError):
    """Work that could not be finished; the message says why, and what to do."""


def _unpickled(kind: type[FMError], args: tuple[Any, ...]) -> FMError:
    """An error that another process has sent. Its class may be made of other arguments, so that it is not called."""
    error = kind.__new__(kind, *args)
    super(FMError, error).__init__(*args)
    return error


def code_of(error: BaseException, otherwise: str) -> str:
    """The code of an error whose message becomes part of another's.

    Args:
        error: any error.
        otherwise: the code for errors that have none.
    """
    return error.code if isinstance(error, FMError) else otherwise


def one_line(error: BaseException) -> str:
    """The message of an error on one line, with its code in brackets where it has one.

    Args:
        error: any error; one without a message is named by its class.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text} [{error.code}]" if isinstance(error, FMError) else text
