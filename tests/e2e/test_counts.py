"""bench/counts says when a path has come to need more instructions: shown with stored counts that were changed."""

import re
import shutil
import subprocess

import pytest
from support.server import ROOT

COUNTS = ROOT / "bench" / "counts"
PATH = "sketch_add"


@pytest.fixture(scope="module", autouse=True)
def valgrind():
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is missing")


def compared(tmp_path, factor, *arguments):
    """What bench/counts says of PATH when its stored count is what it is times `factor`."""
    stored = tmp_path / "counts.toml"
    text = (ROOT / "bench" / "counts.toml").read_text()
    section = text.index(f"[{PATH}]")
    changed = re.sub(r"count = ([\d.]+)", lambda m: f"count = {float(m[1]) * factor}", text[section:], count=1)
    stored.write_text(text[:section] + changed)
    command = [COUNTS, "--no-build", "--only", PATH, "--stored", stored, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if run.returncode == 3:
        pytest.skip(run.stderr.strip())
    return run, stored.read_text()


def test_a_rise_fails(tmp_path):
    run, _ = compared(tmp_path, 0.9)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "RISEN" in run.stdout and f"{PATH} rose by over 5%" in run.stderr


def test_a_fall_asks_for_an_update_and_the_same_passes(tmp_path):
    run, _ = compared(tmp_path, 1.2)
    assert run.returncode == 0 and f"{PATH}: fewer than stored" in run.stdout, run.stdout + run.stderr
    run, _ = compared(tmp_path, 1.0)
    assert run.returncode == 0 and "stored, well done" not in run.stdout, run.stdout + run.stderr


def test_an_update_writes_the_number_and_leaves_the_words(tmp_path):
    original = (ROOT / "bench" / "counts.toml").read_text()
    run, written = compared(tmp_path, 0.5, "--update")
    assert run.returncode == 0, run.stderr
    without_numbers = lambda text: re.sub(r"count = [\d.]+", "count", text)  # noqa: E731
    assert without_numbers(written) == without_numbers(original)
    counts = [float(re.search(rf"\[{PATH}\].*?count = ([\d.]+)", text, re.S)[1]) for text in (original, written)]
    assert counts[1] == pytest.approx(counts[0], rel=0.05)


def test_an_unknown_path_is_named(tmp_path):
    run = subprocess.run([COUNTS, "--no-build", "--only", "nonsense"], capture_output=True, text=True, timeout=60)
    assert run.returncode in (2, 3) and ("no path is called nonsense" in run.stderr or run.returncode == 3)
