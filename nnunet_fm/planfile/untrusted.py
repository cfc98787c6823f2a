"""Untrusted plans: check every name that would be imported, called or made part of a path.

nnU-Net imports a plan's network by its dotted path and calls it with arguments of the plan, so that a plan can run any
program. Other names are looked up in nnU-Net's own folders, where any identifier is harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

from torch import nn

from nnunet_fm.errors import InvalidValueError
from nnunet_fm.io.untrusted import plain_name, read_object
from nnunet_fm.models.build import NetworkClassError, network_class
from nnunet_fm.planfile.schema import PlanError, PlanKey

NETWORKS = "dynamic_network_architectures."
"""nnU-Net's own networks."""

LAYERS = ("torch.nn.", NETWORKS)
"""Packages of classes in a network's arguments: convolutions, norms, activations, blocks."""

PATHS = ("data_identifier", "previous_stage", "next_stage")
"""Entries of a configuration that name a folder or a file."""

LOOKED_UP = ("preprocessor_name", "resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities")
"""Entries of a configuration that nnU-Net looks up in folders of its own."""


def read_plans(file: Path) -> dict[str, Any]:
    """Read plans from an untrusted file.

    Raises:
        ForeignFileError: if it is no JSON object of a sane size.
        PlanError: naming an entry that is missing, has another type, or is a forbidden name.
    """
    plans = read_object(file)
    try:
        check_plans(plans)
    except (PlanError, InvalidValueError, NetworkClassError) as error:
        raise PlanError(f"{file}: {error}", code=error.code) from None
    return plans


def check_plans(plans: Mapping[str, Any]) -> None:
    """Raise a PlanError or an InvalidValueError for plans with a forbidden name or a missing entry."""
    for entry in ("dataset_name", "plans_name"):
        plain_name(_word(plans, entry))
    for entry in ("image_reader_writer", "label_manager", "experiment_planner_used"):
        if plans.get(entry) is not None:
            _identifier(plans, entry)
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or not all(isinstance(c, dict) for c in configurations.values()):
        raise PlanError("'configurations' must map names to objects", code="plan-form")
    for name, configuration in configurations.items():
        try:
            plain_name(name)
            _check_configuration(configuration)
        except (PlanError, InvalidValueError, NetworkClassError) as error:
            raise PlanError(f"configuration '{name}': {error}", code=error.code) from None
    PlanKey.read(plans)


def _check_configuration(configuration: Mapping[str, Any]) -> None:
    for entry in PATHS:
        if configuration.get(entry) is not None:
            names = configuration[entry]
            for name in names if isinstance(names, list) else [names]:
                plain_name(_text(name, entry))
    for entry in LOOKED_UP:
        if configuration.get(entry) is not None:
            _identifier(configuration, entry)
    schemes = configuration.get("normalization_schemes", [])
    if not isinstance(schemes, list) or not all(isinstance(s, str) and s.isidentifier() for s in schemes):
        raise PlanError("'normalization_schemes' must be a list of names of classes", code="plan-form")
    architecture = configuration.get("architecture")
    if architecture is not None:
        _check_architecture(architecture)


def _check_architecture(architecture: Any) -> None:
    """Check that the network is a network, and that its arguments to be imported are layers."""
    if not isinstance(architecture, dict) or not isinstance(architecture.get("arch_kwargs", {}), dict):
        raise PlanError("'architecture' and its 'arch_kwargs' must be objects", code="plan-form")
    path = _word(architecture, "network_class_name")
    if path.startswith(NETWORKS):
        _module(path, (NETWORKS,), "network_class_name")
    else:
        try:
            network_class(path)
        except NetworkClassError as error:
            if error.code == "network-missing":
                raise
            raise PlanError(
                f"{error}, nor one of {NETWORKS.rstrip('.')}. nnU-Net would import and call it: if you trust whoever "
                "made this plan, use nnU-Net's own command",
                code="network-foreign",
            ) from None
    names = architecture.get("_kw_requires_import", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PlanError("'_kw_requires_import' must be a list of names", code="plan-form")
    arguments = architecture.get("arch_kwargs", {})
    for name in names:
        if arguments.get(name) is not None:
            _module(_word(arguments, name), LAYERS, name)


def _module(path: str, packages: tuple[str, ...], entry: str) -> None:
    """Check that a path is that of a `torch.nn.Module` defined in one of these packages, not only imported there."""
    found = None
    if path.startswith(packages) and all(part.isidentifier() and not part.startswith("_") for part in path.split(".")):
        try:
            found = locate(path)
        except ErrorDuringImport:
            found = None
    made_here = isinstance(found, type) and issubclass(found, nn.Module) and f"{found.__module__}.".startswith(packages)
    if not made_here:
        raise PlanError(
            f"{entry} '{path}' is no network or layer of {' or '.join(p.rstrip('.') for p in packages)}",
            code="network-foreign",
        )


def _identifier(mapping: Mapping[str, Any], entry: str) -> None:
    if not _word(mapping, entry).isidentifier():
        raise PlanError(f"{entry} '{mapping[entry]}' is not the name of a class or function", code="plan-form")


def _word(mapping: Mapping[str, Any], entry: str) -> str:
    if entry not in mapping:
        raise PlanError(f"'{entry}' is missing", code="plan-form")
    return _text(mapping[entry], entry)


def _text(value: Any, entry: str) -> str:
    if not isinstance(value, str):
        raise PlanError(f"'{entry}' must be a name", code="plan-form")
    return value
