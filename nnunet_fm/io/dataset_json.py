"""``dataset.json`` as this whole package reads it: channels by number, labels as numbers, faults in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_fm.io.messages import listed

IGNORE = "ignore"
"""Name of the label whose voxels do not count."""

_EXAMPLE = '"labels": {"background": 0, "liver": 1}'
_ORDER = "regions_class_order"


def canonical(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same content as nnU-Net's own code writes it: channels sorted by number, no number in quotes.

    nnU-Net takes channels in the order of the file, and labels such as ``"1"`` as the number, in most places. What
    is neither stays as it is, for `fault` to name.
    """
    content = dict(content)
    key = _channels_key(content)
    names = content.get(key)
    if isinstance(names, dict) and all(_is_number(number) for number in names):
        numbers = {int(number): name for number, name in names.items()}
        if len(numbers) == len(names):
            content[key] = {str(number): numbers[number] for number in sorted(numbers)}
    labels = content.get("labels")
    if isinstance(labels, dict):
        content["labels"] = {name: _numbers(value) for name, value in labels.items()}
        ignore = content["labels"].get(IGNORE)
        if isinstance(ignore, list) and len(ignore) == 1:
            content["labels"][IGNORE] = ignore[0]
    if _ORDER in content:
        content[_ORDER] = _numbers(content[_ORDER])
    return content


def channel_names(content: Mapping[str, Any]) -> list[str]:
    """Names of the input channels in the order of their numbers, under nnU-Net's present key or its former one."""
    names = content[_channels_key(content)]
    return [names[number] for number in sorted(names, key=int)]


def out_of_order(content: Mapping[str, Any]) -> bool:
    """Whether the file lists its channels otherwise than by number, which stock nnU-Net would take as their order."""
    numbers = [int(number) for number in content[_channels_key(content)]]
    return numbers != sorted(numbers)


def named_channels(content: Mapping[str, Any]) -> str:
    """The channels in words, as the names of files have them: ``0000 T1, 0001 T2``."""
    return ", ".join(f"{number:04d} {name}" for number, name in enumerate(channel_names(content)))


def fault(content: Mapping[str, Any]) -> str | None:
    """Fault of a `canonical` content in a sentence; None where all is well."""
    return fault_of_channels(content) or _fault_of_names(content.get("labels")) or fault_of_numbers(content)


def fault_of_channels(content: Mapping[str, Any], *, trained: bool = False) -> str | None:
    """Fault of the channels or of the file ending; channels of a ``trained`` model may count from 1."""
    names = content.get(_channels_key(content))
    numbered = isinstance(names, dict) and len(names) > 0 and all(map(_is_number, names))
    if names is None or not numbered or not (trained or list(names) == [str(n) for n in range(len(names))]):
        return '\'channel_names\' must map the numbers of channels, "0", "1" …, to their names'
    if not all(isinstance(name, str) for name in names.values()):
        return "'channel_names' must map numbers to names, which are text"
    ending = content.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith(".") or "/" in ending or "\\" in ending:
        return "'file_ending' must be the ending of image files, such as .nii.gz"
    return None


def fault_of_numbers(content: Mapping[str, Any]) -> str | None:
    """Fault of the labels' numbers: a gap, the place of the ignore label, or the order of regions.

    Regions may be of labels with gaps, as nnU-Net has an output for each region then. What has other labels than
    numbers is left to `fault`.
    """
    labels = content["labels"]
    classes = {name: value if isinstance(value, list) else [value] for name, value in labels.items() if name != IGNORE}
    used, ignore = {number for values in classes.values() for number in values}, labels.get(IGNORE)
    if not used or not all(map(_is_label, used)):
        return None
    has_regions = any(len(values) > 1 for values in classes.values())
    if not has_regions and (missing := sorted(set(range(max(used))) - used - {ignore})):
        return f"labels must be 0, 1, 2 … without a gap: no class has {listed([str(number) for number in missing])}"
    above = max(used) + 1 if has_regions else len(used)
    if ignore is not None and ignore != above:
        return (
            f"the label 'ignore' is {ignore}, but it must be {above}, one above the classes, which are 0 to "
            f"{above - 1}: change it in dataset.json and in the label maps"
        )
    if has_regions:
        regions, order = [name for name, values in classes.items() if set(values) != {0}], content.get(_ORDER)
        if not isinstance(order, list) or len(order) != len(regions) or not all(map(_is_label, order)):
            return (
                f"'{_ORDER}' must be a list of {len(regions)} labels, one for each of the regions "
                f"{listed(regions)}, in the order in which they are painted over one another"
            )
    return None


def _fault_of_names(labels: Any) -> str | None:
    """Fault of the entry ``labels``, apart from its numbers."""
    if not isinstance(labels, dict) or not labels:
        return f"'labels' is missing: it maps names to numbers, {_EXAMPLE}"
    for name, value in labels.items():
        values = value if isinstance(value, list) and name != IGNORE else [value]
        if not values or not all(map(_is_label, values)):
            return f"label '{name}' is {value!r}: labels map names to whole numbers, {_EXAMPLE}"
    if labels.get("background") != 0:
        return f"the label 'background' must be there and be 0, {_EXAMPLE}"
    single = {name: value for name, value in labels.items() if isinstance(value, int)}
    twice = [names for value in set(single.values()) if len(names := [n for n, v in single.items() if v == value]) > 1]
    if twice:
        return f"{' and '.join(map(repr, twice[0]))} have the same label {single[twice[0][0]]}: give each its own"
    return None


def _channels_key(content: Mapping[str, Any]) -> str:
    """nnU-Net looks for the former key first."""
    return "modality" if "modality" in content else "channel_names"


def _is_number(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isdecimal()


def _is_label(value: Any) -> bool:
    return type(value) is int and value >= 0


def _numbers(value: Any) -> Any:
    """Numbers in place of quoted ones, and of whole ones with a decimal point, in a list, too."""
    if isinstance(value, (list, tuple)):
        return [_numbers(inner) for inner in value]
    if isinstance(value, str) and _is_number(value.strip()):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value
