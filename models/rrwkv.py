"""RRWKV: RWKV-4 that looks back through mediums. Our reconstruction, not the author's code.

Wang 2023 (arXiv 2306.05176) was withdrawn by its author, without code or results. The idea is
public: *mediums*, abstract representations of the input at regular intervals, enter time-mix and
channel-mix, so that the model can look back at them. This is our reading of it. h is the input of
the time-mix, y that of the channel-mix, S the interval:

    segment j ends   m_j = mean of h over the S tokens of segment j
    latest medium    m(t) = m_j of the last segment that ended at or before t-1; 0 before the first

    time-mix         x^c_t = mu_c h_t + (1 - mu_c) h_{t-1} + nu_c m(t)           for c in r, k, v
    retrospection    z(t) = wkv over the finished mediums, one step per segment,
                            with keys W_k m_j and values W_v m_j
                     o_t  = W_o ( sigmoid(r_t) * ( wkv_t + sigmoid(W_g h_t) * z(t) ) )

    channel-mix      x^c_t = mu_c y_t + (1 - mu_c) y_{t-1} + nu_c n(t)           for c in r, k
                     n(t): the latest medium of y, made in the same way

nu starts at 0. With retrospection "attention", z(t) is softmax attention of r_t to all finished
mediums. Without an interval the block is RWKV-4.

The option `squeeze` is an extension, squeeze-and-excite on the mediums (the paper names a squeeze
operation as future work):

                     m_j = s_j * sigmoid(W_up relu(W_down s_j))       s_j the mean, W_down to D/4
"""

from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from lookback.models.block import last_position
from lookback.models.model import register_model
from lookback.models.rwkv import (
    SPEC,
    ChannelMix,
    RWKVBlock,
    TimeMix,
    TimeMixState,
    orthogonal,
    previous_inputs,
)
from lookback.models.short_conv import Convolved
from lookback.models.wkv import empty_state, wkv, wkv_step

Interval = int | str  # tokens, or "sqrt" or "none"


class MediumStream(NamedTuple):
    """State of the mediums of one mix; tensors are (batch, width)."""

    segment_sum: Tensor  # of the inputs in the unfinished segment
    latest: Tensor  # the medium of the last finished segment
    position: int
    interval: int


def spread_segments(per_segment: Tensor, interval: int, length: int) -> Tensor:
    """Give each position the value of the latest segment that is finished before it.

    (batch, segments, width) -> (batch, length, width); zeros before the first finished segment.
    """
    delayed = pad(per_segment, (0, 0, 1, 0))  # segment j is visible from segment j + 1 on
    repeated = delayed[:, :, None].expand(-1, -1, interval, -1)
    return repeated.flatten(1, 2)[:, :length]


class Squeeze(nn.Module):
    """Squeeze-and-excite: a small gate weighs the channels of a medium, (..., width) -> same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(1, width // 4)
        self.down = nn.Linear(width, narrow, bias=False)
        self.up = nn.Linear(narrow, width, bias=False)
        orthogonal(self.down)
        nn.init.zeros_(self.up.weight)

    def forward(self, means: Tensor) -> Tensor:
        return means * self.up(self.down(means).relu()).sigmoid()


class Mediums(nn.Module):
    """Makes mediums from the inputs of a mix, and adds the latest one to its shifted inputs.

    `count` is the number of shifted inputs that get a share of the medium.
    """

    def __init__(self, width: int, interval: Interval, squeeze: bool, count: int) -> None:
        super().__init__()
        self.interval = interval
        self.squeeze = Squeeze(width) if squeeze else nn.Identity()
        self.shares = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(count))

    def read(self, h: Tensor) -> tuple[Tensor, MediumStream]:
        """Return the mediums m_j of h, (batch, length, width), and the state after it.

        The mediums are (batch, finished segments, width).
        """
        length = h.shape[1]
        interval = isqrt(length - 1) + 1 if self.interval == "sqrt" else int(self.interval)
        segments = length // interval
        finished = h[:, : segments * interval].unflatten(1, (segments, interval))
        mediums = self.squeeze(finished.mean(2))

        latest = last_position(mediums) if segments else torch.zeros_like(h[:, 0])
        segment_sum = h[:, segments * interval :].sum(1)
        return mediums, MediumStream(segment_sum, latest, length, interval)

    def initial_stream(self, like: Tensor) -> MediumStream:
        """Return the state before the first position; `like` is (batch, width)."""
        if self.interval == "sqrt":
            raise ValueError(
                "rrwkv with interval 'sqrt' must know its length: "
                "start from prefill, or set an integer"
            )
        zeros = torch.zeros_like(like)
        return MediumStream(zeros, zeros, 0, int(self.interval))

    def advance(self, h: Tensor, stream: MediumStream) -> tuple[MediumStream, bool]:
        """Read one position, (batch, width); return the state, and whether a segment ended."""
        segment_sum = stream.segment_sum + h
        position = stream.position + 1
        if position % stream.interval:
            return stream._replace(segment_sum=segment_sum, position=position), False

        medium = self.squeeze(segment_sum / stream.interval)
        zeros = torch.zeros_like(segment_sum)
        return MediumStream(zeros, medium, position, stream.interval), True

    def add(self, inputs: tuple[Tensor, ...], latest: Tensor) -> tuple[Tensor, ...]:
        """Add nu_c m(t) to each shifted input; all are (..., width)."""
        if not len(self.shares):
            return inputs
        pairs = zip(inputs, self.shares, strict=True)
        return tuple(torch.addcmul(x, share, latest) for x, share in pairs)


class MediumTimeMix(TimeMix):
    """RWKV's time-mix with mediums in its inputs if `in_inputs`; it does not look back at them.

    Its state is that of RWKV's time-mix, the mediums', and a memory for subclasses that look back.
    """

    gate: nn.Linear  # W_g, of subclasses that look back

    def __init__(
        self,
        width: int,
        layer: int,
        depth: int,
        interval: Interval,
        squeeze: bool,
        in_inputs: bool,
    ) -> None:
        super().__init__(width, layer, depth)
        self.mediums = Mediums(width, interval, squeeze, count=3 if in_inputs else 0)

    def prefill(self, h: Tensor) -> tuple[Tensor, Any]:
        mediums, stream = self.mediums.read(h)  # m_j
        latest = spread_segments(mediums, stream.interval, h.shape[1])  # m(t)
        inputs = self.mediums.add(self.token_shift(h, previous_inputs(h)), latest)  # x^c_t
        receptance, key, value = self.project(*inputs)

        average, wkv_state = wkv(self.decay.exp(), self.bonus, key, value)
        retrospect, memory = self.look_back(receptance, mediums, stream.interval)  # z(t)
        mixed = self.finish(h, receptance, average, retrospect)  # o_t
        return mixed, (TimeMixState(last_position(h), wkv_state), stream, memory)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Any:
        plain = super().initial_state(batch_size, device, dtype)
        stream = self.mediums.initial_stream(plain.last_input)
        return plain, stream, self.empty_memory(plain.last_input)

    def step(self, h: Tensor, state: Any) -> tuple[Tensor, Any]:
        plain, stream, memory = state
        inputs = self.mediums.add(self.token_shift(h, plain.last_input), stream.latest)  # x^c_t
        receptance, key, value = self.project(*inputs)

        average, wkv_state = wkv_step(self.decay.exp(), self.bonus, key, value, plain.wkv)
        retrospect = self.look_back_from(receptance, memory)  # z(t)
        mixed = self.finish(h, receptance, average, retrospect)  # o_t

        stream, has_new_medium = self.mediums.advance(h, stream)
        if has_new_medium:
            memory = self.remember(stream.latest, memory)
        return mixed, (TimeMixState(h, wkv_state), stream, memory)

    def finish(
        self, h: Tensor, receptance: Tensor, average: Tensor, retrospect: Tensor | None
    ) -> Tensor:
        """Return o_t from WKV's average and from z(t), if there is one: (..., width)."""
        if retrospect is not None:
            average = average + self.gate(h).sigmoid() * retrospect
        return self.output(receptance.sigmoid() * average)

    def look_back(self, query: Tensor, mediums: Tensor, interval: int) -> tuple[Any, Any]:
        """Return z of all positions, (batch, length, width), and the memory after the last one.

        query is (batch, length, width), mediums (batch, segments, width); each position sees the
        mediums of the segments that are finished before it.
        """
        return None, None

    def empty_memory(self, like: Tensor) -> Any:
        """Return the memory before the first medium; `like` is (batch, width)."""
        return None

    def look_back_from(self, query: Tensor, memory: Any) -> Tensor | None:
        """Return z of one position from the memory; query is (batch, width)."""
        return None

    def remember(self, medium: Tensor, memory: Any) -> Any:
        """Add one medium, (batch, width), to the memory."""
        return None


class RecurrentTimeMix(MediumTimeMix):
    """Looks back by WKV over the finished mediums.

    Its memory is the state of that WKV and its output after the latest medium, (batch, width).
    """

    def __init__(self, width: int, *arguments: Any) -> None:
        super().__init__(width, *arguments)
        self.gate = closed_gate(width)
        slow = torch.full((width,), -6.0)  # forgets e^-6 per segment, so that mediums last
        self.medium_decay = nn.Parameter(slow)
        self.medium_bonus = nn.Parameter(torch.zeros(width))

    def look_back(self, query: Tensor, mediums: Tensor, interval: int) -> tuple[Any, Any]:
        """Return the WKV of the finished mediums at every position, and its memory."""
        if not mediums.shape[1]:
            return torch.zeros_like(query), self.empty_memory(query[:, 0])
        key = self.key(mediums)
        value = self.value(mediums)
        averages, state = wkv(self.medium_decay.exp(), self.medium_bonus, key, value)
        retrospect = spread_segments(averages, interval, query.shape[1])
        return retrospect, (state, last_position(averages))

    def empty_memory(self, like: Tensor) -> Any:
        """Return the state of WKV before the first medium, and an output of zeros."""
        batch_size, width = like.shape
        return empty_state(batch_size, width, like.device), torch.zeros_like(like)

    def look_back_from(self, query: Tensor, memory: Any) -> Tensor:
        """Return WKV's output after the latest medium, (batch, width)."""
        _, average = memory
        return average

    def remember(self, medium: Tensor, memory: Any) -> Any:
        """Take one step of WKV with a medium, (batch, width)."""
        state, _ = memory
        decay = self.medium_decay.exp()
        key = self.key(medium)
        value = self.value(medium)
        average, state = wkv_step(decay, self.medium_bonus, key, value, state)
        return state, average


class AttentionTimeMix(MediumTimeMix):
    """Looks back by softmax attention to all finished mediums.

    Its memory is the keys and values of the mediums, (batch, segments, width) each.
    """

    def __init__(self, width: int, *arguments: Any) -> None:
        super().__init__(width, *arguments)
        self.gate = closed_gate(width)

    def look_back(self, query: Tensor, mediums: Tensor, interval: int) -> tuple[Any, Any]:
        """Return the attention of every position to its finished mediums, and its memory."""
        if not mediums.shape[1]:
            return torch.zeros_like(query), self.empty_memory(query[:, 0])
        key = self.key(mediums)
        value = self.value(mediums)

        # no medium is finished in the first segment, so its positions are left out of the attention
        position = torch.arange(interval, query.shape[1], device=query.device)
        segment = torch.arange(key.shape[1], device=query.device)
        is_finished = segment < (position // interval)[:, None]  # (positions, segments)
        attended = attend(query[:, interval:], key, value, is_finished)
        return pad(attended, (0, 0, interval, 0)), (key, value)

    def empty_memory(self, like: Tensor) -> Any:
        """Return no keys and no values, (batch, 0, width) each."""
        no_keys = like[:, None][:, :0]  # (batch, 0, width)
        return no_keys, no_keys

    def look_back_from(self, query: Tensor, memory: Any) -> Tensor:
        """Return the attention of one position to all keys, (batch, width)."""
        keys, values = memory
        if not keys.shape[1]:
            return torch.zeros_like(query)
        return attend(query[:, None], keys, values)[:, 0]

    def remember(self, medium: Tensor, memory: Any) -> Any:
        """Append the key and the value of a medium, (batch, width)."""
        keys, values = memory
        key = self.key(medium)[:, None]  # (batch, 1, width)
        value = self.value(medium)[:, None]
        return torch.cat([keys, key], 1), torch.cat([values, value], 1)


def closed_gate(width: int) -> nn.Linear:
    """Return W_g, zero at first, so that half of z(t) passes."""
    gate = nn.Linear(width, width, bias=False)
    nn.init.zeros_(gate.weight)
    return gate


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend with one head: (batch, positions, width) to (batch, segments, width)."""
    # fused kernels expect a dimension of heads
    query, key, value = query[:, None], key[:, None], value[:, None]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)[:, 0]


class MediumChannelMix(ChannelMix):
    """RWKV's channel-mix with mediums of its own input in its inputs.

    Its state is its last input, (batch, width), and the mediums'.
    """

    def __init__(
        self, width: int, layer: int, depth: int, interval: Interval, squeeze: bool
    ) -> None:
        super().__init__(width, layer, depth)
        self.mediums = Mediums(width, interval, squeeze, count=2)

    def prefill(self, y: Tensor) -> tuple[Tensor, Any]:
        mediums, stream = self.mediums.read(y)
        latest = spread_segments(mediums, stream.interval, y.shape[1])  # n(t)
        inputs = self.mediums.add(self.token_shift(y, previous_inputs(y)), latest)  # x^c_t
        return self.gated_layer(*inputs), (last_position(y), stream)

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Any:
        last_input = super().initial_state(batch_size, device, dtype)
        return last_input, self.mediums.initial_stream(last_input)

    def step(self, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        last_input, stream = state
        inputs = self.mediums.add(self.token_shift(y, last_input), stream.latest)  # x^c_t
        stream, _ = self.mediums.advance(y, stream)
        return self.gated_layer(*inputs), (y, stream)


RETROSPECTIONS = {
    "recurrent": RecurrentTimeMix,
    "attention": AttentionTimeMix,
    "none": MediumTimeMix,
}


@register_model("rrwkv", SPEC)
class RRWKVBlock(RWKVBlock):
    """RWKV's block, whose mixes see mediums as the options say.

    interval: tokens per segment; "sqrt" for the square root of the length, rounded up; "none" for
    plain RWKV-4. squeeze: weigh the channels of a medium by a gate; an extension of ours.
    time_mix, channel_mix: add mediums to the inputs of that mix. retrospection: "recurrent"
    (linear in length, constant state), "attention" (length^2 / interval) or "none". short_conv:
    whether a causal convolution of width 4 comes ahead of the time-mix.
    """

    def __init__(
        self,
        width: int,
        layer: int,
        depth: int,
        *,
        interval: Interval = 16,
        squeeze: bool = False,
        time_mix: bool = True,
        channel_mix: bool = True,
        retrospection: str = "recurrent",
        short_conv: bool = False,
    ) -> None:
        super().__init__(width, layer, depth)
        is_length = isinstance(interval, int) and not isinstance(interval, bool) and interval >= 1
        if not is_length and interval not in ("none", "sqrt"):
            raise ValueError(
                f"rrwkv interval {interval!r}: expected an integer of at least 1, 'sqrt' or 'none'"
            )
        if retrospection not in RETROSPECTIONS:
            raise ValueError(
                f"rrwkv retrospection {retrospection!r}: "
                f"expected one of {', '.join(RETROSPECTIONS)}"
            )

        has_mediums = interval != "none"
        if has_mediums and (time_mix or retrospection != "none"):
            time_mix_type = RETROSPECTIONS[retrospection]
            self.time_mix = time_mix_type(width, layer, depth, interval, squeeze, time_mix)
        if has_mediums and channel_mix:
            self.channel_mix = MediumChannelMix(width, layer, depth, interval, squeeze)
        if short_conv:
            self.time_mix = Convolved(width, self.time_mix)
