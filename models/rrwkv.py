"""RRWKV: RWKV-4 that looks back through mediums. Our reconstruction, not the author's code.

Wang 2023 (arXiv 2306.05176) was withdrawn by its author, without code or results. Public is the
idea: *mediums*, abstract representations of the input at regular intervals, enter time-mix and
channel-mix, so that the model can look back at them. What follows is our reading; h is the input of
the time-mix, y that of the channel-mix, S the interval:

    segment j ends   s_j = mean of h over the S tokens of segment j
                     m_j = s_j * sigmoid(W_up relu(W_down s_j))                       squeeze and excite, width D/4
    latest medium    m(t) = m_j of the last segment that ended at or before t-1; 0 before the first
    time-mix         x^c_t = mu_c h_t + (1 - mu_c) h_{t-1} + nu_c m(t)                for c in r, k, v; nu starts at 0
    retrospection    z(t) = WKV over the finished mediums, keys W_k m_j, values W_v m_j, one step a segment
                     o_t  = W_o( sigmoid(r_t) * ( wkv_t + sigmoid(W_g h_t) * z(t) ) )
    channel-mix      x^c_t = mu_c y_t + (1 - mu_c) y_{t-1} + nu_c n(t)                for c in r, k; n: mediums of y

With retrospection "attention" z(t) is softmax attention of r_t over all finished mediums. Without
an interval the block is RWKV-4.
"""

from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from lookback.models.lean import own, parts, product
from lookback.models.model import register_model
from lookback.models.rwkv import (
    SPEC,
    ChannelMix,
    RWKVBlock,
    TimeMix,
    TimeMixState,
    last,
    orthogonal,
    shift,
)
from lookback.models.wkv import empty_state, wkv, wkv_step

RETROSPECTIONS = ("recurrent", "attention", "none")
Interval = int | str


class Stream(NamedTuple):
    """Mediums as a stream meets them: the sum over the unfinished segment, and the latest medium,
    (batch, width).
    """

    total: Tensor
    latest: Tensor
    position: int
    interval: int


class Memory(NamedTuple):
    """What retrospection keeps of finished mediums: `state` is that of their WKV, or all their keys
    and values.

    `answer` (batch, width) is what the WKV over mediums says until the next medium; None with
    attention.
    """

    state: Any
    answer: Tensor | None


class RetrospectiveState(NamedTuple):
    """The state of the mix without mediums, the mediums, and (time-mix) what retrospection
    remembers of them.
    """

    plain: Any
    stream: Stream
    memory: Memory


NO_MEMORY = Memory(None, None)


def segment_length(interval: int | str, length: int) -> int:
    """Tokens of a segment; of "sqrt" the square root of the length, rounded up."""
    return isqrt(length - 1) + 1 if interval == "sqrt" else int(interval)


def as_seen(per_segment: Tensor, interval: int, length: int) -> Tensor:
    """Spread what finished segments bring, (batch, segments, width), over the `length` positions
    that see it latest.
    """
    late = pad(
        per_segment, (0, 0, 1, 0)
    )  # segment j is seen from segment j + 1 on; nothing before the first
    return late[:, :, None].expand(-1, -1, interval, -1).flatten(1, 2)[:, :length]


class Squeeze(nn.Module):
    """Means of segments -> mediums, (..., width) -> same: a small gate weighs the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, max(1, width // 4), bias=False)
        self.up = nn.Linear(max(1, width // 4), width, bias=False)
        orthogonal(self.down)
        nn.init.zeros_(self.up.weight)

    def forward(self, means: Tensor) -> Tensor:
        return means * self.up(self.down(means).relu()).sigmoid()


class Mediums(nn.Module):
    """What both mixes share: makes mediums of a mix's inputs, and adds the latest to each of its
    `count` inputs.
    """

    def __init__(self, width: int, interval: int | str, squeeze: bool, count: int) -> None:
        super().__init__()
        self.interval = interval
        self.squeeze = Squeeze(width) if squeeze else nn.Identity()
        self.shares = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(count))

    def add(self, inputs: tuple[Tensor, ...], medium: Tensor) -> tuple[Tensor, ...]:
        """Inputs of a mix, each (batch, length, width), with their share of the latest medium."""
        if not len(self.shares):
            return inputs
        return tuple(
            torch.addcmul(x, nu, medium) for x, nu in zip(inputs, self.shares, strict=True)
        )

    def add_once(self, inputs: tuple[Tensor, ...], medium: Tensor) -> tuple[Tensor, ...]:
        """`add` for `step`."""
        shares = own(parts(self)["shares"]).values()
        return (
            tuple([torch.addcmul(x, nu, medium) for x, nu in zip(inputs, shares, strict=True)])
            if shares
            else inputs
        )

    def of_sequence(self, h: Tensor) -> tuple[Tensor, Stream]:
        """Mediums of all finished segments of h, (batch, segments, width), and what a stream holds
        at the end.
        """
        length = h.shape[1]
        interval = segment_length(self.interval, length)
        segments = length // interval
        finished = h[:, : segments * interval].unflatten(1, (segments, interval))
        mediums = self.squeeze(finished.mean(2))
        latest = last(mediums) if segments else torch.zeros_like(h[:, 0])
        return mediums, Stream(h[:, segments * interval :].sum(1), latest, length, interval)

    def initial_stream(self, like: Tensor) -> Stream:
        """Before the first input; `like` is (batch, width)."""
        if self.interval == "sqrt":
            raise ValueError(
                "rrwkv with interval 'sqrt' must know its length: start from prefill, or set an integer"
            )
        zeros = torch.zeros_like(like)
        return Stream(zeros, zeros, 0, int(self.interval))

    def advance(self, h: Tensor, stream: Stream) -> tuple[Stream, bool]:
        """The stream after one more input (batch, width), and whether that finished a segment."""
        total, position = stream.total + h, stream.position + 1
        if position % stream.interval:
            return Stream(total, stream.latest, position, stream.interval), False
        medium = self.squeeze(total / stream.interval)
        return Stream(torch.zeros_like(total), medium, position, stream.interval), True


class RetrospectiveTimeMix(TimeMix):
    """RWKV's time-mix with mediums in its inputs (where `shared`) and looking back at them all."""

    def __init__(
        self,
        width: int,
        layer: int,
        depth: int,
        interval: int | str,
        squeeze: bool,
        shared: bool,
        retrospection: str,
    ) -> None:
        super().__init__(width, layer, depth)
        self.retrospection = retrospection
        self.mediums = Mediums(width, interval, squeeze, count=3 if shared else 0)
        if retrospection != "none":
            self.gate = nn.Linear(width, width, bias=False)
            nn.init.zeros_(self.gate.weight)
        if retrospection == "recurrent":
            self.medium_decay = nn.Parameter(
                torch.full((width,), -6.0)
            )  # slow, so that mediums are kept
            self.medium_bonus = nn.Parameter(torch.zeros(width))

    def prefill(self, h: Tensor) -> tuple[Tensor, Any]:
        mediums, stream = self.mediums.of_sequence(h)
        inputs = self.mediums.add(
            self.mixed(h, shift(h)), as_seen(mediums, stream.interval, h.shape[1])
        )
        receptance, key, value = self.project(*inputs)
        answer, state = wkv(self.decay.exp(), self.bonus, key, value)
        found, memory = self.look_back(receptance, mediums, stream.interval)
        return self.finish(h, receptance, answer, found), RetrospectiveState(
            TimeMixState(last(h), state), stream, memory
        )

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Any:
        plain = super().initial_state(batch_size, device, dtype)
        stream = self.mediums.initial_stream(plain.before)
        return RetrospectiveState(plain, stream, self.empty_memory(plain.before))

    def step(self, h: Tensor, state: Any) -> tuple[Tensor, Any]:
        plain, stream, memory = state
        mediums = parts(self)["mediums"]
        inputs = mediums.add_once(self.mixed_once(h, plain.before), stream.latest)
        receptance, key, value = self.project_once(*inputs)
        answer, after = self.wkv_once(key, value, plain.wkv)
        mixed = self.finish_once(h, receptance, answer, self.look_back_once(receptance, memory))
        stream, finished = mediums.advance(h, stream)
        if finished:
            memory = self.remember(stream.latest, memory)
        return mixed, RetrospectiveState(TimeMixState(h, after), stream, memory)

    def finish(self, h: Tensor, receptance: Tensor, answer: Tensor, found: Tensor | None) -> Tensor:
        """The mix's output from the gated sum of WKV's answer and what was found, (batch, length,
        width).
        """
        if found is not None:
            answer = answer + self.gate(h).sigmoid() * found
        return self.output(receptance.sigmoid() * answer)

    def finish_once(
        self, h: Tensor, receptance: Tensor, answer: Tensor, found: Tensor | None
    ) -> Tensor:
        """`finish` for `step`."""
        layers = parts(self)
        if found is not None:
            answer = torch.addcmul(answer, product(layers["gate"], h).sigmoid(), found)
        return product(layers["output"], receptance.sigmoid() * answer)

    def empty_memory(self, like: Tensor) -> Memory:
        """Before the first medium; `like` is (batch, width)."""
        if self.retrospection == "recurrent":
            return Memory(
                empty_state(like.shape[0], like.shape[1], like.device), torch.zeros_like(like)
            )
        nothing = like[:, None][:, :0]  # (batch, 0, width)
        return Memory((nothing, nothing), None) if self.retrospection == "attention" else NO_MEMORY

    def look_back(
        self, query: Tensor, mediums: Tensor, interval: int
    ) -> tuple[Tensor | None, Memory]:
        """What each position of `query`, (batch, length, width), finds among the mediums finished
        before it.
        """
        if self.retrospection == "none":
            return None, NO_MEMORY
        if not mediums.shape[1]:
            return torch.zeros_like(query), self.empty_memory(query[:, 0])
        key, value = self.key(mediums), self.value(mediums)
        if self.retrospection == "attention":
            return self.attend(query, key, value, interval), Memory((key, value), None)
        answers, state = wkv(self.medium_decay.exp(), self.medium_bonus, key, value)
        return as_seen(answers, interval, query.shape[1]), Memory(state, last(answers))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, interval: int) -> Tensor:
        """Attention of each position to the keys of the mediums finished before it, (batch, length,
        width).
        """
        position = torch.arange(
            interval, query.shape[1], device=query.device
        )  # before that, no medium is finished
        segment = torch.arange(key.shape[1], device=query.device)
        finished = segment < (position // interval)[:, None]  # (positions, segments)
        query, key, value = (
            query[:, None, interval:],
            key[:, None],
            value[:, None],
        )  # fused kernels want heads: one
        return pad(
            scaled_dot_product_attention(query, key, value, attn_mask=finished)[:, 0],
            (0, 0, interval, 0),
        )

    def look_back_once(self, query: Tensor, memory: Memory) -> Tensor | None:
        """What one position, (batch, width), finds in the memory."""
        if self.retrospection != "attention":
            return memory.answer
        keys, values = memory.state
        if not keys.shape[1]:
            return torch.zeros_like(query)
        return scaled_dot_product_attention(query[:, None, None], keys[:, None], values[:, None])[
            :, 0, 0
        ]

    def remember(self, medium: Tensor, memory: Memory) -> Memory:
        """The memory with one more medium, (batch, width)."""
        if self.retrospection == "none":
            return memory
        key, value = self.key(medium), self.value(medium)
        if self.retrospection == "attention":
            keys, values = memory.state
            return Memory(
                (torch.cat([keys, key[:, None]], 1), torch.cat([values, value[:, None]], 1)), None
            )
        answer, state = wkv_step(
            self.medium_decay.exp(), self.medium_bonus, key, value, memory.state
        )
        return Memory(state, answer)


class RetrospectiveChannelMix(ChannelMix):
    """RWKV's channel-mix with mediums of its own in its inputs."""

    def __init__(
        self, width: int, layer: int, depth: int, interval: int | str, squeeze: bool
    ) -> None:
        super().__init__(width, layer, depth)
        self.mediums = Mediums(width, interval, squeeze, count=2)

    def prefill(self, y: Tensor) -> tuple[Tensor, Any]:
        mediums, stream = self.mediums.of_sequence(y)
        inputs = self.mediums.add(
            self.mixed(y, shift(y)), as_seen(mediums, stream.interval, y.shape[1])
        )
        return self.respond(*inputs), RetrospectiveState(last(y), stream, NO_MEMORY)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Any:
        plain = super().initial_state(batch_size, device, dtype)
        return RetrospectiveState(plain, self.mediums.initial_stream(plain), NO_MEMORY)

    def step(self, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        before, stream, memory = state
        mediums = parts(self)["mediums"]
        inputs = mediums.add_once(self.mixed_once(y, before), stream.latest)
        return self.respond_once(*inputs), RetrospectiveState(
            y, mediums.advance(y, stream)[0], memory
        )


@register_model("rrwkv", SPEC)
class RRWKVBlock(RWKVBlock):
    """RWKV's block, whose mixes see mediums where the options ask for it.

    interval: tokens a segment; "sqrt" for the square root of the length, rounded up; "none" for
    plain RWKV-4. squeeze: weigh the channels of a medium by a gate. time_mix, channel_mix: let
    mediums into that mix. retrospection: "recurrent" (linear in length, constant state),
    "attention" (length^2 / interval) or "none".
    """

    def __init__(
        self,
        width: int,
        layer: int,
        depth: int,
        *,
        interval: Interval = 16,
        squeeze: bool = True,
        time_mix: bool = True,
        channel_mix: bool = True,
        retrospection: str = "recurrent",
    ) -> None:
        super().__init__(width, layer, depth)
        _check(interval, retrospection)
        if interval == "none":
            return
        if time_mix or retrospection != "none":
            self.time_mix = RetrospectiveTimeMix(
                width, layer, depth, interval, squeeze, time_mix, retrospection
            )
        if channel_mix:
            self.channel_mix = RetrospectiveChannelMix(width, layer, depth, interval, squeeze)


def _check(interval: Interval, retrospection: str) -> None:
    whole = isinstance(interval, int) and not isinstance(interval, bool) and interval >= 1
    if not (whole or interval in ("none", "sqrt")):
        raise ValueError(
            f"rrwkv interval {interval!r}: expected an integer of at least 1, 'sqrt' or 'none'"
        )
    if retrospection not in RETROSPECTIONS:
        raise ValueError(
            f"rrwkv retrospection {retrospection!r}: expected one of {', '.join(RETROSPECTIONS)}"
        )
