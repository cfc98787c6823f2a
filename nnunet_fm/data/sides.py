"""Labels that differ by side (left and right, front and back, top and bottom), found by their names.

A *pair* is two labels that are equal but for the word of a side, in any place and case: ``Kidney_L`` and
``kidney right``, ``anterior`` and ``posterior``.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Side = Literal["left", "right"]

LEFT = """
    left sinister sinistra sinistrum sinistro sinistre links linke linker linkes linken gauche izquierdo izquierda
    esquerdo esquerda левый левая левое 左
"""
RIGHT = """
    right dexter dextra dextrum destro destra rechts rechte rechter rechtes rechten droit droite derecho derecha
    direito direita правый правая правое 右
"""
CLEAR: dict[str, Side] = {**dict.fromkeys(LEFT.split(), "left"), **dict.fromkeys(RIGHT.split(), "right")}
"""Words that mean a side wherever they stand, also inside of others: ``leftkidney``."""

SHORT: dict[str, Side] = {
    **dict.fromkeys(("l", "lt", "lft", "lh", "li", "sin", "sx"), "left"),
    **dict.fromkeys(("r", "rt", "rgt", "rh", "re", "dex", "dx"), "right"),
}
"""Abbreviations, which mean a side where they stand alone."""

FRONT = "anterior anterius anteriore antérieur front ventral ventralis vordere vorderer vorderes"
BACK = "posterior posterius posteriore postérieur back dorsal dorsalis hintere hinterer hinteres"
ABOVE = "superior superius superiore supérieur upper cranial cranialis top obere oberer oberes"
BELOW = "inferior inferius inferiore inférieur lower caudal caudalis bottom untere unterer unteres"
OPPOSITES: dict[int, tuple[frozenset[str], frozenset[str]]] = {
    1: (frozenset(FRONT.split()), frozenset(BACK.split())),
    2: (frozenset(ABOVE.split()), frozenset(BELOW.split())),
}
"""Index of a patient axis (left-right, front-back, top-bottom) -> words of its two directions, which stand alone."""

NO_STRUCTURES = ("background", "ignore")

_PIECE = re.compile(r"[^\W_]+")
_INSIDE = re.compile("|".join(sorted(CLEAR, key=len, reverse=True)))


@dataclass(frozen=True)
class Sides:
    """Pairs of labels that differ by left and right.

    Attributes:
        pairs: names of two labels that differ by side alone, left first.
        alike: names that only look so: one of a pair, or two that differ by an L and an R within a word.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    alike: tuple[str, ...] = ()


def find_sides(names: Iterable[str]) -> Sides:
    """Pairs among names of labels, and labels that only look like one of a pair."""
    names = [name for name in names if name.casefold() not in NO_STRUCTURES]
    groups: dict[str, dict[Side, list[str]]] = defaultdict(lambda: {"left": [], "right": []})
    for name in names:
        if (found := _side(name)) is not None:
            groups[found[1]][found[0]].append(name)
    pairs = [pair for group in groups.values() for pair in zip(group["left"], group["right"], strict=False)]
    paired = {name for pair in pairs for name in pair}
    words = {name: _words(name) for name in names if name not in paired}
    alone = {name for name, found in words.items() if not (CLEAR | SHORT).keys().isdisjoint(found)}  # not "cleft"
    known = {tuple(found) for found in words.values()}
    swapped = {name for name, found in words.items() if any(other in known for other in _other_side(found))}
    return Sides(tuple(pairs), tuple(name for name in names if name in alone | swapped))


def find_opposites(names: Iterable[str], patient_axis: int) -> tuple[tuple[str, str], ...]:
    """Pairs of labels that differ by front and back (axis 1) or by top and bottom (axis 2) alone.

    Both directions must be there: ``anterior cingulate`` without its counterpart is the name of a structure.
    """
    first, second = OPPOSITES[patient_axis]
    groups: dict[tuple[str, ...], dict[bool, str]] = defaultdict(dict)
    for name in names:
        words = _words(name)
        for meaning in (first, second):
            found = [word for word in words if word in meaning]
            if len(found) == 1:
                rest = tuple(word for word in words if word != found[0])
                groups[rest].setdefault(meaning is first, name)
    return tuple((group[True], group[False]) for group in groups.values() if len(group) == 2)


def _words(name: str) -> list[str]:
    """Words of a name in lower case, separated by signs or by a capital letter: ``leftKidney``, ``LKidney``."""
    words = []
    for piece in _PIECE.findall(unicodedata.normalize("NFKC", name)):
        start = 0
        for i in range(1, len(piece)):
            begins = piece[i].isupper() and not piece[i - 1].isupper()
            last_of_several = piece[i - 1].isupper() and piece[i].isupper() and piece[i + 1 : i + 2].islower()
            if begins or last_of_several:
                words.append(piece[start:i].casefold())
                start = i
        words.append(piece[start:].casefold())
    return words


def _side(name: str) -> tuple[Side, str] | None:
    """Side that a name contains, and the rest of the name; None where it contains none or both."""
    words = _words(name)
    for meaning in (CLEAR | SHORT, CLEAR):  # an abbreviation may be something else: "Left_L5"
        sides: set[Side] = set()
        rest = []
        for word in words:
            if word in meaning:
                sides.add(meaning[word])
            elif (inside := _INSIDE.search(word)) is not None:
                sides.add(CLEAR[inside[0]])
                rest.append(word.replace(inside[0], "", 1))
            else:
                rest.append(word)
        if len(sides) == 1:
            return sides.pop(), "".join(rest)
    return None


def _other_side(words: list[str]) -> list[tuple[str, ...]]:
    """The words with an L at an edge of one of them turned into an R, or the other way round: ``LV``, ``Eye_AL``."""
    other = str.maketrans("lr", "rl")
    return [
        (*words[:i], turned, *words[i + 1 :])
        for i, word in enumerate(words)
        for turned in (word[0].translate(other) + word[1:], word[:-1] + word[-1].translate(other))
        if turned != word
    ]
