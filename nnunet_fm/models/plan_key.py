"""The one extra key ``"nnunet_fm"`` of our plans: what trainer, planner and short form read from a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from nnunet_fm.models.card import Recipe

KEY = "nnunet_fm"
VERSION = 1


class PlanError(ValueError):
    """A plan that cannot be read or used; the message says what to do."""


class WeightsEntry(BaseModel):
    """Which official file a part of the network starts from; the hash is None while no file was at hand.

    ``decoder`` says that a head's mask decoder starts from the file, too, as far as shapes fit.
    """

    model_config = ConfigDict(extra="forbid")
    name: str
    sha256: str | None = None
    decoder: bool = False


class PlanKey(BaseModel):
    """Content of the extra key.

    ``origin`` says for each planned quantity where its value comes from: ``mission``, ``official``, ``thesis``,
    ``nnunet``, ``data`` (fitted to the data), ``memory`` (fitted to the memory target) or ``user``.
    ``reasons`` holds a sentence for each value that is not simply the card's.
    ``epochs`` are passes over the ``slices`` of all training images where a 2D plan counts its iterations so.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    version: int = VERSION
    model: str
    head: str | None = None
    adapter: str | None = None
    variant: str = "mission"
    recipe: Recipe
    iterations: PositiveInt
    epochs: PositiveInt | None = None
    slices: PositiveInt | None = None
    origin: dict[str, str] = {}
    reasons: dict[str, str] = {}
    weights: dict[str, WeightsEntry] = {}

    @classmethod
    def read(cls, plans: Mapping[str, Any]) -> PlanKey | None:
        """The validated key of a plan; None for stock plans.

        Raises:
            PlanError: for a version this package does not know, or entries that are unknown or illegal.
        """
        if KEY not in plans:
            return None
        content, name = plans[KEY], plans.get("plans_name", "?")
        if not isinstance(content, dict) or content.get("version") != VERSION:
            version = content.get("version") if isinstance(content, dict) else content
            raise PlanError(
                f"plans '{name}' carry version {version!r} of the '{KEY}' entry, this nnunet-fm reads version "
                f"{VERSION}: plan again with this version, or install the version that wrote the plans"
            )
        try:
            return cls(**content)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise PlanError(f"plans '{name}', entry '{KEY}': {faults}") from None
