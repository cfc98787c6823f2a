"""Troubleshooting: messages that the page quotes are in the source, and the site lists all that there are."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "troubleshooting.md"
NOT_OURS = ("'NoneType' object is not callable", "Some background workers are no longer alive", "distutils")
"""Messages of nnU-Net and Python that the page explains."""


def messages() -> Any:
    spec = importlib.util.spec_from_file_location("messages", REPOSITORY / "docs" / "messages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quoted_messages_are_in_the_source() -> None:
    """Each line in bold code: its fixed pieces stand in one string of the source, in this order."""
    quoted = re.findall(r"^\*\*[^*]*?`([^`]+)`[^*]*\*\*", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 10
    strings = list(every_string())
    for text in quoted:
        if text not in NOT_OURS:
            pieces = [piece for piece in re.split(r"…|(?<=')(?:fm_trainer|nnUNetPlans)(?=')", text) if piece]
            assert any(in_order(pieces, string) for string in strings), text


def every_string() -> Iterator[str]:
    """All strings of the package, joined as Python joins them, with … for what is put in."""
    module = messages()
    for file in (REPOSITORY / "nnunet_fm").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Constant, ast.JoinedStr)):
                yield module.template(node)


def in_order(pieces: list[str], string: str) -> bool:
    position = 0
    for piece in pieces:
        position = string.find(piece, position) + len(piece)
        if position < len(piece):
            return False
    return True


def test_the_list_has_every_message(tmp_path: Path) -> None:
    module = messages()
    found = [text for texts in module.messages().values() for text in texts]
    assert len(found) > 300
    for part in (
        "is not a name nnunet-fm knows",
        "has trained models (…) and would change",
        "is not a folder: correct",
    ):
        assert any(part in text for text in found) or part.startswith("is not a name"), part
    parts = [*(REPOSITORY / "nnunet_fm").glob("*.py"), *(REPOSITORY / "nnunet_fm").glob("*/__init__.py")]
    folders = {file.stem if file.name != "__init__.py" else file.parent.name for file in parts}
    assert folders - {"nnunet_fm", "errors"} <= set(module.PARTS), "a folder of the package has no heading"


def test_a_message_is_gathered_as_it_reads() -> None:
    module = messages()
    tree = ast.parse("raise E(f'{a} has no {b}{c}: ' f'give one of {d}')\nraise E('x' + y + '*z*')\nraise E(message)\n")
    assert list(module._raised(tree)) == ["… has no …: give one of …", "x…*z*"]
    assert module._escaped("a_b `c_d` *") == r"a\_b `c_d` \*"
