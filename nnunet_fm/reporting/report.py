"""Report: one self-contained HTML page, and its tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from nnunet_fm import __version__
from nnunet_fm.errors import InvalidValueError
from nnunet_fm.io.atomic_write import write_text
from nnunet_fm.metrics.scores_table import DICE
from nnunet_fm.reporting.generalisation import Pool
from nnunet_fm.reporting.results import Results
from nnunet_fm.reporting.sections import part
from nnunet_fm.reporting.sections.adaptation import adaptation_section
from nnunet_fm.reporting.sections.architecture import architecture_section
from nnunet_fm.reporting.sections.cases import cases_section
from nnunet_fm.reporting.sections.context import Context
from nnunet_fm.reporting.sections.elements import Picture, Section, prose
from nnunet_fm.reporting.sections.generalisation import generalisation_section
from nnunet_fm.reporting.sections.prediction_time import prediction_time_section
from nnunet_fm.reporting.sections.provenance import provenance_section
from nnunet_fm.reporting.sections.published import published_section
from nnunet_fm.reporting.sections.ranking import ranking_section
from nnunet_fm.reporting.sections.structures import structures_section
from nnunet_fm.reporting.sections.summary import summary
from nnunet_fm.reporting.sections.training import training_section

SECTIONS: Mapping[str, Callable[[Context], Section]] = {
    "ranking": ranking_section,
    "generalisation": generalisation_section,
    "adaptation": adaptation_section,
    "models and cost": architecture_section,
    "structures": structures_section,
    "training": training_section,
    "seconds per case": prediction_time_section,
    "published numbers": published_section,
    "cases": cases_section,
    "provenance": provenance_section,
}


def write_report(
    results: Results,
    output: Path,
    *,
    metric: str = DICE,
    pool: Pool = "anatomies",
    pictures: bool = True,
    features: Mapping[str, tuple[Picture, Picture]] | None = None,
    notes: Sequence[str] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> list[str]:
    """Write ``index.html`` and ``tables/`` into a folder.

    Args:
        results: results to show.
        output: output folder, which is made.
        metric: one of `nnunet_fm.metrics.scores_table.METRICS`.
        pool: average over several anatomies, see `nnunet_fm.reporting.generalisation.summarise`.
        pictures: whether to draw pictures of cases.
        features: a slice and the model's feature maps of it as pictures, by label.
        notes: further sentences on missing content.
        progress: called with the name of the next step.

    Returns:
        Sentences on missing content.

    Raises:
        ValueError: without runs, or for an unknown metric.
    """
    if not len(results.runs):
        raise InvalidValueError("there is nothing to report: no trainings were found", code="trainings-none")
    context = Context(results, metric, pool, pictures, features or {}, progress)
    sections = []
    for name, make in SECTIONS.items():
        progress(name)
        sections.append(make(context))
    missing = [sentence for section in sections for sentence in section.missing] + list(notes)
    tables = output / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    for table in (table for section in sections for table in section.tables):
        table.write(tables)
    write_text(output / "index.html", _page(context, sections, missing))
    return missing


def _page(context: Context, sections: list[Section], missing: list[str]) -> str:
    shown = [section for section in sections if section.body]
    lacking = ""
    if missing:
        items = "".join(f"<li>{prose(sentence)}</li>" for sentence in missing)
        lacking = f'<section id="missing" class="missing"><h2>What is missing</h2><ul>{items}</ul></section>'
    names = [(section.name, section.title) for section in shown] + [("missing", "What is missing")] * bool(missing)
    return Template(part("page.html")).substitute(
        title=escape(context.results.title),
        version=__version__,
        style=part("style.css"),
        script=part("script.js"),
        summary=summary(context),
        contents="".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in names),
        sections="\n".join(section.html() for section in shown) + lacking,
    )
