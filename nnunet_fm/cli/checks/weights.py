"""Official files in the weights folder: whether they are what they should be, and under which licences."""

from __future__ import annotations

from collections.abc import Iterator

from nnunet_fm.cli.checks.finding import NOTE, OK, PROBLEM, Check, size


def weights() -> Iterator[Check]:
    """A finding for each official file at hand; no hash is computed."""
    from nnunet_fm.models.official import officials
    from nnunet_fm.weights.cache import cache_folder, find, known_sha256, pinned

    here = [(official, path) for official in officials() if (path := find(official.checkpoint.files))]
    if not here:
        advice = "nnunet-fm weights pull MODEL; or train from random weights, with fm_trainer_scratch"
        yield Check("weights", NOTE, f"{cache_folder()} has none", advice)
        return
    yield Check("weights", OK, f"{cache_folder()} has {len(here)} official files")
    for official, path in here:
        name, published = official.checkpoint.name, official.checkpoint.sha256
        wanted, found = published or pinned(path), known_sha256(path)
        licences = f"weights: {official.checkpoint.licence}; code: {official.card.code_licence}"
        detail = f"{name}, {size(path.stat().st_size)} ({licences})"
        verify = f"nnunet-fm weights verify {name}"
        if wanted is None or found is None:
            yield Check("weights", NOTE, f"{detail}: its hash was never checked", verify)
        elif found != wanted:
            source = "published" if published else "noted when it was added"
            cure = f"remove {path} and fetch it again: nnunet-fm weights pull {name}"
            yield Check("weights", PROBLEM, f"{detail}: its hash is not the one {source}", cure)
        else:
            yield Check("weights", OK, f"{detail}: hash as {'published' if published else 'noted when it was added'}")
