"""What a model is: a stack of blocks of one architecture between a shared embedding and a shared
head.

An architecture brings its block, registered where it is defined, once, by its own name. A
comparison then differs in the block alone. Keyword-only parameters of the block's constructor are
the model's options.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lookback.models.lean import normed, parts, product
from lookback.models.reading import DIRECTIONS, POOLINGS, pair_features, pool, reverse_valid

State = Any
"""What a block keeps between positions: tensors and numbers in tuples, lists and dicts."""

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def small_normal(weight: Tensor) -> None:
    """Normal with variance 2 / (5 width), where width is the last size (Nguyen and Salazar 2019,
    arXiv 1910.05895).
    """
    nn.init.normal_(weight, std=(2 / (5 * weight.shape[-1])) ** 0.5)


@dataclass(frozen=True)
class ArchitectureSpec:
    """What an architecture asks of the frame around its blocks and of the optimiser.

    `learning_rate_scale` multiplies the learning rate of the parameters whose last name it holds.
    An architecture that with `is_full_stack` has all its layers in one block, with the norm behind
    them and a method `drop` for the dropout.
    """

    embedding_norm: bool = False
    embedding_init: Callable[[Tensor], None] = small_normal
    head_init: Callable[[Tensor], None] = small_normal
    learning_rate_scale: Mapping[str, float] = field(default_factory=dict)
    is_full_stack: bool = False


class SequenceModel(nn.Module):
    """Embedding, blocks, norm and head.

    Without `classes` the head answers at every position over the vocabulary; with them, once a
    sequence, on its last valid position or the mean of all (`pooling`). Read in both directions, a
    sequence goes through a second stack back to front too, and what is kept of the two is added. Of
    two `documents`, read by the same blocks, the head sees both, their product and their
    difference. In training, a share `dropout` of what each layer adds is left out.
    """

    def __init__(
        self,
        block: type[nn.Module],
        spec: ArchitectureSpec,
        vocabulary: int,
        classes: int | None,
        width: int,
        depth: int,
        options: Mapping[str, Any],
        pooling: str = "last",
        direction: str = "causal",
        sequences_per_example: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_reading(classes, pooling, direction, sequences_per_example)
        self.spec, self.classes = spec, classes
        self.pooling, self.sequences_per_example, self.dropout = (
            pooling,
            sequences_per_example,
            nn.Dropout(dropout),
        )
        self.embedding = nn.Embedding(vocabulary, width)
        self.embedding_norm = nn.LayerNorm(width) if spec.embedding_norm else nn.Identity()
        layers = 1 if spec.is_full_stack else depth
        self.blocks = nn.ModuleList(
            block(width, layer, depth, **options) for layer in range(layers)
        )
        self.backward_blocks = nn.ModuleList(
            block(width, layer, depth, **options)
            for layer in range(layers if direction == "bidirectional" else 0)
        )
        self.norm = nn.Identity() if spec.is_full_stack else nn.LayerNorm(width)
        self.head = nn.Linear(
            width if sequences_per_example == 1 else 4 * width, classes or vocabulary, bias=False
        )
        spec.embedding_init(self.embedding.weight)
        spec.head_init(self.head.weight)
        if spec.is_full_stack and dropout:
            for stack in (*self.blocks, *self.backward_blocks):
                stack.drop(self.dropout)

    def forward(
        self, tokens: Tensor, asked: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """Answers to all positions at once.

        Args:
            tokens: (batch, length) int64; (batch, 2, length) for two documents.
            asked: flat indices into (batch, length); the head then answers at these alone.
            lengths: (batch,) or (batch, 2) valid tokens, for models with `classes`; all, when None.

        Returns:
            (batch, length, vocabulary) logits; (asked, vocabulary) with `asked`; (batch, classes)
            with classes.
        """
        if self.classes:
            return self.head(self.features(tokens, lengths))
        x = self.run_blocks(self.blocks, self.embed(tokens))  # (batch, length, width)
        return self.logits(x if asked is None else x.flatten(0, 1)[asked])

    def features(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """What the head sees of each sequence, (batch, width), or of each pair of documents,
        (batch, 4 width).
        """
        if self.sequences_per_example > 1:
            lengths = None if lengths is None else lengths.flatten()
        x = self.embed(tokens.flatten(0, -2))  # (sequences, length, width)
        features = self.encode(self.blocks, x, lengths)
        if len(self.backward_blocks):
            features = features + self.encode(
                self.backward_blocks, reverse_valid(x, lengths), lengths
            )
        return (
            features
            if self.sequences_per_example == 1
            else pair_features(features.unflatten(0, (-1, self.sequences_per_example)))
        )

    def encode(self, blocks: nn.ModuleList, x: Tensor, lengths: Tensor | None) -> Tensor:
        """What a stack makes of a sequence, (sequences, length, width) -> (sequences, width)."""
        return pool(self.norm(self.run_blocks(blocks, x)), lengths, self.pooling)

    def run_blocks(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        """A stack of blocks, (batch, length, width) -> same; with dropout in training."""
        dropping = self.training and self.dropout.p and not self.spec.is_full_stack
        for block in blocks:
            x = x + self.dropout(block(x) - x) if dropping else block(x)
        return x

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (...,) -> what the first block reads (..., width)."""
        return self.embedding_norm(self.embedding(tokens))

    def logits(self, x: Tensor) -> Tensor:
        """What the last block gives (..., width) -> logits (..., vocabulary or classes)."""
        return self.head(self.norm(x))

    def initial_state(self, batch_size: int) -> list[State]:
        """The state of every block before the first token."""
        self._check_streams()
        weight = self.embedding.weight
        return [
            block.initial_state(batch_size, weight.device, weight.dtype) for block in self.blocks
        ]  # type: ignore[operator]

    def step(self, token: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """One position: tokens (batch,) -> logits (batch, vocabulary or classes) and the next
        state.

        A state is used once: blocks may write into it.
        """
        layers, following = parts(self), []
        x = self.embed(token)
        for block, before in zip(layers["blocks"], state, strict=True):
            x, after = block.step(x, before)
            following.append(after)
        return product(
            layers["head"], x if self.spec.is_full_stack else normed(layers["norm"], x)
        ), following

    def prefill(self, tokens: Tensor) -> tuple[Tensor, list[State]]:
        """Read (batch, length) tokens at once: logits after the last one, and the state to go on
        from.

        Blocks that have a `prefill(x) -> (x, state)` read all positions in parallel; others step
        through them.
        """
        self._check_streams()
        x, state = self.embed(tokens), []
        for block in self.blocks:
            # type: ignore[operator]
            x, after = block.prefill(x) if hasattr(block, "prefill") else step_through(block, x)
            state.append(after)
        return self.logits(x[:, -1]), state

    def _check_streams(self) -> None:
        if self.pooling != "last" or len(self.backward_blocks) or self.sequences_per_example > 1:
            raise ValueError(
                "this model answers on whole sequences (pooling 'mean', direction 'bidirectional' or pairs of "
                "documents), not position by position"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for an optimiser: `learning_rate_scale` by the architecture, `decay` for matrices
        only.
        """
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            scale = self.spec.learning_rate_scale.get(name.rpartition(".")[2], 1.0)
            decay = parameter.ndim >= 2 and not getattr(parameter, "_no_weight_decay", False)
            groups.setdefault((scale, decay), []).append(parameter)
        return [
            {"params": p, "learning_rate_scale": scale, "decay": decay}
            for (scale, decay), p in groups.items()
        ]


def _check_reading(
    classes: int | None, pooling: str, direction: str, sequences_per_example: int
) -> None:
    if pooling not in POOLINGS or direction not in DIRECTIONS:
        raise ValueError(
            f"pooling {pooling!r} and direction {direction!r}: expected one of {', '.join(POOLINGS)}, and one of "
            f"{', '.join(DIRECTIONS)}"
        )
    if classes is None and (pooling, direction, sequences_per_example) != ("last", "causal", 1):
        raise ValueError(
            "pooling, direction and documents are for tasks of one label a sequence: here positions are asked"
        )


def step_through(block: Any, x: Tensor) -> tuple[Tensor, State]:
    """What a block says, position by position, to (batch, length, width), and its state behind the
    last.
    """
    state, outputs = block.initial_state(x.shape[0], x.device, x.dtype), []
    for position in x.unbind(1):
        y, state = block.step(position, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def state_bytes(state: State) -> int:
    """Bytes of memory that a state keeps: what its tensors are views of counts whole, and once."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def parameter_count(model: nn.Module) -> int:
    """Numbers in all parameters, embedding and head included."""
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class _Registration:
    block: type[nn.Module]
    spec: ArchitectureSpec
    defaults: dict[str, Any]


_MODELS: dict[str, _Registration] = {}
Found = tuple[type[nn.Module], ArchitectureSpec, dict[str, Any]]
_FAMILIES: dict[str, Callable[[str], Found]] = {}
Block = TypeVar("Block", bound=type[nn.Module])


def register_model(name: str, spec: ArchitectureSpec | None = None) -> Callable[[Block], Block]:
    """Register a block under a name; raises ValueError when the name is malformed or taken, or this
    is no block.

    A block is an nn.Module of a layer, made as `block(width, layer, depth, **options)`:

        forward(x)                               (batch, length, width) -> same, all positions at once
        initial_state(batch_size, device, dtype) its state before the first position
        step(x, state)                           (batch, width) -> same and the next state: one position
        prefill(x)                               `forward` and the state behind it; where there is none, it is stepped

    `forward` over T positions equals T calls of `step`, and a later position changes nothing
    earlier.
    """

    def decorate(block: Block) -> Block:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"model name {name!r}: expected lower-case letters, digits, '_', '.', '-', 64 at most"
            )
        if name in _MODELS:
            raise ValueError(
                f"model {name!r} is already registered by {_MODELS[name].block.__module__}"
            )
        if not (inspect.isclass(block) and issubclass(block, nn.Module)):
            raise ValueError(
                f"model {name!r}: expected a block, a subclass of torch.nn.Module, not {block!r}"
            )
        try:
            inspect.signature(block).bind(64, 0, 1)
        except TypeError as error:
            wanted = "expected a block made as block(width, layer, depth), options by keyword and with defaults"
            raise ValueError(f"model {name!r}: {wanted}: {error}") from error
        options = inspect.signature(block.__init__).parameters.values()
        defaults = {p.name: p.default for p in options if p.kind is p.KEYWORD_ONLY}
        _MODELS[name] = _Registration(block, spec or ArchitectureSpec(), defaults)
        return block

    return decorate


def register_family(
    prefix: str, summary: str
) -> Callable[[Callable[[str], Found]], Callable[[str], Found]]:
    """Register a function that finds the models called PREFIX:NAME: block, spec and defaults of a
    NAME.

    It raises ValueError for a NAME it does not have. `summary` is a line for `lookback list`.
    """

    def decorate(find: Callable[[str], Found]) -> Callable[[str], Found]:
        if prefix in _FAMILIES:
            raise ValueError(
                f"models {prefix}:NAME are already registered by {_FAMILIES[prefix].__module__}"
            )
        _FAMILIES[prefix] = find
        return find

    return decorate


def model_names() -> list[str]:
    """Names of all registered models, sorted; those of families are not among them."""
    package = importlib.import_module(__package__ or "models")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    return sorted(_MODELS)


def _registration(name: str) -> _Registration:
    """What is registered under a name; raises ValueError that suggests near names."""
    prefix, colon, rest = name.partition(":")
    names = model_names()
    if colon and prefix in _FAMILIES and NAME.fullmatch(rest):
        return _Registration(*_FAMILIES[prefix](rest))
    if name not in names:
        families = [f"{family}:NAME" for family in sorted(_FAMILIES)]
        near = difflib.get_close_matches(name, names) or [*sorted(names), *families]
        raise ValueError(f"unknown model {name!r}: expected {' or '.join(near)}")
    return _MODELS[name]


def model_options(name: str) -> dict[str, Any]:
    """The options of a model and their defaults; raises ValueError that suggests near names."""
    return dict(_registration(name).defaults)


def registered_block(name: str) -> type[nn.Module]:
    """The block behind a name; raises ValueError as `model_options` does."""
    return _registration(name).block


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
    """A model with fresh weights, drawn from torch's global generator; `SequenceModel` says what
    the arguments do.

    Raises ValueError on an unknown name or option, and where the architecture cannot have this
    width.
    """
    found = _registration(name)
    for unknown in sorted(set(options) - set(found.defaults)):
        raise ValueError(
            f"model {name!r} has no option {unknown!r}: {_known(unknown, found.defaults)}"
        )
    return SequenceModel(
        found.block,
        found.spec,
        vocabulary,
        classes,
        width,
        depth,
        options,
        pooling,
        direction,
        sequences_per_example,
        dropout,
    )


FEW_OPTIONS = 16  # that a line can name


def _known(unknown: str, options: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(unknown, options)
    if near and len(options) > FEW_OPTIONS:
        return f"of its {len(options)}, nearest are {', '.join(near)}"
    return f"its options are {', '.join(sorted(options)) or 'none'}"
