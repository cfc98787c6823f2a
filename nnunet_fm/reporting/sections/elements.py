"""Pieces of HTML: tables with formatted numbers, figures, legends and grids of pictures."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_fm.io.atomic_write import write_text
from nnunet_fm.reporting.overlay import class_colour
from nnunet_fm.reporting.tables import Best, csv, latex, markdown, plus_minus

NONE = "–"
"""Text of a missing number."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        key: column of the frame.
        title: heading, with the unit.
        text: format of a number, such as ``.3f``, or a function; None for words.
        sd: column with the standard deviation that follows the number.
        best: whether the largest or the smallest number is bold.
        wrap: whether long words may break.
    """

    key: str
    title: str
    text: str | Callable[[float], str] | None = None
    sd: str | None = None
    best: Best | None = None
    wrap: bool = False

    def words(self, row: Mapping[Any, Any]) -> str:
        """Text of this column's cell in a row."""
        value = row[self.key]
        if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
            return NONE
        if self.text is None:
            return str(value)
        if callable(self.text):
            return self.text(value)
        spread = float("nan") if self.sd is None else float(row[self.sd])
        return plus_minus(float(value), spread, self.text).replace("-", "−")


@dataclass(frozen=True)
class Table:
    """A table of the page that is also written as files.

    Args:
        name: name of the files.
        caption: meaning of the rows and source of the numbers.
        frame: numbers with all digits, which go into the CSV.
        columns: columns to show, in order; the first one names the rows.
        controls: labels of grey rows.
        group: column by which a reader may filter the rows.
        choice: words before that filter.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    controls: Collection[str] = ()
    group: str | None = None
    choice: str = ""

    def words(self) -> list[list[str]]:
        """Text of the table's cells, row by row."""
        return [[column.words(row) for column in self.columns] for row in self.frame.to_dict("records")]

    def html(self) -> str:
        """Return a ``<table>`` in a card that scrolls sideways."""
        bold = self._bold()
        head = "".join(f'<th scope="col"{_class(column)}>{breakable(column.title)}</th>' for column in self.columns)
        rows = []
        for number, (values, words) in enumerate(zip(self.frame.to_dict("records"), self.words(), strict=True)):
            control = values.get("label") in self.controls
            attributes = ' class="control"' if control else ""
            if self.group:
                attributes += f' data-group="{escape(str(values[self.group]))}"'
            cells = []
            for place, (column, word) in enumerate(zip(self.columns, words, strict=True)):
                tag, scope = ("td", "") if place else ("th", ' scope="row"')
                content = f"<b>{escape(word)}</b>" if (number, place) in bold else escape(word)
                if column.key == "label" and control:
                    content += '<span class="tag">control</span>'
                cells.append(f"<{tag}{scope}{_class(column)}{_sorted_by(values[column.key], column)}>{content}</{tag}>")
            rows.append(f"<tr{attributes}>{''.join(cells)}</tr>")
        kind = "sortable long" if len(self.frame) > 25 else "sortable"
        choice = f' data-filter="{escape(self.choice)}"' if self.group else ""
        return (
            f'<figure class="card"><div class="scroll" tabindex="0" role="region" aria-label="{escape(self.caption)}">'
            f'<table class="{kind}"{choice}><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
            f"<figcaption>{escape(self.caption)}</figcaption></figure>"
        )

    def _bold(self) -> set[tuple[int, int]]:
        """Row and column of the best numbers, and of equal text."""
        found = set()
        words = self.words()
        for place, column in enumerate(self.columns):
            numbers = (
                pd.to_numeric(self.frame[column.key]) if column.best and len(words) > 1 else pd.Series(dtype=float)
            )
            if numbers.notna().any():
                top = int(numbers.reset_index(drop=True).agg("idxmax" if column.best == "max" else "idxmin"))
                found |= {(row, place) for row in range(len(words)) if words[row][place] == words[top][place]}
        return found

    def write(self, folder: Path) -> None:
        """Write all numbers as CSV, and the text of the page as Markdown and LaTeX."""
        shown: dict[str, Any] = {}
        formats = {}
        for column, words in zip(self.columns, zip(*self.words(), strict=True), strict=True):
            if isinstance(column.text, str) and column.sd is None:
                shown[column.title] = pd.to_numeric(self.frame[column.key]).to_numpy()
                formats[column.title] = column.text
            else:
                shown[column.title] = words
        best = {column.title: column.best for column in self.columns if column.best and column.title in formats}
        frame = pd.DataFrame(shown)
        stem = folder / self.name
        texts = {
            ".csv": csv(self.frame),
            ".md": markdown(frame, formats, best, self.caption),
            ".tex": latex(frame, formats, best, self.caption, f"tab:{self.name}"),
        }
        for ending, text in texts.items():
            write_text(stem.with_name(stem.name + ending), text)


def prose(words: str) -> str:
    """Escape text; words between backticks become code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(words))


def breakable(words: str) -> str:
    """Escape text and let long words break, preferably after punctuation."""
    pieces = re.findall(r"[^_/.\-]{1,16}[_/.\-]*|[_/.\-]+", words)
    return "<wbr>".join(map(escape, pieces)) if any(len(word) > 16 for word in words.split()) else escape(words)


def _class(column: Column) -> str:
    names = (["words"] if column.text is None else []) + (["wrap"] if column.wrap else [])
    return f' class="{" ".join(names)}"' if names else ""


def _sorted_by(value: Any, column: Column) -> str:
    """Attribute with the number that a cell is sorted by."""
    if column.text is None or isinstance(value, str):
        return ""
    return "" if value is None or pd.isna(value) or math.isinf(value) else f' data-value="{float(value)!r}"'


@dataclass
class Section:
    """A part of the page.

    Args:
        name: anchor.
        title: heading.
        body: HTML.
        tables: tables of the section, which are also written as files.
        missing: sentences on missing content and how to get it.
    """

    name: str
    title: str
    body: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def text(self, words: str) -> None:
        self.body.append(f"<p>{prose(words)}</p>")

    def heading(self, words: str) -> None:
        self.body.append(f"<h3>{escape(words)}</h3>")

    def warn(self, words: str) -> None:
        self.body.append(f'<p class="warning">{prose(words)}</p>')

    def table(self, table: Table) -> None:
        self.tables.append(table)
        self.body.append(table.html())

    def figure(self, content: str, caption: str) -> None:
        scroll = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">{content}</div>'
        self.body.append(f'<figure class="card">{scroll}<figcaption>{escape(caption)}</figcaption></figure>')

    def html(self) -> str:
        """Return the section, empty without any content."""
        if not self.body:
            return ""
        return f'<section id="{self.name}"><h2>{escape(self.title)}</h2>{"".join(self.body)}</section>'


@dataclass(frozen=True)
class Picture:
    """A picture: PNG bytes, alternative text, and a line below."""

    png: bytes
    alt: str
    note: str = ""

    def html(self) -> str:
        data = base64.b64encode(self.png).decode("ascii")
        return f'<img alt="{escape(self.alt)}" src="data:image/png;base64,{data}">{escape(self.note)}'


def picture_grid(
    columns: Sequence[str], rows: Iterable[tuple[str, Sequence[Picture | None]]], *, surfaces: bool = False
) -> str:
    """A table of pictures with named columns and rows."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f"{''.join(f'<td>{picture.html() if picture else NONE}</td>' for picture in pictures)}</tr>"
        for name, pictures in rows
    )
    kind = "pictures surfaces" if surfaces else "pictures"
    width = f"--columns: {len(columns)}"
    return f'<table class="{kind}" style="{width}"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'


def class_legend(classes: Iterable[str]) -> str:
    """Names of classes with their colours."""
    items = "".join(
        f'<li><span class="swatch" style="background:{class_colour(number)}"></span>{escape(name)}</li>'
        for number, name in enumerate(classes)
    )
    return f'<ul class="legend" aria-label="classes">{items}</ul>'


def definitions(facts: Mapping[str, str]) -> str:
    """A list of terms and what they are."""
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in facts.items())}</dl>"
