"""All checks in the order in which ``nnunet-fm doctor`` prints them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nnunet_fm.checks.finding import OK, PROBLEM, Check


def all_checks(
    dataset: str | None, configuration: str | None, plans: str | None, progress: Callable[[str], None]
) -> Iterator[Check]:
    """Yield each finding as soon as it is known: the first at once, the later ones import PyTorch.

    Args:
        dataset: ID or name of a dataset whose training data and memory are checked, too.
        configuration: configuration of the forecast of its memory.
        plans: plans of that forecast.
        progress: called with the subject of the next check.
    """
    from nnunet_fm.checks.folders import datasets, folders
    from nnunet_fm.checks.hook import hook, not_portable
    from nnunet_fm.checks.leftovers import left_behind
    from nnunet_fm.checks.machine import main_memory, processor, shared_memory
    from nnunet_fm.checks.versions import commands, versions

    yield from versions()
    yield from commands()
    progress("folders")
    yield from folders()
    yield from datasets()
    yield from left_behind()
    yield from main_memory()
    progress("asking nnU-Net for a class of this package")
    yield (alive := hook())
    yield from not_portable(alive.state == OK)
    progress("importing PyTorch")
    try:
        import torch  # noqa: F401  (the checks below need it)
    except ImportError as error:
        yield Check("torch", PROBLEM, f"cannot be imported: {error}", "cure the versions above first")
        return
    from nnunet_fm.checks.gpu import gpu
    from nnunet_fm.checks.weights import weights

    devices = list(gpu())
    yield from devices
    yield from processor(any(check.name in ("cuda", "mps") and check.state == OK for check in devices))
    progress("weights")
    yield from weights()
    if dataset is None:
        yield from shared_memory()
    else:
        yield from _dataset(dataset, configuration, plans, progress)


def _dataset(
    dataset: str, configuration: str | None, plans: str | None, progress: Callable[[str], None]
) -> Iterator[Check]:
    """Check the training data of a dataset, and the memory that it needs."""
    from nnunet_fm.checks.dataset import UnknownDatasetError, read, training_data
    from nnunet_fm.checks.forecast import predicting, preprocessed, training_batch
    from nnunet_fm.checks.machine import shared_memory

    try:
        known = read(dataset, configuration, plans, progress)
    except UnknownDatasetError as error:
        yield from shared_memory()
        yield Check("dataset", PROBLEM, str(error), "pass the ID or name of a dataset that nnU-Net's folders have")
        return
    yield from shared_memory(training_batch(known))
    yield from training_data(known.name, progress)
    yield from preprocessed(known)
    yield from predicting(known)
