"""Packs what a GPU machine without network lacks: `make gpu-pack HAVE=target.txt`; docs/gpu.md says how it is used.

    python -m benchmarks.gpu_pack --to gpu-pack --have target.txt --limit 64M

A pack is a folder: `wheels/` for `pip install --no-index`, `data/` with corpora, `pack.txt` with what is in it and what
was left out. torch and Triton are never packed: they belong to the machine's driver.
"""

from __future__ import annotations

import argparse
import email
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from benchmarks.gpu import FILE
from tasks.files import data_folder

ROOT = Path(__file__).parent.parent
THEIRS = ("torch", "triton")
LEFT = ("datasets", "ruff", "mypy", "types-tqdm")  # fetching and checking is done at home
ENGINES = ("ray", "submitit")  # large, and of what they start nothing needs a GPU
UNSAID = {"torch": "2.11.0", "triton": "3.6.0"}  # what a machine has of which nobody said what it has
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Target:
    """The Python that the pack is for, and the packages it has (version "" where the list names none)."""

    python: str
    platform: str
    have: Mapping[str, str]

    def lacks(self, requirement: Requirement) -> bool:
        """Whether it has the package not at all, or in a version that will not do."""
        version = self.have.get(canonicalize_name(requirement.name))
        if version is None:
            return True
        return bool(version) and not requirement.specifier.contains(version, prereleases=True)

    def wants(self, requirement: Requirement, extra: str) -> bool:
        """Whether a requirement counts on it; others are of another system, or of an extra that nobody asked for."""
        system: dict[str, Any] = {
            "python_version": ".".join(self.python.split(".")[:2]), "python_full_version": self.python,
            "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython",
            "platform_machine": "x86_64", "platform_python_implementation": "CPython", "extra": extra,
        }  # fmt: skip
        return requirement.marker is None or requirement.marker.evaluate(system)

    def platforms(self) -> list[str]:
        """The names of wheels that run there: those for a C library as old or older."""
        found = re.fullmatch(r"manylinux_2_(\d+)_x86_64", self.platform)
        if not found:
            raise ValueError(f"platform {self.platform!r}: expected manylinux_2_N_x86_64, as manylinux_2_28_x86_64")
        versions = [f"manylinux_2_{n}" for n in range(int(found[1]), 4, -1)]
        return [f"{version}_x86_64" for version in (*versions, "manylinux2014", "manylinux1")]


def read_have(path: Path | None) -> dict[str, str]:
    """What `pip list --format=freeze` or `pip freeze` printed there, by package; without a path torch alone."""
    if path is None:
        return dict(UNSAID)
    have: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, separator, version = line.strip().partition("==")
        if not separator:
            name, version = line.strip().split(" @ ")[0], ""
        if not line.strip() or line.startswith(("#", "-e")):
            continue
        try:
            have[canonicalize_name(Requirement(name).name)] = str(Version(version)) if version else ""
        except ValueError:  # of both, name and version
            raise ValueError(f"{path}: line {number}: expected NAME==VERSION, found {line!r}") from None
    return have


def groups() -> dict[str, list[Requirement]]:
    """What is packed, the most needed first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    peers = [Requirement(line) for line in extras["peers"]]
    apart = {*LEFT, *THEIRS, *ENGINES, *(peer.name for peer in peers)}
    mine = {
        "Lookback": [Requirement(line) for line in project["dependencies"]],
        "its tests": [Requirement(line) for line in extras["dev"]],
    }
    return {name: [r for r in wanted if r.name not in apart] for name, wanted in mine.items()} | {
        "peers": peers,
        "tests of engines": [r for r in map(Requirement, extras["dev"]) if r.name in ENGINES],
    }


def check_theirs(target: Target) -> None:
    """Raise ValueError where the target lacks what is never packed, or Python is too old."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if Requirement(f"python{project['requires-python']}").specifier.contains(target.python) is False:
        raise ValueError(f"the target's Python {target.python}: Lookback needs {project['requires-python']}")
    for line in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
        requirement = Requirement(line)
        if requirement.name in THEIRS and target.lacks(requirement):
            found = target.have.get(requirement.name, "which it lacks")
            needed = f"{requirement.name}{requirement.specifier}"
            raise ValueError(
                f"the target's {requirement.name}, {found}: Lookback needs {needed}, which is never packed"
            )


@dataclass
class Pack:
    """A folder that is filled group by group, each whole or not at all."""

    folder: Path
    target: Target
    limit: float  # bytes
    size: int = 0
    packed: set[str] = field(default_factory=set)  # names of packages
    lines: list[str] = field(default_factory=list)  # what is in it, and what was left out

    def add_wheels(self, name: str, wanted: Sequence[Requirement], needed: bool) -> None:
        """Wheels of what the target lacks of `wanted`, and of all that these need; raises ValueError where it must."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            fetched = self._fetch(wanted, Path(place))
            size = sum(path.stat().st_size for path in fetched.values())
            if self._too_big(name, size, needed):
                return
            for path in fetched.values():
                shutil.move(path, self.folder / "wheels" / path.name)
        self.packed |= set(fetched)
        self._say(f"{name}: {', '.join(sorted(fetched)) or 'nothing that it lacks'}", size)

    def _fetch(self, wanted: Sequence[Requirement], place: Path) -> dict[str, Path]:
        """By package, level by level: what is wanted, what that needs, and so on; pinned by constraints.txt."""
        found: dict[str, Path] = {}
        todo = list(wanted)
        while lacking := [r for r in todo if self._is_new(r, found)]:
            download(lacking, self.target, place)
            fresh = [path for path in place.glob("*.whl") if path not in found.values()]
            found |= {canonicalize_name(path.name.split("-")[0]): path for path in fresh}
            todo = [r for path in fresh for r in requirements(path) if self.target.wants(r, "")]
        return found

    def _is_new(self, requirement: Requirement, found: Mapping[str, Path]) -> bool:
        name = canonicalize_name(requirement.name)
        return name not in (*THEIRS, *found, *self.packed) and self.target.lacks(requirement)

    def add_data(self, name: str, source: Path) -> None:
        files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        if self._too_big(f"data {name}", size, needed=False):
            return
        if source.is_file():
            (self.folder / "data" / f"{name}{FILE}").mkdir(parents=True)
            shutil.copy(source, self.folder / "data" / f"{name}{FILE}")
        else:
            shutil.copytree(source, self.folder / "data" / name)
        self._say(f"data {name}", size)

    def _too_big(self, name: str, size: int, needed: bool) -> bool:
        if self.size + size <= self.limit:
            self.size += size
            return False
        said = f"{name} takes {size / 2**20:.1f} MiB, {(self.limit - self.size) / 2**20:.1f} are left of the limit"
        if needed:
            raise ValueError(f"{said}, and nothing runs without: a larger LIMIT, or say what the target has (HAVE)")
        self.lines.append(f"left out: {said}")
        return True

    def _say(self, what: str, size: int) -> None:
        self.lines.append(f"{what} ({size / 2**20:.1f} MiB)")


def download(wanted: Sequence[Requirement], target: Target, place: Path) -> None:
    """Wheels of packages that run on the target; raises ValueError with pip's last word where there is one missing."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", target.python]
    command += [word for platform in target.platforms() for word in ("--platform", platform)]
    command += ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(place)]
    names = sorted({canonicalize_name(r.name) for r in wanted})  # in the pinned versions, not in any that would do
    done = subprocess.run([*command, *names], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise ValueError(f"no wheels for Python {target.python} on {target.platform}: {errors[-1]}")


def requirements(wheel: Path) -> list[Requirement]:
    """What a wheel says that it needs."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(archive.read(name))
    return [Requirement(line) for line in said.get_all("Requires-Dist", [])]


def data_at_hand() -> Iterator[tuple[str, Path]]:
    """Corpora on this machine: what variables name, under the variable's name, then what was prefetched."""
    for variable in sorted(name for name in os.environ if re.fullmatch(r"LOOKBACK_[A-Z0-9]+", name)):
        place = Path(os.environ[variable])
        if variable not in ("LOOKBACK_DATA", "LOOKBACK_COMMIT") and place.exists():
            yield variable, place
    if data_folder().is_dir():
        yield from ((path.name, path) for path in sorted(data_folder().iterdir()) if path.is_dir())


def make(folder: Path, target: Target, limit: float) -> Pack:
    """Fill a folder anew; what was there before stays until the new one is whole."""
    check_theirs(target)
    if folder.exists() and not (folder / "pack.txt").is_file():
        raise ValueError(f"{folder}: expected a pack made earlier, or nothing")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gpu-pack-") as place:
        pack = Pack(Path(place) / "whole", target, limit)
        (pack.folder / "wheels").mkdir(parents=True)
        for name, wanted in groups().items():
            pack.add_wheels(name, wanted, needed=name == "Lookback")
        for name, source in data_at_hand():
            pack.add_data(name, source)
        (pack.folder / "pack.txt").write_text("\n".join([*pack.lines, ""]), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        pack.folder.rename(folder)
    return pack


def limit_of(text: str) -> float:
    """Bytes: a number, with K, M or G behind it where wanted; no limit if empty."""
    if not text:
        return float("inf")
    found = re.fullmatch(r"(\d+)([KMG]?)", text)
    if not found:
        raise ValueError(f"limit {text!r}: expected a number of bytes, as 64M")
    return int(found[1]) * UNITS[found[2]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu-pack", description=__doc__, allow_abbrev=False)
    parser.add_argument("--to", type=Path, default=Path("gpu-pack"))
    parser.add_argument("--have", type=Path, help="what `pip list --format=freeze` prints there; else torch 2.11 alone")
    parser.add_argument("--python", default="3.12", help="version of Python there")
    parser.add_argument("--platform", default="manylinux_2_28_x86_64", help="with the version of its C library")
    parser.add_argument("--limit", default="", help="of all, as 64M")
    chosen: Any = parser.parse_args(arguments)
    try:
        target = Target(chosen.python, chosen.platform, read_have(chosen.have))
        pack = make(chosen.to, target, limit_of(chosen.limit))
    except (ValueError, OSError, InvalidVersion) as error:
        print(f"lookback: {error}", file=sys.stderr)
        return 2
    print("\n".join([*pack.lines, f"{chosen.to}: {pack.size / 2**20:.1f} MiB; then there: make gpu PACK={chosen.to}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
