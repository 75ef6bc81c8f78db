"""Pathfinder images: two long dashed curves among shorter ones, and two dots at ends of curves.

The rule is that of Linsley et al. 2018 (arXiv 1805.08315; drewlinsley/pathfinder with the
parameters of Long Range Arena). A curve is a chain of bars, called paddles, with joints between
them. A joint lies `margin` from the paddles on either side. The far end of the next paddle is drawn
on a circle around the joint, with probability proportional to cos^2(continuity * turn), where there
is room. Except at a joint, two paddles are never nearer than two margins.

    o----  ----  ----           o  the dots: the first begins a curve; the second ends the same
                     \\             curve (label 1) or the other long one (label 0)
                      \\  o      -  a paddle

Two curves grow in turns from two seeds that lie a fixed distance apart; if one is stuck, both start
again. Then distractors are added where there is room, with five tries each.

Differences from the published code: it lets other paddles cover the last paddle of a curve; here
they cannot, so that every image has one answer. It rounds joints up to whole pixels; here they are
rounded to the nearest. It draws at twice the size and shrinks with a Lanczos filter; here each
pixel is sampled at 4 x 4 points. As there, distractors have the contrast of curves, and the two
long curves the product of the contrasts of curves and of paddles.

The occupied pixels are one long integer with one bit per pixel, row by row. Whether a paddle meets
an occupied pixel is then one `&`, which is fast; most of the work is finding out that there is no
room.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from math import atan2, ceil, cos, hypot, isqrt, pi, radians, sin
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lookback.tasks.lra.cache import Examples, Integers, empty_examples

Floats = NDArray[np.float64]
Point = tuple[int, int]  # row, column
Direction = tuple[float, float]  # down, right; of any length

PADDLE_TRIES = 3
DISTRACTOR_TRIES = 5
SAMPLES = 4  # points per pixel, in each direction
# Share of a pixel that must be covered for it to be occupied. The published code lets two paddles
# share a pixel up to 1.8 in all.
COVERED = 0.9


@dataclass(frozen=True)
class Setting:
    """The published parameters for one image size; lengths in pixels."""

    side: int
    padding: int
    seed_distance: int
    dot_radius: float
    paddle_length: int
    thickness: float
    margins: tuple[int, ...]  # each image draws one of them
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


class Occupied(NamedTuple):
    """Occupied pixels, as bits."""

    near: int  # within a margin of a paddle: no other paddle's `near` may meet them
    wide: int  # within two margins of a paddle: no other paddle may end there

    def __or__(self, other: tuple[int, int]) -> Occupied:
        return Occupied(self.near | other[0], self.wide | other[1])


@dataclass(frozen=True)
class Curve:
    """A chain of paddles from `tail` to `head`."""

    paddles: tuple[Paddle, ...]
    tail: Point
    head: Point
    joint: Point  # of the last paddle with the one before it
    heading: Direction  # from that joint along the last paddle
    last: Occupied  # by the last paddle


@dataclass(frozen=True)
class Picture:
    """A drawn image and the objects in it."""

    image: NDArray[np.uint8]  # (side, side) grey values
    label: int  # 1 if both dots are on one curve
    curves: tuple[Curve, ...]  # the two long ones
    distractors: tuple[Curve, ...]
    dots: tuple[Point, Point]


def make(seed: int, length: int, contour: int, split: str, rows: Integers) -> Examples:
    """Return the images with the numbers `rows` of a split, `length` pixels each.

    `contour` is the number of paddles in a long curve.
    """
    examples = empty_examples(len(rows), length)
    examples["length"] = length
    for example, row in zip(examples, rows.tolist(), strict=True):
        drawn = picture(seed, isqrt(length), contour, split, row)
        example["tokens"] = drawn.image.ravel()
        example["label"] = drawn.label
    return examples


def picture(seed: int, side: int, contour: int, split: str, row: int) -> Picture:
    """Return image `row` of a split: a function of the arguments alone."""
    digest = hashlib.sha256(f"pathfinder {seed} {side} {contour} {split} {row}".encode()).digest()
    random = Random(int.from_bytes(digest, "little"))
    setting = SETTINGS[side]
    label = int(random.random() < 0.5)

    board = make_board(setting, setting.margins[below(len(setting.margins), random)])
    occupied, curves = two_curves(board, contour, random)
    distractors = tuple(add_distractors(board, occupied, contour // 3, random))

    # The first dot begins a curve; the second ends the same curve or the other one.
    first = below(2, random)
    second = first if label else 1 - first
    dots = (curves[first].tail, curves[second].head)

    canvas = np.zeros((board.stride, board.stride))  # the image and the edge around it
    paint(canvas, board, curves, setting.curve_contrast * setting.paddle_contrast)
    paint(canvas, board, distractors, setting.curve_contrast)
    for dot in dots:
        lighten(canvas, board, dot, disc(setting.dot_radius))
    light = canvas[board.edge : -board.edge, board.edge : -board.edge]
    image = np.rint(light * (255 / light.max())).astype(np.uint8)
    return Picture(image, label, curves, distractors, dots)


def below(count: int, random: Random) -> int:
    """Return a random integer of 0..count-1, the same on every machine."""
    return int(random.random() * count)


def any_direction(random: Random) -> Direction:
    """Return one of 360 directions, all equally likely."""
    angle = radians(below(360, random))
    return sin(angle), cos(angle)


def moved(point: Point, direction: Direction, distance: float) -> Point:
    """Return the pixel at a distance from another in a direction."""
    size = hypot(*direction)
    row = point[0] + distance * direction[0] / size
    column = point[1] + distance * direction[1] / size
    return round(row), round(column)


# The board: pixels as bits, and the stamp that a paddle leaves on them.


@dataclass(frozen=True, eq=False)
class Board:
    """The pixels of an image as bits, `stride` to a row, with an occupied edge around the image."""

    setting: Setting
    margin: int
    reach: int  # a paddle with two margins lies within this distance of its start
    edge: int  # width of the edge: as far as a paddle may be tried
    stride: int
    outside: Occupied

    def bit(self, point: Point) -> int:
        """Return the number of a pixel's bit."""
        return (point[0] + self.edge) * self.stride + point[1] + self.edge

    def occupied_by(self, paddle: Paddle) -> Occupied:
        """Return the pixels that a paddle occupies."""
        mark = stamp(self, paddle.direction)
        shift = self.bit(paddle.start) - self.reach * (self.stride + 1)
        return Occupied(mark.near << shift, mark.wide << shift)


@lru_cache(maxsize=16)
def make_board(setting: Setting, margin: int) -> Board:
    """Return the empty board of a setting and margin."""
    edge = 2 * setting.paddle_length + 3 * margin + 2
    stride = setting.side + 2 * edge
    frames = []
    for border in (setting.padding, setting.padding + margin):
        inside = np.zeros((setting.side - 2 * border,) * 2, dtype=bool)
        frames.append(bits(np.pad(inside, edge + border, constant_values=True), stride))
    return Board(
        setting=setting,
        margin=margin,
        reach=setting.paddle_length + 2 * margin + ceil(setting.thickness),
        edge=edge,
        stride=stride,
        outside=Occupied(*frames),
    )


def bits(pixels: NDArray[np.bool_], stride: int) -> int:
    """Return the pixels of a square as bits of an integer, `stride` to a row, the first lowest."""
    rows = np.zeros((len(pixels), stride), dtype=bool)
    rows[:, : pixels.shape[1]] = pixels
    return int.from_bytes(np.packbits(rows, bitorder="little").tobytes(), "little")


class Stamp(NamedTuple):
    """The marks of a paddle on the square of pixels within `reach` of its start."""

    light: Floats  # share of each pixel that the paddle covers
    near: int  # bits of the pixels within a margin, from the first pixel of the square on
    wide: int  # bits of the pixels within two margins
    offsets: tuple[int, ...]  # numbers of the bits of `near`, relative to the start


@lru_cache(maxsize=4096)
def stamp(board: Board, direction: Direction) -> Stamp:
    """Return the stamp of a paddle in this direction."""
    reach = board.reach
    stride = board.stride
    axis_distance = distance_to_bar(reach, board.setting.paddle_length, direction)
    distance = axis_distance - board.setting.thickness / 2

    near = share(distance <= board.margin) >= COVERED
    wide = share(distance <= 2 * board.margin) >= COVERED
    offsets = (np.argwhere(near) - reach) @ (stride, 1)
    return Stamp(
        share(distance <= 0), bits(near, stride), bits(wide, stride), tuple(offsets.tolist())
    )


def distance_to_bar(reach: int, length: float, direction: Direction) -> Floats:
    """Return the distance of sample points to the axis of a bar that begins at (0, 0).

    There are SAMPLES x SAMPLES points in each pixel up to `reach` away.
    """
    ticks = (np.arange((2 * reach + 1) * SAMPLES) + 0.5) / SAMPLES - reach - 0.5
    row = ticks[:, None]
    column = ticks[None, :]
    size = hypot(*direction)
    down = direction[0] / size
    right = direction[1] / size

    along = np.clip(row * down + column * right, 0, length)
    squared = (row - along * down) ** 2 + (column - along * right) ** 2
    # Rounded, so that points at the very edge fall on the same side on every machine.
    return np.sqrt(np.round(squared, 9))


def share(points: NDArray[np.bool_]) -> Floats:
    """Return the share of each pixel's sample points that are set."""
    side = len(points) // SAMPLES
    return points.reshape(side, SAMPLES, side, SAMPLES).mean(axis=(1, 3))


# Drawing.


@lru_cache(maxsize=16)
def disc(radius: float) -> Floats:
    """Return the share of each pixel that a disc covers; radius in pixels."""
    return share(distance_to_bar(ceil(radius), 0, (1.0, 0.0)) <= radius)


def paint(canvas: Floats, board: Board, curves: tuple[Curve, ...], contrast: float) -> None:
    """Draw the paddles of curves onto the pixels of a board."""
    for curve in curves:
        for paddle in curve.paddles:
            light = stamp(board, paddle.direction).light * contrast
            lighten(canvas, board, paddle.start, light)


def lighten(canvas: Floats, board: Board, centre: Point, patch: Floats) -> None:
    """Draw a square patch around a pixel; where light overlaps, the brighter value stays."""
    side = len(patch)
    top = centre[0] + board.edge - side // 2
    left = centre[1] + board.edge - side // 2
    window = canvas[top : top + side, left : left + side]
    np.maximum(window, patch, out=window)


# Growing curves.


@lru_cache(maxsize=4096)
def turns(radius: int, continuity: float, heading: Direction) -> tuple[tuple[Point, float], ...]:
    """Return the possible ends of the next paddle around a joint, with unnormalised weights."""
    pixels = set()  # of a circle, sampled at steps of one pixel
    for step in range(ceil(2 * pi * radius)):
        angle = step / radius
        pixels.add((round(radius * sin(angle)), round(radius * cos(angle))))

    ends = []
    for pixel in sorted(pixels):
        turn = abs((atan2(*pixel) - atan2(*heading) + pi) % (2 * pi) - pi)
        weight = cos(min(turn * continuity, pi / 2)) ** 2
        if weight > 1e-9:
            ends.append((pixel, weight))
    return tuple(ends)


def seed_curve(board: Board, tail: Point, direction: Direction) -> Curve:
    """Return a curve of one paddle."""
    paddle = Paddle(tail, direction)
    head = moved(tail, direction, board.setting.paddle_length)
    joint = moved(tail, direction, -board.margin)
    return Curve((paddle,), tail, head, joint, direction, board.occupied_by(paddle))


def extended(board: Board, curve: Curve, occupied: Occupied, random: Random) -> Curve | None:
    """Return the curve with one more paddle, or None if there is no room.

    `occupied` covers everything except the last paddle of the curve itself.
    """
    setting = board.setting
    joint = moved(curve.joint, curve.heading, setting.paddle_length + 2 * board.margin)
    centre = board.bit(joint)

    ends = []
    weights = []
    for end, weight in turns(
        setting.paddle_length + board.margin, setting.continuity, curve.heading
    ):
        if not occupied.wide >> (centre + end[0] * board.stride + end[1]) & 1:
            ends.append(end)
            weights.append(weight)
    if not ends:
        return None

    cumulative = list(accumulate(weights))
    for _ in range(PADDLE_TRIES):
        down, right = ends[bisect_right(cumulative, random.random() * cumulative[-1])]
        # The paddle begins at its far end and runs towards the joint.
        paddle = Paddle((joint[0] + down, joint[1] + right), (-float(down), -float(right)))
        last = board.occupied_by(paddle)
        if not last.near & occupied.near:
            return replace(
                curve,
                paddles=(*curve.paddles, paddle),
                head=paddle.start,
                joint=joint,
                heading=(float(down), float(right)),
                last=last,
            )
    return None


def grow(
    board: Board, occupied: Occupied, curves: Sequence[Curve], paddles: int, random: Random
) -> tuple[Occupied, tuple[Curve, ...]] | None:
    """Grow curves of one paddle in turns until each has `paddles`.

    `occupied` covers everything else. Returns all occupied pixels and the complete curves, or None
    if a curve is stuck.
    """
    grown = list(curves)
    for _ in range(paddles - 1):
        for number, curve in enumerate(grown):
            obstacles = occupied
            for other in grown:
                if other is not curve:
                    obstacles |= other.last
            longer = extended(board, curve, obstacles, random)
            if longer is None:
                return None
            occupied |= curve.last
            grown[number] = longer

    for curve in grown:
        occupied |= curve.last
    return occupied, tuple(grown)


def two_curves(board: Board, contour: int, random: Random) -> tuple[Occupied, tuple[Curve, ...]]:
    """Return all occupied pixels and the two long curves; starts again until both are complete."""
    distance = board.setting.seed_distance
    # The first seed keeps twice the distance from every side.
    room = board.setting.side - 4 * distance
    while True:
        row = 2 * distance + below(room, random)
        column = 2 * distance + below(room, random)
        tail = (row, column)
        other_tail = moved(tail, any_direction(random), distance)
        curve = seed_curve(board, tail, any_direction(random))
        other = seed_curve(board, other_tail, any_direction(random))

        if not curve.last.near & other.last.near:
            grown = grow(board, board.outside, (curve, other), contour, random)
            if grown:
                return grown


def add_distractors(
    board: Board, occupied: Occupied, paddles: int, random: Random
) -> Iterator[Curve]:
    """Yield distractors of `paddles` paddles each, as many as the setting has and find room."""
    for _ in range(board.setting.distractor_paddles // paddles):
        for _ in range(DISTRACTOR_TRIES):
            direction = any_direction(random)
            tail = free_start(board, occupied.near, direction, random)
            if tail is None:
                continue
            grown = grow(board, occupied, [seed_curve(board, tail, direction)], paddles, random)
            if grown:
                occupied, curves = grown
                yield from curves
                break


def free_start(board: Board, near: int, direction: Direction, random: Random) -> Point | None:
    """Return a random pixel where a paddle in this direction has room, or None if there is none."""
    # A start is blocked if any pixel of the stamp would meet an occupied one.
    blocked = near
    for offset in stamp(board, direction).offsets:
        blocked |= near >> offset if offset >= 0 else near << -offset

    size = board.stride * board.stride
    content = (blocked & ((1 << size) - 1)).to_bytes(-(-size // 8), "little")
    is_blocked = np.unpackbits(np.frombuffer(content, np.uint8), count=size, bitorder="little")
    free = np.flatnonzero(is_blocked == 0)
    if not len(free):
        return None
    row, column = divmod(int(free[below(len(free), random)]), board.stride)
    return row - board.edge, column - board.edge
