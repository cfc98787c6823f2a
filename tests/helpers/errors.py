"""Errors are asserted by code and facts, such as a file, a number or a name: their wording may change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nnunet_fm.errors import FMError


@contextmanager
def fails(code: str, *facts: object, kind: type[FMError] = FMError) -> Iterator[pytest.ExceptionInfo[Any]]:
    """Expect an error with this code whose message holds each fact."""
    with pytest.raises(kind) as caught:
        yield caught
    assert_error(caught.value, code, *facts)


def assert_error(error: BaseException | None, code: str, *facts: object) -> None:
    """Expect this code, and each fact in the message."""
    assert isinstance(error, FMError) and error.code == code, error
    assert_facts(str(error), facts)


def assert_refused(printed: str, code: str, *facts: object) -> None:
    """Expect that a command printed an error last: its message with each fact, and its code in brackets."""
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", printed).split())  # a terminal's frame and line breaks
    assert words.endswith(f"[{code}]") and "Traceback" not in words, printed
    assert_facts(words, facts)


def assert_facts(message: str, facts: tuple[object, ...]) -> None:
    """Expect that each fact is in a message; a number is not a part of another."""
    for fact in map(str, facts):
        found = re.search(rf"(?<![\w.]){re.escape(fact)}(?!\w)", message) if fact.isdigit() else fact in message
        assert found, f"{fact} is not in: {message}"
