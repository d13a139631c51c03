"""What environment.json says of the code: also the files that git doesn't know yet."""

import shutil
import subprocess
import sys

from conftest import ROOT


def test_new_files_of_code_are_kept_with_the_changes(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    shutil.copytree(ROOT / "src", clone / "src", dirs_exist_ok=True)
    (clone / "src" / "lightning_lm" / "optim" / "mine.py").write_text("RATE = 0.123\n")
    (clone / "README.md").write_text("changed\n")
    (clone / "notes.txt").write_text("no code\n")
    code = "from lightning_lm.runs.folder import _uncommitted; print(_uncommitted())"
    printed = subprocess.check_output([sys.executable, "-c", code], env={"PYTHONPATH": str(clone / "src")}, text=True)
    assert "+RATE = 0.123" in printed and "+changed" in printed and "no code" not in printed
    assert "+++ b/src/lightning_lm/optim/mine.py" in printed
