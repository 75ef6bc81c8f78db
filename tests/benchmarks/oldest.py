"""Prints the oldest versions that pyproject.toml allows, as constraints for `make test-oldest`.

torch and triton keep the versions of constraints.txt: older ones have no CPU build everywhere, and
a build for GPUs takes gigabytes. The dependencies of these packages are the newest that fit.
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
