"""Pages whose code is run: the files of a page are written as it says, its bash blocks run in order in one shell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
RUN = sorted([*DOCS.glob("tutorials/*.md"), DOCS / "add_a_model.md"])
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Language, title and content of each fenced block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def script(page: Path) -> str:
    """All bash blocks as one script; each line is told before it runs."""
    return "set -eux -o pipefail\n" + "\n".join(content for kind, _, content in blocks(page) if kind == "bash")


def run(page: Path, venv: Any, folder: Path) -> str:
    """Run a page in a folder; what it printed.

    Raises:
        AssertionError: with the end of the output, if a command fails.
    """
    for _, title, content in blocks(page):
        if title:
            (folder / title).parent.mkdir(exist_ok=True, parents=True)
            (folder / title).write_text(content, encoding="utf-8")
    settings = venv.environment(OMP_NUM_THREADS="1", NNUNET_FM_WEIGHTS=str(folder / "weights"))
    done = subprocess.run(
        ["bash", "-c", script(page)], cwd=folder, env=settings, text=True, timeout=600,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_all_code_of_a_page_is_run_or_written_to_a_file() -> None:
    for page in RUN:
        found = blocks(page)
        assert sum(kind == "bash" for kind, _, _ in found) >= 2, page
        assert all(kind == "bash" or title for kind, title, _ in found), (
            f"{page}: a block that is neither run nor a file"
        )


def test_a_model_takes_less_than_fifty_lines() -> None:
    files = {title: content for _, title, content in blocks(DOCS / "add_a_model.md") if title}
    assert set(files) == {"models/toynet.py", "models/toynet.yaml"}
    assert sum(len([line for line in content.splitlines() if line.strip()]) for content in files.values()) < 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if page.stem == "add_a_model" else pytest.mark.long, id=page.stem) for page in RUN],
)
def test_what_a_page_says_works(page: Path, fresh_venv: Any, tmp_path: Path) -> None:
    said = run(page, fresh_venv, tmp_path)
    if page.stem == "add_a_model":
        assert "fm_trainer_toynet_scratch" in said
        record = tmp_path / "results" / "Dataset904_Hippocampus" / "fm_trainer__FMPlans_toynet__3d_fullres" / "fold_0"
        assert (record / "checkpoint_final.pth").is_file() and "mean of classes" in said
        assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 10
    elif page.stem in ("hippocampus", "predict"):
        assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 10
        assert len((tmp_path / "scores.csv").read_text().splitlines()) > 20
    elif page.stem == "backbone2d":
        assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 1
    else:
        assert page.stem == "compare" and '"runs"' in (tmp_path / "forecast.json").read_text()


@pytest.mark.slow
def test_a_command_that_fails_fails_the_page(fresh_venv: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\nnnunet-fm --version\n```\n\n```bash\nnnunet-fm plan -d 904 | cat\n```\n")
    with pytest.raises(AssertionError, match="nnUNet|Dataset|904"):
        run(page, fresh_venv, tmp_path)
