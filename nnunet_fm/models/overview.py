"""Models, heads and adapters of all cards as rows of tables."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from nnunet_fm.adapters import ADAPTERS
from nnunet_fm.heads import HEADS
from nnunet_fm.models.parts import official_parts
from nnunet_fm.models.registry import cards
from nnunet_fm.weights.cache import find

USE = {"open": "open", "research": "research", "unclear": "ask"}
"""Card's word for what the weights may be used for -> short word of the tables."""


def model_rows() -> list[dict[str, Any]]:
    """Each model with its size, heads, adapters, and the state of its official files."""
    rows = []
    for name, card in cards().items():
        parts = official_parts(card, card.default_head, card.default_adapter, card.network.arguments)
        missing = dict.fromkeys(part.checkpoint.name for part in parts if not find(part.checkpoint.files))
        classes, parameters = next(iter(card.parameters.items()))
        rows.append(
            {
                "name": name,
                "title": card.title,
                "family": card.family,
                "dim": card.dim,
                "parameters": parameters,
                "classes": classes,
                "heads": card.heads,
                "adapters": card.adapters,
                "aliases": card.aliases,
                "weights": f"missing: {', '.join(missing)}" if missing else "at hand" if parts else "none needed",
                "weights licence": card.weights_licence,
                "use": USE[card.weights_use] if card.checkpoints else "-",
            }
        )
    return rows


def family_rows() -> list[dict[str, str]]:
    """Each family of models on a line: names, dimensions, range of sizes, state of the official files, their use."""
    families: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in model_rows():
        families.setdefault((row["family"], row["dim"]), []).append(row)
    return [
        {
            "models": _short_names([row["name"] for row in rows]),
            "dim": f"{rows[0]['dim']}D",
            "parameters": _range([row["parameters"] for row in rows]),
            "weights": _state([row["weights"] for row in rows]),
            "use": ", ".join(dict.fromkeys(row["use"] for row in rows)),
        }
        for rows in families.values()
    ]


def _short_names(names: Sequence[str]) -> str:
    """The first name whole, of the others what follows the common beginning: ``stunet_s, _b, _l, _h``."""
    if len(names) == 1:
        return names[0]
    common = 0
    while all(name[: common + 1] == names[0][: common + 1] for name in names) and common < min(map(len, names)):
        common += 1
    cut = names[0].rfind("_", 0, common)
    cut = common if cut < 0 else cut
    return ", ".join([names[0], *(name[cut:] for name in names[1:])])


def _range(counts: Sequence[int]) -> str:
    """Smallest and largest number of parameters."""
    ends = [f"{count / 1e6:.1f} M" if count < 1e9 else f"{count / 1e9:.2f} B" for count in (min(counts), max(counts))]
    return " to ".join(dict.fromkeys(ends))


def _state(states: Sequence[str]) -> str:
    """State of the official files of several models."""
    here = sum(state == "at hand" for state in states)
    if all(state == "none needed" for state in states):
        return "none needed"
    return "at hand" if here == len(states) else f"{here} of {len(states)} at hand" if here else "missing"


def head_rows() -> list[dict[str, Any]]:
    """Each decode head with a line about it and the models that can have it."""
    rows = []
    for name, (module, _, arguments) in sorted(HEADS.items()):
        changed = ", ".join(f"{argument}: {value}" for argument, value in arguments.items())
        what = _first_line(f"nnunet_fm.heads.{module}") + (f" ({changed})" if changed else "")
        rows.append({"name": name, "what": what, "models": [n for n, c in cards().items() if name in c.heads]})
    return rows


def adapter_rows() -> list[dict[str, Any]]:
    """Each adapter with a line about it and the models that can have it."""
    return [
        {
            "name": name,
            "what": _first_line(f"nnunet_fm.adapters.{module}", function if function != module else None),
            "models": [n for n, card in cards().items() if name in card.adapters],
        }
        for name, (module, function) in sorted(ADAPTERS.items())
    ]


def _first_line(path: str, function: str | None = None) -> str:
    """First line of the docstring of a module, or of a function in it.

    It is read from the module's file, because an import would need PyTorch.
    """
    package, _, module = path.rpartition(".")
    source = resources.files(package).joinpath(f"{module}.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return (ast.get_docstring(next(functions, tree)) or "").partition("\n")[0]


def model_facts(name: str) -> dict[str, str]:
    """All that a card says of one model, for a person: heading -> words."""
    card = cards()[name]
    row = next(row for row in model_rows() if row["name"] == name)
    files = [
        f"{c.name}: {c.files[0]}, {'at hand' if find(c.files) else 'missing'}, "
        + (f"`nnunet-fm weights pull {c.name}`" if c.urls else f"by hand from {c.page}")
        for c in card.checkpoints
    ]
    facts = {
        "model": f"{card.name}, {card.title}",
        "also called": ", ".join(card.aliases),
        "what": card.summary,
        "paper": card.paper,
        "plans": card.configuration,
        "parameters": f"{row['parameters'] / 1e6:,.2f} M ({row['classes']} classes)",
        "heads": ", ".join(card.heads) or "its own",
        "adapters": ", ".join(card.adapters) or "none",
        "variants": ", ".join(card.variants),
        "weights": "; ".join(files) or "none, trained from scratch",
        "licences": f"weights: {card.weights_licence} ({row['use']}); code: {card.code_licence}",
        "pre-trained on": ", ".join(card.pretraining.datasets),
        "plan with": f"nnunet-fm plan -d ID -m {card.name}",
        "train with": "nnUNetv2_train ID fm_trainer FOLD",
    }
    return {heading: words for heading, words in facts.items() if words}


def parameter_rows(classes: int, progress: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """Each model with the number of its parameters, and of those that each head and each adapter trains.

    Args:
        classes: of the segmentation.
        progress: called with the number of models that are counted, and of all.
    """
    from nnunet_fm.models import count

    rows = []
    for number, (name, card) in enumerate(cards().items(), 1):
        rows.append(
            {
                "name": name,
                "classes": classes,
                "parameters": count.parameters(card, classes),
                "trained_by_head": count.trained_by_head(card, classes),
                "trained_by_adapter": count.trained_by_adapter(card, classes),
            }
        )
        progress(number, len(cards()))
    return rows
