"""`lookback test FILE` says what a plug-in does, or what is wrong with it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TASK, MODEL = re.findall(
    r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S
)[:2]


def tried(folder: Path, content: str) -> subprocess.CompletedProcess[str]:
    """Run `lookback test` on a file with this content, from its folder."""
    (folder / "mine.py").write_text(content)
    return subprocess.run(
        [sys.executable, "-P", "-m", "lookback", "test", "mine.py"],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_the_examples_of_contributing_pass_and_score(tmp_path: Path) -> None:
    result = tried(tmp_path, TASK + MODEL)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "task echo: batches of 9 and 64 tokens keep the contract in all splits"
    score = re.match(r"task echo: transformer scores ([\d.]+) accuracy at length 64", lines[1])
    assert float(score[1]) > 0.9
    assert "causal" in lines[2] and "a state of 512 bytes after 64 tokens, constant" in lines[4]
    assert re.match(r"model averages: averages scores [\d.]+ accuracy", lines[6])
    assert lines[7] == "next: lookback run quick --plugin mine.py --task echo --model averages"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TASK.replace("full_like(tokens, delay)", "full_like(tokens, -delay)"), "distance"),
        (
            MODEL.replace(
                "x + self.output(state), state", "x + self.output(state.detach()), state"
            ),
            "does not depend on blocks.0.decay",
        ),
        ("", "expected a file that registers a task or a model"),
        ("import nothing_of_this_name", "cannot be loaded: ModuleNotFoundError"),
    ],
    ids=["task", "model", "empty", "broken"],
)
def test_a_fault_is_one_line(tmp_path: Path, content: str, words: str) -> None:
    result = tried(tmp_path, content)
    assert result.returncode == 2 and words in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
