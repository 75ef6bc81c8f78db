"""Sections of pages, registered where they are defined, as tasks and models are."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import cleandoc

import pandas as pd

from lookback.benchmarks.report.frames import FRAMES, Frames
from lookback.benchmarks.report.plots import Plot


@dataclass(frozen=True)
class Content:
    """A section's content. Tables hold numbers; the page formats them by their columns' names."""

    figure: Plot | None = None
    table: pd.DataFrame | None = None
    text: str = ""  # Markdown, below the docstring of the section

    @property
    def is_empty(self) -> bool:
        has_table = self.table is not None and not self.table.empty
        return not has_table and (self.figure is None or not self.figure.panels)


Make = Callable[[pd.DataFrame], Content]


@dataclass(frozen=True)
class Section:
    """A title, the frame it is made of, and the function that makes its content."""

    title: str
    of: str
    make: Make
    folded: bool = False  # shown only to a reader who opens it

    @property
    def text(self) -> str:
        """The docstring of the function: how to read the section."""
        return cleandoc(self.make.__doc__ or "")


SECTIONS: dict[str, Section] = {}


def register_section(title: str, of: str, folded: bool = False) -> Callable[[Make], Make]:
    """Register a function from a frame (see `frames.FRAMES`) to the content of a section.

        @register_section("Score against length", of="scores")
        def score_by_length(scores): ...

    Raises ValueError on a taken title or an unknown frame.
    """

    def decorate(make: Make) -> Make:
        if title in SECTIONS:
            raise ValueError(f"section {title!r} is already registered: expected a new title")
        if of not in FRAMES:
            near = difflib.get_close_matches(of, FRAMES) or sorted(FRAMES)
            raise ValueError(f"section {title!r}: no frame {of!r}: expected {' or '.join(near)}")
        SECTIONS[title] = Section(title, of, make, folded)
        return make

    return decorate


def contents(frames: Frames, sections: Mapping[str, Section]) -> dict[str, Content]:
    """Return the content of every section that has any, by title, in the order of registration."""
    made = {}
    for title, section in sections.items():
        rows = frames[section.of]
        if rows.empty:
            continue
        content = section.make(rows)
        if not content.is_empty:
            made[title] = content
    return made
