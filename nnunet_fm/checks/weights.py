"""Check the official files in the weights folder: known hashes and licences."""

from __future__ import annotations

from collections.abc import Iterator

from nnunet_fm.checks.finding import NOTE, OK, PROBLEM, Check, size


def weights() -> Iterator[Check]:
    """Check each official file in the weights folder, without computing a hash."""
    from nnunet_fm.models.official import officials
    from nnunet_fm.models.official_files import CHANGED, NOT_CHECKED, NOT_PINNED, cached, hash_state
    from nnunet_fm.weights.cache import cache_folder

    here = [(official, path) for official in officials() if (path := cached(official))]
    if not here:
        advice = "nnunet-fm weights pull MODEL; or train from random weights, with fm_trainer_scratch"
        yield Check("weights", NOTE, f"{cache_folder()} has none", advice)
        return
    yield Check("weights", OK, f"{cache_folder()} has {len(here)} official files")
    for official, path in here:
        name, state = official.checkpoint.name, hash_state(official, path)
        source = "published" if official.checkpoint.published else "noted when it was added"
        licences = f"weights: {official.checkpoint.licence}; code: {official.card.code_licence}"
        detail = f"{name}, {size(path.stat().st_size)} ({licences})"
        if state in (NOT_PINNED, NOT_CHECKED):
            yield Check("weights", NOTE, f"{detail}: its hash was never checked", f"nnunet-fm weights verify {name}")
        elif state == CHANGED:
            fetch = f"nnunet-fm weights pull {name}" if official.checkpoint.urls else official.checkpoint.page
            cure = f"remove {path} and fetch it again: {fetch}"
            yield Check("weights", PROBLEM, f"{detail}: its hash is not the one {source}", cure)
        else:
            yield Check("weights", OK, f"{detail}: hash as {source}")
