"""Print the tables of README and docs from the model cards, the recipe's schema and the planner's rules.

    python docs/tables.py            # rewrite what stands between the markers
    python docs/tables.py --check    # exit with 1 if a file is not up to date

A file marks the place of a table with ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from inspect import getdoc
from os.path import commonprefix
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from nnunet_fm.cli.app import app
from nnunet_fm.data.presets import PRESETS
from nnunet_fm.dataset_conversion import ALIASES, CONVERTERS, get_converter
from nnunet_fm.dataset_conversion.base import Converter
from nnunet_fm.heads import HEADS, head_class, needs_official
from nnunet_fm.models import card as card_schema
from nnunet_fm.models.card import Intensity, ModelCard, Recipe, Variant
from nnunet_fm.models.count import trained_by_head
from nnunet_fm.models.registry import cards, grammar
from nnunet_fm.planfile import schema as plan_key
from nnunet_fm.plans.choice import RULES
from nnunet_fm.published_quirks import QUIRKS
from nnunet_fm.trainers import describe

REPOSITORY = Path(__file__).resolve().parents[1]
ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
"""A line of a docstring's Args, with those that it goes on in."""
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def models() -> str:
    """One row per model."""
    return table(
        ("model", "what", "", "parameters", "heads", "adapters", "licence of the weights"),
        (
            (
                f"`{card.name}`",
                card.title,
                f"{card.dim}D",
                _millions(card),
                _heads_of(card),
                _codes(card.adapters) or "–",
                card.weights_licence,
            )
            for card in cards().values()
        ),
    )


def overview() -> str:
    """One row per family."""
    families = {}
    for card in cards().values():
        families.setdefault((card.family, card.dim), []).append(card)
    return table(
        ("models", "what", "", "parameters", "default head", "default adapter", "licence of the weights"),
        (
            (
                _codes(card.name for card in members),
                _title(members),
                f"{members[0].dim}D",
                " to ".join(dict.fromkeys((_short(members[0]), _short(members[-1])))),
                f"`{members[0].default_head}`" if members[0].heads else "its own",
                ", ".join(dict.fromkeys(f"`{card.default_adapter}`" for card in members if card.adapters)) or "–",
                " / ".join(dict.fromkeys(card.weights_licence for card in members)),
            )
            for members in families.values()
        ),
    )


def heads() -> str:
    """One row per decode head; parameters on maps of SAM B and of MAE B."""
    sam, mae = (trained_by_head(cards()[name], 15) for name in ("sam_b", "mae_b"))
    lines = {name: getdoc(head_class(name)).partition("\n")[0] for name in sam}
    return table(
        ("head", "what", "trained with SAM B", "with MAE B", "starts from a file of its own"),
        (
            (f"`{name}`", what.split(";")[0].rstrip("."), f"{sam[name]:,}", f"{mae[name]:,}",
             "yes" if needs_official(name) else "no")
            for name, what in lines.items()
        ),
    )  # fmt: skip


def families() -> str:
    """One section per family: what it is, what its weights have seen, how it is planned."""
    text = []
    for family in dict.fromkeys(card.family for card in cards().values()):
        members = [card for card in cards().values() if card.family == family]
        for dim in sorted({card.dim for card in members}, reverse=True):
            text.append(_family([card for card in members if card.dim == dim]))
    return "\n".join(text)


def recipe() -> str:
    """One row per field of a recipe."""
    properties = Recipe.model_json_schema()["properties"]
    return table(
        ("field", "values", "default", "meaning"),
        (
            (
                f"`{name}`",
                _values(entry),
                _code(entry["default"]),
                entry.get("description", ""),
            )
            for name, entry in properties.items()
        ),
    )


def choice() -> str:
    """One row per rule of FMPlanner, in order."""
    return table(
        ("", "if the data are", "model", "because"),
        (
            (number, rule.condition, ", else ".join(f"`{m}`" for m in rule.models), rule.reason)
            for number, rule in enumerate(RULES, 1)
        ),
    )


def augmentation() -> str:
    """One row per transform of a preset, in the order in which they are applied."""
    return table(
        ("preset", "transform", "probability", "strength", "numbers of"),
        (
            (
                f"`{preset}`" if number == 0 else "",
                step.kind,
                f"{step.probability:.2g}",
                "" if step.strength == (0, 0) else "{:.4g} to {:.4g}".format(*step.strength),
                step.source,
            )
            for preset, steps in PRESETS.items()
            for number, step in enumerate(steps)
        ),
    )


def datasets() -> str:
    """One row per dataset that can be converted."""
    return table(
        ("dataset", "what", "cases", "channels", "labels", "options", "licence"),
        (
            (
                f"`{converter.name}`",
                converter.title,
                converter.size,
                ", ".join(converter.channels),
                ", ".join(str(len(labels.names) - 1) for labels in converter.label_sets.values()),
                _codes(f"--{option}" for option in converter.known_options()),
                converter.licence,
            )
            for converter in map(get_converter, CONVERTERS)
        ),
    )


def dataset_sections() -> str:
    """One section per dataset: layouts, options, labels, decisions, what was checked and what is unknown."""
    return "\n".join(_dataset(get_converter(name)) for name in CONVERTERS)


def decision() -> str:
    """One row per model: what its weights have seen and allow, and what it costs at its plan."""
    costs = json.loads((REPOSITORY / "docs" / "costs.json").read_text(encoding="utf-8"))
    return table(
        (
            "model",
            "has seen: do not test on it",
            "licence of the weights",
            "GB to train",
            "GFLOP a patch",
            "patch",
            "batch",
        ),
        (
            (
                f"`{name}`",
                ", ".join(card.pretraining.datasets or card.pretraining.modality) or "nothing",
                _permission(card),
                f"{costs[name]['gigabytes']:.1f}",
                f"{1000 * costs[name]['tflop']:,.0f}",
                "×".join(map(str, costs[name]["patch"])),
                costs[name]["batch"],
            )
            for name, card in cards().items()
        ),
    )


def _permission(card: ModelCard) -> str:
    """What the licence of the weights comes to, in three words."""
    if card.weights_use == "open":
        return "not stated, code open" if card.weights_licence.startswith("not stated") else "open"
    return {"research": "research only", "unclear": "ask first"}[card.weights_use]


def flags() -> str:
    """One row per flag that several sub-commands have, one column per sub-command that has more than everywhere."""
    everywhere = {"--json", "--quiet", "-q"}
    found = {
        name: options
        for name, options in sorted(_options(typer.main.get_command(app)).items())
        if len(name.split()) == 1 and {flag for names in options for flag in names} - everywhere
    }
    shared = [
        names
        for names in dict.fromkeys(names for options in found.values() for names in options)
        if sum(any(set(names) & set(other) for other in options) for options in found.values()) > 1
    ]
    merged: list[set[str]] = []  # one command may know a flag by more names than another
    for names in shared:
        same = next((group for group in merged if group & set(names)), None)
        if same is None:
            merged.append(set(names))
        else:
            same.update(names)
    order = sorted(merged, key=lambda group: (-_users(group, found), min(group, key=len)))
    return table(
        ("flag", *found),
        (
            (
                ", ".join(f"`{flag}`" for flag in sorted(group, key=len)),
                *("✓" if any(group & set(names) for names in options) else "" for options in found.values()),
            )
            for group in order
        ),
    )


def _users(group: set[str], found: dict[str, list[tuple[str, ...]]]) -> int:
    return sum(any(group & set(names) for names in options) for options in found.values())


def _options(command: Any, path: str = "") -> dict[str, list[tuple[str, ...]]]:
    """Sub-command -> the spellings of each of its options."""
    if hasattr(command, "commands"):
        children = (_options(child, f"{path} {name}".strip()) for name, child in command.commands.items())
        return {name: options for child in children for name, options in child.items()}
    return {path: [tuple(p.opts) for p in command.params if p.param_type_name == "option"]}


def commands() -> str:
    """One row per sub-command: what it does, from its docstring."""
    root = typer.main.get_command(app)
    return table(("command", "what"), _lines(root, "nnunet-fm"))


def _lines(command: Any, path: str) -> Iterable[tuple[str, str]]:
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from _lines(child, f"{path} {name}")
        else:
            yield f"`{path} {name}`", child.help.partition("\n")[0]


def card_fields() -> str:
    """All classes of a model card, field by field; a recipe's fields are printed elsewhere."""
    names = (
        "ModelCard",
        "Pretraining",
        "NetworkCard",
        "Checkpoint",
        "Variant",
        "Geometry",
        "Intensity",
        "DatasetChoice",
    )
    return "\n".join(_fields(getattr(card_schema, name)) for name in names)


def plan_fields() -> str:
    """The extra key of our plans, that of stock plans, and what they are made of, field by field."""
    names = ("PlanKey", "WeightsEntry", "Adaptation", "StockKey")
    return "\n".join(_fields(getattr(plan_key, name)) for name in names)


def _fields(schema: type[BaseModel]) -> str:
    """A section: what the class says of itself, and its fields."""
    text, _, arguments = getdoc(schema).partition("\nArgs:\n")
    said = {name: " ".join(what.split()) for name, what in ARGUMENT.findall(arguments)}
    rows = [
        (
            f"`{name}`",
            _kind(field.annotation),
            "required" if field.is_required() else _code(_plain(field.get_default(call_default_factory=True))),
            field.description or said.get(name, ""),
        )
        for name, field in schema.model_fields.items()
    ]
    said_first = text.replace("``", "`").strip()
    return f"### {schema.__name__}\n\n{said_first}\n\n{table(('field', 'values', 'default', 'meaning'), rows)}"


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _kind(annotation: Any) -> str:
    """A type in words: ``list[int] | None`` -> whole numbers or null."""
    if annotation is None or annotation is type(None):
        return "`null`"
    if annotation is Any:
        return "anything"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(_kind(part) for part in inner)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} × {_kind(inner[0])}"
    if origin is dict:
        return f"table: {_kind(inner[0])} → {_kind(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (
            f"[{annotation.__name__}](#{annotation.__name__.lower()})"
            if annotation is not Recipe
            else "[recipe](plans.md#recipe)"
        )
    return {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}[annotation]


def names() -> str:
    """Trainer names of every kind, and what their classes say of themselves."""
    kinds = (
        "fm_trainer", "fm_trainer_freeze", "fm_trainer_linear_full", "fm_trainer_scratch", "fm_trainer_stunet_b",
        "fm_trainer_sam_b_hqhsam_rein", "fm_trainer_resnet50_scratch", "fm_trainer_pumit",
    )  # fmt: skip
    return table(("name", "its docstring"), ((f"`{name}`", describe(grammar().trainer(name))) for name in kinds))


def counts() -> str:
    """How many names there are, and which models have others."""
    known, aliases = grammar(), {a: c.name for c in cards().values() for a in c.aliases}
    others = ", ".join(f"`{alias}` is `{name}`" for alias, name in aliases.items())
    return f"{len(known.trainers):,} trainers and {len(known.planners):,} planners. Other names of models: {others}.\n"


def quirks() -> str:
    """Departures of published code from its paper."""
    rows = ((quirk.what, quirk.source, f"`{quirk.switch}`" if quirk.switch else "always on") for quirk in QUIRKS)
    return table(("what the published code does", "whose", "switch"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "models": models,
    "overview": overview,
    "families": families,
    "heads": heads,
    "recipe": recipe,
    "choice": choice,
    "augmentation": augmentation,
    "datasets": datasets,
    "dataset_sections": dataset_sections,
    "decision": decision,
    "flags": flags,
    "commands": commands,
    "card_fields": card_fields,
    "plan_fields": plan_fields,
    "names": names,
    "counts": counts,
    "quirks": quirks,
}


USE = {
    "open": "open licence beside them",
    "research": "not for commercial use",
    "unclear": "no licence stated: ask the authors before you publish or sell what comes of them",
}
"""Card vocabulary of ``weights_use`` -> words."""


def filled(text: str) -> str:
    """The text with every marked place filled anew."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


def _dataset(converter: Converter) -> str:
    others = [alias for alias, name in ALIASES.items() if name == converter.name]
    also = f" (also {_codes(others)})" if others else ""
    lines = [f"### {converter.title}", "", f"`nnunet-fm convert {converter.name}`{also}. {converter.reference}", ""]
    lines.append(f"* **Licence**: {converter.licence} ({converter.licence_source}).")
    lines += [f"* **Layout** `{name}`: {example}." for name, example in converter.layouts.items()]
    for option, values in converter.known_options().items():
        lines.append(f"* `--{option}`" + (f" takes {_codes(values)}." if values else "."))
    lines += [f"* **Split** `{name}`: {meaning}." for name, meaning in converter.splits.items()]
    for title, texts in (
        ("Decision", converter.notes),
        ("Checked", converter.checked),
        ("Unknown", converter.unknown),
    ):
        lines += [f"* **{title}**: {text}." for text in texts]
    for name, labels in converter.label_sets.items():
        which = f"Labels `{name}`" if len(converter.label_sets) > 1 else "Labels"
        lines.append(f"* **{which}**: {', '.join(f'{value} {label}' for label, value in labels.names.items())}.")
    return "\n".join([*lines, ""])


def _code(value: Any) -> str:
    """A value as ``--set`` takes it."""
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _heads_of(card: ModelCard) -> str:
    """Its heads, the default first; all of them in two words."""
    if len(card.heads) == len(HEADS):
        return f"`{card.default_head}`, all others"
    return _codes(card.heads) or "its own"


def _title(members: Sequence[ModelCard]) -> str:
    return commonprefix([card.title for card in members]).strip(" -(") or members[0].title  # noqa: RUF071 (no paths)


def _short(card: ModelCard) -> str:
    return f"{next(iter(card.parameters.values())) / 1e6:,.1f} M"


def _millions(card: ModelCard) -> str:
    classes, parameters = next(iter(card.parameters.items()))
    return f"{parameters / 1e6:,.2f} M ({classes} classes)"


def _family(members: list[ModelCard]) -> str:
    first = members[0]
    names = ", ".join(f"`{card.name}`" for card in members)
    lines = [f"### {commonprefix([card.title for card in members]).strip(' -')}", ""]  # noqa: RUF071 (titles, no paths)
    lines += [f"{names}. {first.summary} {first.paper}.", ""]
    seen = first.pretraining
    if seen.modality:
        datasets = f"{', '.join(seen.datasets)} ({', '.join(seen.modality)})" if seen.datasets else seen.modality[0]
        lines.append(f"* **Weights have seen** {datasets}. {seen.note}")
    lines.append(
        f"* **Licences**: code {first.code_licence}; weights {first.weights_licence} ({USE[first.weights_use]})."
    )
    for card in members:
        for number, checkpoint in enumerate(card.checkpoints):
            files = " or ".join(f"`{file}`" for file in checkpoint.files)
            other = f" or, with `--weights {checkpoint.name}`, from" if number else " **starts from**"
            note = f". {checkpoint.note}" if checkpoint.note else ""
            lines.append(f"* `{card.name}`{other} {files}, {checkpoint.page}{note}")
    lines += [f"* {note}" for note in first.notes]
    lines += [
        "",
        table(
            (
                "variant",
                "spacing (mm)",
                "patch",
                "batch",
                "CT / other",
                "optimiser",
                "loss",
                "augmentation",
                "sampling",
                "iterations",
            ),
            _plans(first),
        ),
    ]
    return "\n".join(lines)


def _plans(card: ModelCard) -> Iterable[Sequence[Any]]:
    for name, variant in card.variants.items():
        geometry, intensity, recipe = variant.geometry, variant.intensity, variant.recipe
        spacing = "nnU-Net's" if geometry.spacing is None else geometry.spacing
        patch = "nnU-Net's" if name == "nnunet" else "×".join(map(str, geometry.patch))
        counts = ", ".join(f"{key} {value:,}" for key, value in card.iterations.items())
        yield (
            name,
            spacing if isinstance(spacing, str) else " × ".join(f"{s:g}" for s in spacing),
            patch,
            geometry.batch,
            f"{_scheme(intensity)} / {intensity.other}",
            _optimiser(recipe),
            recipe.loss,
            recipe.augmentation,
            _sampling(recipe),
            f"{variant.iterations:,}" if variant.iterations else _epochs(variant) or counts,
        )


def _epochs(variant: Variant) -> str:
    """Passes over the slices, by dataset where they differ; empty where iterations are counted otherwise."""
    if variant.epochs is None:
        return ""
    others = "".join(f", {name} {choice.epochs}" for name, choice in variant.datasets.items() if choice.epochs)
    return f"{variant.epochs} epochs{others}"


def _optimiser(recipe: Recipe) -> str:
    """Optimiser, learning rate and schedule, and what differs of them from random weights."""
    text = f"{recipe.optimizer} {recipe.learning_rate:g}, {recipe.schedule}"
    if recipe.scratch is None:
        return text
    scratch = recipe.from_scratch()
    return f"{text}; from random weights {scratch.optimizer} {scratch.learning_rate:g}"


def _sampling(recipe: Recipe) -> str:
    if recipe.sampling == "rare_class":  # draws classes, not foreground
        return recipe.sampling
    return f"{recipe.sampling}, {100 * recipe.oversample_foreground:.0f} % foreground"


def _scheme(intensity: Intensity) -> str:
    """Scheme for CT; with the window in HU where it has one."""
    if intensity.ct != "window" or intensity.window is None:
        return intensity.ct
    return "window {:g} to {:g} HU".format(*intensity.window)


def _values(entry: dict[str, Any]) -> str:
    """What a field of the JSON schema may hold."""
    if "anyOf" in entry:
        return " or ".join(_values(part) for part in entry["anyOf"])
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    if entry.get("type") == "array":
        return f"list of {_values(entry['items'])}"
    if "$ref" in entry:
        fields = getattr(card_schema, entry["$ref"].rpartition("/")[2]).model_fields
        return f"table of {', '.join(f'`{field}`' for field in fields)}"
    low = next(
        (f"{sign} {entry[key]:g}" for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">")) if key in entry), ""
    )
    high = next(
        (f"{sign} {entry[key]:g}" for key, sign in (("maximum", "≤"), ("exclusiveMaximum", "<")) if key in entry), ""
    )
    kind = {"number": "number", "integer": "whole number", "boolean": "`true`, `false`", "null": "`null`"}[
        entry["type"]
    ]
    return " ".join(part for part in (kind, ", ".join(filter(None, (low, high)))) if part)


def main(arguments: Sequence[str]) -> int:
    """Rewrite or check README.md and all files of docs/."""
    stale = []
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))):
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            stale.append(path.relative_to(REPOSITORY))
            if "--check" not in arguments:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{path} {'is not up to date: run python docs/tables.py' if '--check' in arguments else 'rewritten'}")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
