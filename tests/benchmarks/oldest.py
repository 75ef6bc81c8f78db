"""The oldest versions that pyproject.toml allows, as pip's constraints: `make test-oldest` installs
them and tests.

torch and triton stay as constraints.txt pins them: of older ones there is no build for a CPU
everywhere, and one for GPUs takes gigabytes. What these packages need in turn is the newest that
fits them.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PINNED = ("torch", "triton")


def oldest() -> list[str]:
    """name==version for every package that Lookback and its tests ask for, in the order of
    pyproject.toml.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = [
        re.match(r"([\w-]+)>=([\w.]+)", need)
        for need in project["dependencies"] + extra(project, "dev")
    ]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lowest = [f"{found[1]}=={found[2]}" for found in ranges if found and found[1] not in PINNED]
    return lowest + [pin for pin in pins if pin.partition("==")[0] in PINNED]


def extra(project: dict, name: str) -> list[str]:
    return project["optional-dependencies"][name]


if __name__ == "__main__":
    print("\n".join(oldest()))
