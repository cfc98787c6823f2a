"""Coverage-guided fuzzing of a reader, with atheris (``pip install atheris``; nothing else needs it).

    python -m tests.fuzz images -max_total_time=60

All options but the first word are libFuzzer's. A file that makes the reader fail is left in the current folder as
``crash-…``; the same words with its name instead of ``-max_total_time`` repeat it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nnunet_fm", "tarfile", "zipfile", "nibabel", "tifffile", "yaml", "pickle"]):
    from tests.fuzz.readers import READERS

from tests.fuzz.seeds import seeds


def main() -> None:
    """Fuzz the reader that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"usage: python -m tests.fuzz {{{','.join(READERS)}}} [libFuzzer's options]")
    read = READERS[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory() as corpus:
        os.environ["NNUNET_FM_WEIGHTS"] = corpus
        for number, content in enumerate(seeds(read.__name__)):
            Path(corpus, f"seed_{number}").write_bytes(content)

        def once(content: bytes) -> None:
            with tempfile.TemporaryDirectory() as folder:
                read(content, Path(folder))

        given = [word for word in sys.argv[1:] if not word.startswith("-")]
        atheris.Setup([*sys.argv, *([] if given else [corpus]), "-rss_limit_mb=4096"], once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
