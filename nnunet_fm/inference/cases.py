"""A case on its way through a prediction: its files, the plans of the model, and why it failed."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_fm.errors import FailedError
from nnunet_fm.io.image_faults import why

_KILLED = (
    "a worker process ended without a word, probably killed for lack of memory: use fewer ({flag} 1), or none "
    "({flag} 0); --continue_prediction keeps what is done"
)


def killed(flag: str) -> FailedError:
    """The error for a worker process that was killed, and the flag that sets the number of processes."""
    return FailedError(_KILLED.format(flag=flag), code="process-killed")


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        files: image, one file per channel.
        previous: label map of the previous stage of a cascade.
        output: path of the result without an ending, as nnU-Net wants it.
    """

    files: Sequence[str]
    previous: str | None
    output: Path

    @property
    def name(self) -> str:
        return self.output.name


@dataclass(frozen=True)
class PlannedModel:
    """The plans of a model, as far as preprocessing and export need them.

    Attributes:
        plans: of the model folder.
        configuration: that was trained.
        dataset_json: of the model folder.
        verbose: whether nnU-Net prints its steps, and errors come with a traceback.
    """

    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    verbose: bool = False

    def prepare(self) -> None:
        """Import readers, preprocessor and resampling now, so that no case is charged for it."""
        _ = self.plans.image_reader_writer_class, self.configuration.preprocessor_class
        _ = self.configuration.resampling_fn_data, self.configuration.resampling_fn_probabilities


@dataclass(frozen=True)
class CaseFailure:
    """The reason why a case has no result."""

    reason: str

    @classmethod
    def of(cls, error: Exception, model: PlannedModel, printed: str = "") -> CaseFailure:
        """Put an error into one line: its class may be one that cannot be sent between processes.

        Args:
            error: raised for the case.
            model: whose `verbose` prints the traceback.
            printed: text that a reader printed before it failed.
        """
        if model.verbose:
            traceback.print_exception(error)
        return cls(why(error, printed))
