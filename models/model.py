"""The frame around every architecture, and the registry of architectures.

It exists so that a comparison differs in the architecture alone: all models share one embedding,
one head, one way to read a sequence and one way to be built by name. An architecture brings its
block, registered once, where it is defined. The keyword-only parameters of the block's constructor
are the model's options.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

State = Any
"""What a block remembers between positions: tensors and numbers in tuples, lists and dicts."""

SUGGESTIONS = 12  # most names that an error lists
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def small_normal(weight: Tensor) -> None:
    """Fill a weight from a normal distribution of variance 2 / (5 width), width its last size.

    Nguyen and Salazar 2019 (arXiv 1910.05895).
    """
    width = weight.shape[-1]
    nn.init.normal_(weight, std=(2 / (5 * width)) ** 0.5)


@dataclass(frozen=True)
class ArchitectureSpec:
    """What an architecture declares to the frame around its blocks, and to the optimizer.

    Attributes:
        embedding_norm: put a LayerNorm behind the embedding.
        embedding_init: initialises the embedding's weight, (vocabulary, width), in place.
        head_init: initialises the head's weight, (outputs, inputs), in place.
        norm: makes the norm ahead of the head, from its width.
        learning_rate_scale: factors on the learning rate, by the last name of a parameter.
        no_weight_decay: last names of matrices that weight decay leaves alone.
        is_full_stack: one block holds all layers and the last norm.
        has_side_input: a second tensor goes from layer to layer beside x, None before the first.
            The blocks' methods take it last, and return it behind y: `forward(x, side)` returns y
            and side, `prefill(x, side)` and `step(x, state, side)` return y, side and the state.
        parts: other models whose blocks this one is made of.
        needs_gpu: its kernels do not run on a CPU.
    """

    embedding_norm: bool = False
    embedding_init: Callable[[Tensor], None] = small_normal
    head_init: Callable[[Tensor], None] = small_normal
    norm: Callable[[int], nn.Module] = nn.LayerNorm
    learning_rate_scale: Mapping[str, float] = field(default_factory=dict)
    no_weight_decay: frozenset[str] = frozenset()
    is_full_stack: bool = False
    has_side_input: bool = False
    parts: tuple[str, ...] = ()
    needs_gpu: bool = False


Spec = ArchitectureSpec | Callable[..., ArchitectureSpec]  # or a function of the model's options


@dataclass(frozen=True)
class Architecture:
    """A registered architecture: its block, its declarations, and its options' defaults."""

    block: type[nn.Module]
    spec: Spec
    defaults: Mapping[str, Any]

    def spec_with(self, options: Mapping[str, Any]) -> ArchitectureSpec:
        """Return the declarations of the model with these options."""
        return self.spec if isinstance(self.spec, ArchitectureSpec) else self.spec(**options)

    def checked(self, options: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        """Return the options; raises ValueError if the model of this name lacks one of them."""
        for option in sorted(set(options) - set(self.defaults)):
            names = sorted(self.defaults)
            similar = difflib.get_close_matches(option, names) or names or ["none"]
            raise ValueError(
                f"model {name!r} has no option {option!r}: expected {' or '.join(similar)}"
            )
        return options


class SequenceModel(nn.Module):
    """Embedding, blocks, a norm and a head, which predicts over the vocabulary at every position.

    In training, the share `dropout` of what each layer adds to its input is dropped.
    `head_shape` (inputs, outputs) and `bidirectional`, which adds a second stack of blocks, are
    for `SequenceClassifier`.
    """

    def __init__(
        self,
        block: type[nn.Module],
        spec: ArchitectureSpec,
        vocabulary: int,
        width: int,
        depth: int,
        options: Mapping[str, Any],
        dropout: float = 0.0,
        *,
        head_shape: tuple[int, int] | None = None,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        if spec.is_full_stack and dropout:
            raise ValueError(
                f"dropout {dropout}: expected 0, because this model holds all layers in one block; "
                "dropout between them can only be an option of its own"
            )
        self.spec = spec
        self.dropout = nn.Dropout(dropout)

        def make_blocks() -> nn.ModuleList:
            layers = 1 if spec.is_full_stack else depth
            return nn.ModuleList(block(width, layer, depth, **options) for layer in range(layers))

        # The order of these lines is the order of the random draws, which scores depend on.
        self.embedding = nn.Embedding(vocabulary, width)
        self.embedding_norm = nn.LayerNorm(width) if spec.embedding_norm else nn.Identity()
        self.blocks = make_blocks()
        self.backward_blocks = make_blocks() if bidirectional else nn.ModuleList()
        self.norm = nn.Identity() if spec.is_full_stack else spec.norm(width)
        self.head = nn.Linear(*(head_shape or (width, vocabulary)), bias=False)
        spec.embedding_init(self.embedding.weight)
        spec.head_init(self.head.weight)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the logits of all positions, or of some, reading the sequences in parallel.

        Args:
            tokens: (batch, length) int64.
            positions: (n,) indices into the flattened (batch * length); all positions if None.

        Returns:
            (batch, length, vocabulary); with `positions`, (n, vocabulary).
        """
        x = self.run_blocks(self.blocks, self.embed(tokens))  # (batch, length, width)
        if positions is not None:
            x = x.flatten(0, 1)[positions]
        return self.logits(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the input of the first block: (...,) int64 -> (..., width)."""
        return self.embedding_norm(self.embedding(tokens))

    def run_blocks(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        """Run a stack of blocks, in training with dropout: (batch, length, width) -> same."""
        drops = self.training and self.dropout.p > 0
        side = None
        for block in blocks:
            if self.spec.has_side_input:
                y, side = block(x, side)
            else:
                y = block(x)
            x = x + self.dropout(y - x) if drops else y
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Apply the last norm and the head: (..., width) -> (..., outputs)."""
        return self.head(self.norm(x))

    def initial_state(self, batch_size: int) -> list[State]:
        """Return the state of every block before the first token."""
        weight = self.embedding.weight
        states = []
        block: Any  # torch types the attributes of a module as tensors
        for block in self.blocks:
            states.append(block.initial_state(batch_size, weight.device, weight.dtype))
        return states

    def step(self, token: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """Read one token of each sequence: (batch,) -> logits (batch, outputs) and the next state.

        A state can be used only once, because blocks may overwrite it.
        """
        x = self.embed(token)
        side = None
        next_state = []
        block: Any
        for block, block_state in zip(self.blocks, state, strict=True):
            if self.spec.has_side_input:
                x, side, block_state = block.step(x, block_state, side)
            else:
                x, block_state = block.step(x, block_state)
            next_state.append(block_state)
        return self.logits(x), next_state

    def prefill(self, tokens: Tensor) -> tuple[Tensor, list[State]]:
        """Read a prompt: (batch, length) -> logits after its last token, and the state.

        Blocks without a `prefill(x) -> (y, state)` of their own are stepped through the prompt.
        """
        x = self.embed(tokens)
        side = None
        state = []
        block: Any
        for block in self.blocks:
            if self.spec.has_side_input:
                x, side, block_state = block.prefill(x, side)
            elif hasattr(block, "prefill"):
                x, block_state = block.prefill(x)
            else:
                x, block_state = step_through(block, x)
            state.append(block_state)
        return self.logits(x[:, -1]), state

    def check_length(self, length: int) -> None:
        """Raise ValueError if a block says that it cannot read so many positions."""
        block: Any
        for block in self.blocks:
            if hasattr(block, "check_length"):
                block.check_length(length)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups.

        Each group has its `params`, its `learning_rate_scale`, and `decay`, whether weight decay
        applies: to matrices only, and not to those that their library marks as exempt.
        """
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            last_name = name.rpartition(".")[2]
            scale = self.spec.learning_rate_scale.get(last_name, 1.0)
            is_exempt = last_name in self.spec.no_weight_decay
            is_exempt = is_exempt or getattr(parameter, "_no_weight_decay", False)
            decay = parameter.ndim >= 2 and not is_exempt
            groups.setdefault((scale, decay), []).append(parameter)

        return [
            {"params": parameters, "learning_rate_scale": scale, "decay": decay}
            for (scale, decay), parameters in groups.items()
        ]


def step_through(block: Any, x: Tensor, state: State = None) -> tuple[Tensor, State]:
    """Step a block through x, (batch, length, width); return its outputs and its last state.

    Without a state, x is the beginning of the sequences.
    """
    if state is None:
        state = block.initial_state(x.shape[0], x.device, x.dtype)
    outputs = []
    for position in x.unbind(1):
        y, state = block.step(position, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def state_bytes(state: State) -> int:
    """Return the bytes of memory that a state keeps alive.

    A view counts with its whole storage, and a shared storage counts once.
    """
    storages = {tensor.untyped_storage() for tensor in tensors_in(state, set())}
    return sum(storage.nbytes() for storage in storages)


def tensors_in(value: Any, visited: set[int]) -> Iterator[Tensor]:
    """Yield every tensor in a value's items and attributes, such as those of a library's cache.

    `visited` holds the ids of the values that have been searched.
    """
    if id(value) in visited or isinstance(value, nn.Module | type):
        return
    visited.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return

    contents = list(getattr(value, "__dict__", {}).values())
    if isinstance(value, Mapping):
        contents.extend(value.values())
    elif isinstance(value, list | tuple | set):
        contents.extend(value)
    for content in contents:
        yield from tensors_in(content, visited)


def parameter_count(model: nn.Module) -> int:
    """Return the number of weights, those of embedding and head included."""
    return sum(parameter.numel() for parameter in model.parameters())


# The registry

Family = Callable[[str], Architecture]
Block = TypeVar("Block", bound=type[nn.Module])

_architectures: dict[str, Architecture] = {}
_families: dict[str, Family] = {}


def register_model(name: str, spec: Spec | None = None) -> Callable[[Block], Block]:
    """Register a block under a name.

    A block is an nn.Module with the weights of one layer, made as
    `block(width, layer, depth, **options)`, layer counted from 0. Its methods:

        forward(x)                 (batch, length, width) -> same, all positions in parallel
        initial_state(batch_size, device, dtype)
                                   the state before the first position
        step(x, state)             one position: (batch, width) -> same, and the next state
        prefill(x)                 optional: what `forward` returns, and the state after x
        check_length(length)       optional: raises ValueError for more positions than it can read

    `forward` over T positions must equal T calls of `step`, and a later position must not change
    the output of an earlier one.

    Raises ValueError if the name is malformed or taken, or if the class is not a block.
    """

    def decorate(block: Block) -> Block:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"model name {name!r}: expected at most 64 lower-case letters, digits, "
                "'_', '.' and '-'"
            )
        if name in _architectures:
            owner = _architectures[name].block.__module__
            raise ValueError(f"model {name!r} is already registered by {owner}")

        defaults = _option_defaults(name, block)
        _architectures[name] = Architecture(block, spec or ArchitectureSpec(), defaults)
        return block

    return decorate


def _option_defaults(name: str, block: type[nn.Module]) -> dict[str, Any]:
    """Return the options of a block with their defaults; raises ValueError if it is no block."""
    if not (inspect.isclass(block) and issubclass(block, nn.Module)):
        raise ValueError(
            f"model {name!r}: expected a block, a subclass of torch.nn.Module, not {block!r}"
        )
    try:
        inspect.signature(block).bind(64, 0, 1)
    except TypeError as error:
        raise ValueError(
            f"model {name!r}: expected a block made as block(width, layer, depth), "
            f"options by keyword and with defaults: {error}"
        ) from error

    parameters = inspect.signature(block.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def register_family(prefix: str, summary: str) -> Callable[[Family], Family]:
    """Register a function that finds the architecture NAME of the models called PREFIX:NAME.

    The function raises ValueError for a NAME it does not know. `lookback list` shows the summary.
    """

    def decorate(find_architecture: Family) -> Family:
        if prefix in _families:
            owner = _families[prefix].__module__
            raise ValueError(f"models {prefix}:NAME are already registered by {owner}")
        _families[prefix] = find_architecture
        return find_architecture

    return decorate


def model_names() -> list[str]:
    """Return the sorted names of all registered models, without those of families."""
    _register_ours()
    return sorted(_architectures)


@functools.cache
def _register_ours() -> None:
    """Import the modules of this package, which register their models."""
    package = importlib.import_module("lookback.models")
    for module in pkgutil.iter_modules(package.__path__, "lookback.models."):
        importlib.import_module(module.name)


def find_architecture(name: str) -> Architecture:
    """Return the architecture of this name; raises ValueError that suggests similar names."""
    prefix, _, rest = name.partition(":")
    names = model_names()
    if name in names:
        return _architectures[name]
    if prefix in _families and NAME.fullmatch(rest):
        return _families[prefix](rest)

    families = [f"{family}:NAME" for family in sorted(_families)]
    raise unknown_model(name, [*families, *names])


def unknown_model(name: str, names: Iterable[str]) -> ValueError:
    """Return the error for an unknown name; it suggests similar names, or else the first few."""
    names = list(names)
    similar = difflib.get_close_matches(name, names) or names
    more = f" or one of {len(similar) - SUGGESTIONS} others" if len(similar) > SUGGESTIONS else ""
    shown = " or ".join(similar[:SUGGESTIONS])
    return ValueError(
        f"unknown model {name!r}: expected {shown}{more}, or one that a --plugin file registers"
    )


def model_options(name: str) -> dict[str, Any]:
    """Return the options of a model with their defaults; raises ValueError for an unknown name."""
    return dict(find_architecture(name).defaults)


def build_model(
    name: str,
    vocabulary: int,
    classes: int | None = None,
    *,
    width: int,
    depth: int,
    pooling: str = "last",
    direction: str = "causal",
    sequences_per_example: int = 1,
    dropout: float = 0.0,
    **options: Any,
) -> SequenceModel:
    """Build a model with fresh weights, drawn from torch's global generator.

    With `classes` it is a `SequenceClassifier`, which has one label per example; `pooling`,
    `direction` and `sequences_per_example` are for classifiers only.

    Raises ValueError for an unknown name or option, for settings that a model without classes
    cannot have, and for a width that the architecture cannot have.
    """
    from lookback.models.classifier import SequenceClassifier  # that module imports this one

    architecture = find_architecture(name)
    spec = architecture.spec_with(architecture.checked(options, name))
    block = architecture.block
    if classes is not None:
        return SequenceClassifier(
            block,
            spec,
            vocabulary,
            classes,
            width,
            depth,
            options,
            dropout,
            pooling=pooling,
            direction=direction,
            sequences_per_example=sequences_per_example,
        )
    if (pooling, direction, sequences_per_example) != ("last", "causal", 1):
        raise ValueError(
            "pooling, direction and pairs of sequences are for tasks with one label per example: "
            "this task asks at positions"
        )
    return SequenceModel(block, spec, vocabulary, width, depth, options, dropout)
