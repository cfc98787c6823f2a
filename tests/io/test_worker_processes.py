"""Worker processes of what is killed end, too; otherwise each waits for ever with its memory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SOURCE = Path(__file__).parents[2] / "nnunet_fm"
WAITING = """
import sys, time
from nnunet_fm.metrics.parallel import over_files

def wait(done, of):
    if done == of:
        time.sleep(60)

if __name__ == "__main__":
    over_files(print, [(number,) for number in range(4)], processes=2, progress=wait)
"""


@pytest.mark.parametrize("system", [sys.platform, "another"])  # which has no signal for it, so that a thread watches
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path, system: str) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(f"import sys; sys.platform = {system!r}\n{WAITING}")
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    workers: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        assert {process.stdout.readline().strip() for _ in range(4)} == {"0", "1", "2", "3"}
        workers = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
        assert len(workers) == 2 and all(worker.is_running() for worker in workers)
    finally:
        process.kill()
        process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=30)
    left = [worker for worker in alive if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
    for worker in left:
        worker.kill()
    assert not left


def test_every_module_that_starts_workers_lets_them_watch() -> None:
    starting = {
        file.name: "end_with_parent" in text
        for file in SOURCE.rglob("*.py")
        for text in [file.read_text(encoding="utf-8")]
        if re.search(r"ProcessPoolExecutor\(|\.Pool\(|class ProcessLoader\(", text)
    }
    assert len(starting) >= 2 and all(starting.values()), starting


def test_a_process_that_multiprocessing_did_not_start_goes_on() -> None:
    code = "from nnunet_fm.io.orphans import end_with_parent; end_with_parent(); print('goes on')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "goes on\n"
