"""Pathfinder pictures: two dashed curves among shorter ones, and two dots that may or may not end
the same curve.

The rule (Linsley et al. 2018, arXiv 1805.08315; drewlinsley/pathfinder with the parameters of Long
Range Arena). A curve is a chain of bars, called paddles. Between the paddles lie joints; a joint is
`margin` from the paddles on either side, and the next paddle's far end is drawn on a circle around
the joint, with probability proportional to cos^2(continuity * turn), where there is room. Two
paddles are never nearer than two margins, but at a joint.

                      o----  ----  ----                 o  a dot, at the beginning of a curve
                                       \\                -  a paddle
                                        \\  o            the other dot ends this curve (1) or the other long one (0)

Two curves grow by turns from two seeds that lie a given distance apart; when one is stuck, both are
begun anew. Then distractors are strewn where there is room, each tried five times. Where the
published code lets the last paddle of a curve be drawn over by others, ours does not, so that every
picture has one answer. Its joints are rounded up to whole pixels, ours to the nearest; it draws at
twice the size and shrinks with Lanczos, we count 4 x 4 points of each pixel. As there, distractors
are drawn at the curves' contrast alone, the two long curves at that of curves times paddles.

Which pixels are taken is kept in one long integer, a bit a pixel, row after row: whether a paddle
meets what is there is then one `&`, and most of the work is finding out that there is no room.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from math import atan2, ceil, cos, hypot, isqrt, pi, radians, sin
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Point = tuple[int, int]  # row, column
Direction = tuple[float, float]  # down, right; of any length

PADDLE_TRIES, DISTRACTOR_TRIES = 3, 5
SAMPLES = 4  # points a pixel in each direction
# of a pixel, for it to be taken: the published code lets two paddles share one up to 1.8 in all
COVERED = 0.9


@dataclass(frozen=True)
class Setting:
    """How a picture of a size is drawn; lengths in pixels."""

    side: int
    padding: int
    seed_distance: int
    dot_radius: float
    paddle_length: int
    thickness: float
    margins: tuple[int, ...]  # one is drawn for each picture
    paddle_contrast: float
    curve_contrast: float
    continuity: float
    distractor_paddles: int  # in all distractors together


SETTINGS = {
    32: Setting(32, 1, 7, 1.5, 2, 0.5, (1,), 0.75, 2.0, 1.0, 20),
    64: Setting(64, 1, 12, 2.5, 5, 1.0, (1,), 1.0, 0.8, 1.8, 22),
    128: Setting(128, 1, 20, 3.0, 5, 1.5, (2, 3), 1.0, 0.9, 1.8, 35),
    256: Setting(256, 22, 27, 5.0, 5, 2.0, (3,), 1.0, 1.0, 1.8, 30),
}


class Paddle(NamedTuple):
    """A bar that begins at a pixel and runs in a direction."""

    start: Point
    direction: Direction


class Taken(NamedTuple):
    """Pixels, as bits: those that no other paddle's may meet, and those where no other paddle may
    end.
    """

    near: int
    wide: int

    def __or__(self, other: tuple[int, int]) -> Taken:
        return Taken(self.near | other[0], self.wide | other[1])


@dataclass(frozen=True)
class Curve:
    """A chain of paddles; the last one hangs on `joint`, points along `heading`, and takes the
    pixels `last`.
    """

    paddles: tuple[Paddle, ...]
    tail: Point
    head: Point
    joint: Point
    heading: Direction
    last: Taken


@dataclass(frozen=True)
class Picture:
    """What was drawn: grey values (side, side), whether both dots are on one curve, the long
    curves, and the rest.
    """

    image: NDArray[np.uint8]
    label: int
    curves: tuple[Curve, Curve]
    distractors: tuple[Curve, ...]
    dots: tuple[Point, Point]


def make(
    seed: int, length: int, contour: int, split: str, rows: Integers
) -> tuple[NDArray[np.uint8], Integers, Integers]:
    """Pictures number `rows` of a split, of `length` pixels, whose long curves have `contour`
    paddles.

    Returns grey values (rows, length), labels (rows,), lengths (rows,).
    """
    pictures = [picture(seed, isqrt(length), contour, split, int(row)) for row in rows]
    tokens = np.stack([drawn.image.ravel() for drawn in pictures])
    return tokens, np.array([drawn.label for drawn in pictures]), np.full(len(rows), length)


def picture(seed: int, side: int, contour: int, split: str, row: int) -> Picture:
    """Picture `row` of a split: a function of the arguments alone."""
    digest = hashlib.sha256(f"pathfinder {seed} {side} {contour} {split} {row}".encode()).digest()
    random = Random(int.from_bytes(digest, "little"))
    label, setting = int(random.random() < 0.5), SETTINGS[side]
    board = Board.of(setting, below(len(setting.margins), random))
    taken, curves = two_curves(board, contour, random)
    distractors = tuple(strew(board, taken, contour // 3, random))
    first = below(2, random)
    dots = curves[first].tail, curves[first if label else 1 - first].head
    light = np.zeros((side, side))
    paint(light, board, curves, setting.curve_contrast * setting.paddle_contrast)
    paint(light, board, distractors, setting.curve_contrast)
    for dot in dots:
        lighten(light, dot, disc(setting.dot_radius))
    image = np.rint(light * (255 / light.max())).astype(np.uint8)
    return Picture(image, label, curves, distractors, dots)


def below(count: int, random: Random) -> int:
    """A whole number from 0 to `count` - 1, the same on every machine."""
    return int(random.random() * count)


def moved(point: Point, direction: Direction, distance: float) -> Point:
    """The pixel at a distance from another in a direction."""
    size = hypot(*direction)
    row, column = (round(p + distance * d / size) for p, d in zip(point, direction, strict=True))
    return row, column


class Stamp(NamedTuple):
    """What a paddle does to the square of pixels up to `reach` around its start."""

    light: Floats  # share of each pixel that it covers
    near: int  # bits of those within a margin of it, from the square's first pixel on
    wide: int  # bits of those within two
    offsets: tuple[int, ...]  # places of the bits of `near`, from the start


@dataclass(frozen=True)
class Board:
    """A picture's pixels as bits: `stride` to a row, with an edge outside the picture all around,
    which is taken.
    """

    setting: Setting
    margin: int
    reach: int
    edge: int
    stride: int
    outside: Taken

    @staticmethod
    @lru_cache(maxsize=16)
    def of(setting: Setting, margin_number: int) -> Board:
        """The board of a setting, with the margin of this number."""
        margin = setting.margins[margin_number]
        reach = setting.paddle_length + 2 * margin + ceil(setting.thickness)
        edge = 2 * setting.paddle_length + 3 * margin + 2  # as far as a paddle may be tried
        frames = [
            np.pad(
                np.zeros((setting.side - 2 * border,) * 2, bool),
                edge + border,
                constant_values=True,
            )
            for border in (setting.padding, setting.padding + margin)
        ]
        stride = setting.side + 2 * edge
        return Board(
            setting, margin, reach, edge, stride, Taken(*(bits(frame, stride) for frame in frames))
        )

    def place(self, point: Point) -> int:
        """Number of a pixel's bit."""
        return (point[0] + self.edge) * self.stride + point[1] + self.edge

    def stamp(self, direction: Direction) -> Stamp:
        """What a paddle of this direction takes and draws."""
        setting = self.setting
        return stamp(
            setting.paddle_length,
            setting.thickness,
            self.margin,
            self.reach,
            self.stride,
            direction,
        )

    def taken_by(self, paddle: Paddle) -> Taken:
        """The pixels that a paddle takes, where it lies on the board."""
        mark, shift = (
            self.stamp(paddle.direction),
            self.place(paddle.start) - self.reach * (self.stride + 1),
        )
        return Taken(mark.near << shift, mark.wide << shift)


def bits(pixels: NDArray[np.bool_], stride: int) -> int:
    """Pixels of a square as the bits of an integer, `stride` to a row, the first one lowest."""
    spread = np.zeros((len(pixels), stride), dtype=bool)
    spread[:, : pixels.shape[1]] = pixels
    return int.from_bytes(np.packbits(spread, bitorder="little").tobytes(), "little")


@lru_cache(maxsize=4096)
def stamp(
    length: int, thickness: float, margin: int, reach: int, stride: int, direction: Direction
) -> Stamp:
    """A bar of a length and thickness, in pixels, and its margins, within `reach` of where it
    begins.
    """
    away = distance_to_bar(reach, length, direction) - thickness / 2
    near, wide = (share(away <= margin) >= COVERED), (share(away <= 2 * margin) >= COVERED)
    offsets = (np.argwhere(near) - reach) @ (stride, 1)
    return Stamp(share(away <= 0), bits(near, stride), bits(wide, stride), tuple(offsets.tolist()))


def distance_to_bar(reach: int, length: float, direction: Direction) -> Floats:
    """Distance to a bar that begins at (0, 0), of SAMPLES x SAMPLES points in each pixel up to
    `reach` away.
    """
    ticks = (np.arange((2 * reach + 1) * SAMPLES) + 0.5) / SAMPLES - reach - 0.5
    row, column = ticks[:, None], ticks[None, :]
    down, right = (d / hypot(*direction) for d in direction)
    along = np.clip(row * down + column * right, 0, length)
    squared = (row - along * down) ** 2 + (column - along * right) ** 2
    return np.sqrt(
        np.round(squared, 9)
    )  # points at the very edge fall the same way on every machine


def share(points: NDArray[np.bool_]) -> Floats:
    """Share of each pixel's points that are set."""
    side = len(points) // SAMPLES
    return points.reshape(side, SAMPLES, side, SAMPLES).mean(axis=(1, 3))


@lru_cache(maxsize=16)
def disc(radius: float) -> Floats:
    """How much of each pixel a disc covers; radius in pixels."""
    return share(distance_to_bar(ceil(radius), 0, (1.0, 0.0)) <= radius)


def paint(light: Floats, board: Board, curves: tuple[Curve, ...], contrast: float) -> None:
    """Draw the paddles of curves into a picture, (side, side), at a contrast."""
    for curve in curves:
        for paddle in curve.paddles:
            lighten(light, paddle.start, board.stamp(paddle.direction).light * contrast)


def lighten(light: Floats, centre: Point, part: Floats) -> None:
    """Draw a square of light around a pixel; where there is light already, the brighter stays."""
    reach = len(part) // 2
    top, left = (max(0, c - reach) for c in centre)
    window = light[top : centre[0] + reach + 1, left : centre[1] + reach + 1]
    row, column = (max(0, reach - c) for c in centre)
    np.maximum(
        window, part[row : row + window.shape[0], column : column + window.shape[1]], out=window
    )


@lru_cache(maxsize=4096)
def turns(radius: int, continuity: float, heading: Direction) -> tuple[tuple[Point, float], ...]:
    """Where the end of the next paddle may lie around a joint, and how likely each place is,
    unnormalised.
    """
    found = []
    for place in circle(radius):
        turn = abs((atan2(*place) - atan2(*heading) + pi) % (2 * pi) - pi)
        weight = cos(min(turn * continuity, pi / 2)) ** 2
        if weight > 1e-9:
            found.append((place, weight))
    return tuple(found)


@lru_cache(maxsize=16)
def circle(radius: int) -> tuple[Point, ...]:
    """Pixels of a circle around (0, 0), met by steps of a pixel along it."""
    steps = [step / radius for step in range(ceil(2 * pi * radius))]
    return tuple(
        sorted({(round(radius * sin(angle)), round(radius * cos(angle))) for angle in steps})
    )


def extended(board: Board, curve: Curve, taken: Taken, random: Random) -> Curve | None:
    """The curve with one more paddle, None where there is no room. `taken` is by all but the
    curve's last paddle.
    """
    setting = board.setting
    joint = moved(curve.joint, curve.heading, setting.paddle_length + 2 * board.margin)
    corner = board.place(joint)
    ways = turns(setting.paddle_length + board.margin, setting.continuity, curve.heading)
    open_ways = [
        way for way in ways if not taken.wide >> (corner + way[0][0] * board.stride + way[0][1]) & 1
    ]
    total = list(accumulate(weight for _, weight in open_ways))
    for _ in range(PADDLE_TRIES if total else 0):
        drawn = random.random() * total[-1]
        down, right = next(
            way[0] for way, up_to in zip(open_ways, total, strict=True) if drawn < up_to
        )
        paddle = Paddle((joint[0] + down, joint[1] + right), (-float(down), -float(right)))
        mine = board.taken_by(paddle)
        if not mine.near & taken.near:
            return replace(
                curve,
                paddles=(*curve.paddles, paddle),
                head=paddle.start,
                joint=joint,
                heading=(float(down), float(right)),
                last=mine,
            )
    return None


def seed_curve(board: Board, tail: Point, direction: Direction) -> Curve:
    """A curve of one paddle."""
    paddle = Paddle(tail, direction)
    head, joint = (
        moved(tail, direction, by) for by in (board.setting.paddle_length, -board.margin)
    )
    return Curve((paddle,), tail, head, joint, direction, board.taken_by(paddle))


def any_direction(random: Random) -> Direction:
    """One of 360 directions, all alike."""
    angle = radians(below(360, random))
    return sin(angle), cos(angle)


def two_curves(board: Board, contour: int, random: Random) -> tuple[Taken, tuple[Curve, Curve]]:
    """The two long curves, grown by turns, begun anew until both are whole; and what they take."""
    distance = board.setting.seed_distance
    while True:
        # The first seed keeps twice the distance from every side.
        first = tuple(
            2 * distance + below(board.setting.side - 4 * distance, random) for _ in range(2)
        )
        second = moved((first[0], first[1]), any_direction(random), distance)
        curves = [
            seed_curve(board, (tail[0], tail[1]), any_direction(random)) for tail in (first, second)
        ]
        grown = (
            grow_by_turns(board, curves, contour, random)
            if not curves[0].last.near & curves[1].last.near
            else None
        )
        if grown:
            return grown


def grow_by_turns(
    board: Board, curves: list[Curve], contour: int, random: Random
) -> tuple[Taken, tuple[Curve, Curve]] | None:
    """Both curves with `contour` paddles and what they take, or None where one of them is stuck."""
    taken = board.outside  # by all but the last paddles
    for _ in range(contour - 1):
        for mine in range(2):
            longer = extended(board, curves[mine], taken | curves[1 - mine].last, random)
            if longer is None:
                return None
            taken = taken | curves[mine].last
            curves[mine] = longer
    return taken | curves[0].last | curves[1].last, (curves[0], curves[1])


def strew(board: Board, taken: Taken, paddles: int, random: Random) -> Iterator[Curve]:
    """Distractors of so many paddles each, where there is room for them."""
    for _ in range(board.setting.distractor_paddles // paddles):
        for _ in range(DISTRACTOR_TRIES):
            found = distractor(board, taken, paddles, random)
            if found:
                taken, curve = found
                yield curve
                break


def distractor(
    board: Board, taken: Taken, paddles: int, random: Random
) -> tuple[Taken, Curve] | None:
    """One distractor and all that is taken then; None when it is stuck."""
    direction = any_direction(random)
    tail = free_place(board, taken.near, direction, random)
    if tail is None:
        return None
    curve = seed_curve(board, tail, direction)
    for _ in range(paddles - 1):
        longer = extended(board, curve, taken, random)
        if longer is None:
            return None
        taken, curve = taken | curve.last, longer
    return taken | curve.last, curve


def free_place(board: Board, near: int, direction: Direction, random: Random) -> Point | None:
    """A pixel where a paddle may start in this direction, each such pixel equally likely; None
    where there is none.
    """
    blocked = near
    for offset in board.stamp(direction).offsets:
        blocked |= near >> offset if offset >= 0 else near << -offset
    size = board.stride * board.stride
    content = (blocked & ((1 << size) - 1)).to_bytes(-(-size // 8), "little")
    free = np.flatnonzero(
        np.unpackbits(np.frombuffer(content, np.uint8), count=size, bitorder="little") == 0
    )
    if not len(free):
        return None
    row, column = divmod(int(free[below(len(free), random)]), board.stride)
    return row - board.edge, column - board.edge
