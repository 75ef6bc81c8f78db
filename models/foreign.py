"""Causal language models of other libraries, with fresh weights, as architectures of this project.

`hf:TYPE` is a model of transformers and `fla:TYPE` one of flash-linear-attention, where TYPE is the
library's own `model_type`. Such a model is one block that holds all layers and the last norm; it
runs between our embedding and our head, so that vocabulary, pooling, loss and trainer are those of
every model. Nothing is downloaded. Sizes follow width and depth in the proportions of the type's
own defaults (`configuration_fields`); every field of its configuration is an option of the model.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from lookback.models.contract import POSITIONS, TOLERANCE, differs, is_causal
from lookback.models.model import Architecture, ArchitectureSpec, register_family

# What libraries call their cache, as an argument of `forward` and in its output.
CACHE_NAMES = ("past_key_values", "cache_params", "state")

# Fields that the frame decides: width, depth and vocabulary.
FRAME_FIELDS = ("hidden_size", "num_hidden_layers", "vocab_size")

# Fields that every configuration has and that are no options of an architecture.
COMMON_FIELDS = (
    "transformers_version",
    "architectures",
    "model_type",
    "id2label",
    "label2id",
    "problem_type",
    "torch_dtype",
    "dtype",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
    "use_cache",
    "is_encoder_decoder",
    "is_decoder",
    "tie_word_embeddings",
    "tie_encoder_decoder",
    "chunk_size_feed_forward",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "add_cross_attention",
)

# RWKV of transformers divides its weights in place every few layers, a trick for float16.
FIXED_FIELDS: Mapping[str, Mapping[str, Any]] = {"hf:rwkv": {"rescale_every": 0}}

MESSAGE_LENGTH = 300  # characters of a library's error that a message repeats


class LibraryCache:
    """A library's cache, in whatever object the library has for it; None before the first token.

    It is a pytree node whose leaves are the cache's tensors, so that its memory can be measured.
    """

    def __init__(self, content: Any) -> None:
        self.content = content


def tensors_in(value: Any, visited: set[int]) -> Iterator[Tensor]:
    """Yield every tensor that an object holds in containers and attributes, each once."""
    if id(value) in visited or isinstance(value, nn.Module | type):
        return
    visited.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return

    contents = [*getattr(value, "__dict__", {}).values()]
    if isinstance(value, Mapping):
        contents.extend(value.values())
    elif isinstance(value, list | tuple | set):
        contents.extend(value)
    for content in contents:
        yield from tensors_in(content, visited)


register_pytree_node(
    LibraryCache,
    lambda library_cache: (list(tensors_in(library_cache.content, set())), library_cache),
    lambda leaves, library_cache: library_cache,
)

CacheState = tuple[LibraryCache, int]  # the cache and the number of positions it has read


class LibraryStack(nn.Module):
    """All layers of a library's model as one block; its options are configuration fields."""

    name: ClassVar[str]
    configuration: ClassVar[Any]
    language_model: ClassVar[Any]

    def __init__(self, width: int, layer: int, depth: int, **options: Any) -> None:
        super().__init__()
        self.width = width
        try:
            fields = configuration_fields(self.name, self.configuration, width, depth, options)
            config = self.configuration(**fields)
            language_model = self.language_model(config)
        except Exception as error:
            raise ValueError(
                f"model {self.name!r} cannot have width {width}, depth {depth} and "
                f"{options or 'no options'}: {_one_line(error)}"
            ) from error

        self.stack: Any = language_model.base_model
        if self.stack is language_model:  # some types do not declare their base model
            self.stack = language_model.model
        self.stack.set_input_embeddings(nn.Identity())  # ours comes before it

        parameters = inspect.signature(self.stack.forward).parameters
        self.cache_name = next((name for name in CACHE_NAMES if name in parameters), None)
        self.has_cache_switch = "use_cache" in parameters
        self.max_length = _max_length(self.stack, config)
        self.checks: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:  # (batch, length, width) -> same
        self._check_length(x.shape[1])
        self._check_once(
            lambda x: is_causal(self.read, x, TOLERANCE),
            "is not causal: later positions change the outputs of earlier ones",
        )
        return self.read(x)

    def read(self, x: Tensor) -> Tensor:
        """Read all positions in parallel without a cache, (batch, length, width) -> same."""
        switch = {"use_cache": False} if self.has_cache_switch else {}
        return self.stack(inputs_embeds=x, return_dict=True, **switch)[0]

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> CacheState:
        """Return an empty state; the library makes its cache when it reads the first token."""
        if self.cache_name is None or not self.has_cache_switch:
            raise ValueError(f"model {self.name!r} keeps no state: it only reads whole sequences")
        self._check_once(
            self._steps_like_forward,
            "keeps no state to trust: token by token it returns other outputs than in parallel",
        )
        return LibraryCache(None), 0

    def prefill(self, x: Tensor) -> tuple[Tensor, CacheState]:
        return self.read_on(x, self.initial_state(len(x), x.device, x.dtype))

    def step(self, x: Tensor, state: CacheState) -> tuple[Tensor, CacheState]:
        y, state = self.read_on(x[:, None], state)
        return y[:, 0], state

    def read_on(self, x: Tensor, state: CacheState) -> tuple[Tensor, CacheState]:
        """Read (batch, length, width) after the positions that the state has seen."""
        library_cache, position = state
        length = position + x.shape[1]
        self._check_length(length)

        cache_argument = {str(self.cache_name): library_cache.content}
        output = self.stack(inputs_embeds=x, return_dict=True, use_cache=True, **cache_argument)
        y = output[0]
        if y.shape != x.shape:
            raise ValueError(
                f"model {self.name!r} reads {tuple(x.shape)} and returns {tuple(y.shape)}: "
                "its library fails to read several sequences token by token; "
                "a batch of one sequence may do"
            )
        return y, (LibraryCache(output[self.cache_name]), length)

    def add_dropout(self, dropout: nn.Dropout) -> None:
        """Apply the dropout to what each layer adds to its input, in training."""
        lists = [module for module in self.stack.modules() if isinstance(module, nn.ModuleList)]
        depth = self.stack.config.num_hidden_layers
        layers = next((layers for layers in lists if len(layers) == depth), None)
        if layers is None:
            raise ValueError(
                f"model {self.name!r} does not show its layers: "
                "the only dropout it can have is that of its options"
            )

        def drop(layer: nn.Module, arguments: Any, keywords: Any, output: Any) -> Any:
            if not (dropout.training and layer.training):
                return output
            x = arguments[0] if arguments else keywords["hidden_states"]
            if isinstance(output, Tensor):
                return x + dropout(output - x)
            return (x + dropout(output[0] - x), *output[1:])

        for layer in layers:
            layer.register_forward_hook(drop, with_kwargs=True)

    def _check_length(self, length: int) -> None:
        if self.max_length is not None and length > self.max_length:
            option = _field_name(self.configuration, "max_position_embeddings")
            raise ValueError(
                f"model {self.name!r} knows {self.max_length} positions, not {length}: "
                f"its option {option!r} sets their number"
            )

    def _check_once(self, check: Callable[[Tensor], bool], problem: str) -> None:
        """Check the model on a few positions before its first use, and raise if it fails.

        The libraries have more models than anybody tests. The check's inputs are as small as
        freshly drawn embeddings, so that what is added to them, such as positions, matters.
        """
        weight = next(self.parameters())
        # fake and meta tensors hold no numbers, and a graph that is being compiled needs no check
        has_numbers = type(weight) is nn.Parameter and not weight.is_meta
        if problem in self.checks or torch.compiler.is_compiling() or not has_numbers:
            return

        self.checks.add(problem)
        was_training = self.training
        self.eval()
        try:
            length = min(POSITIONS, self.max_length or POSITIONS)
            wave = 0.02 * torch.arange(length * self.width, device=weight.device).cos()
            with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
                is_right = check(wave.to(weight.dtype).view(1, length, self.width))
        except Exception as error:
            message = f"model {self.name!r} does not run on this machine: {_one_line(error)}"
            raise RuntimeError(message) from error
        finally:
            self.train(was_training)
        if not is_right:
            raise ValueError(f"model {self.name!r} {problem}")

    def _steps_like_forward(self, x: Tensor) -> bool:
        state = LibraryCache(None), 0
        outputs = []
        half = x.shape[1] // 2
        for part in (x[:, :half], *x[:, half:].split(1, dim=1)):
            y, state = self.read_on(part, state)
            outputs.append(y)
        return not differs(torch.cat(outputs, 1), self.read(x), TOLERANCE)


def _one_line(error: Exception) -> str:
    words = (str(error) or type(error).__name__).split()
    return " ".join(words)[:MESSAGE_LENGTH]


def _max_length(stack: nn.Module, config: Any) -> int | None:
    """Return the positions that a stack has a table for, learned or not; None without a table."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None

    tables = [module.weight for module in stack.modules() if isinstance(module, nn.Embedding)]
    tables += [buffer for buffer in stack.buffers() if buffer.ndim > 1]
    for table in tables:
        # some tables have a row or two more, for padding
        if any(positions <= size <= positions + 2 for size in table.shape):
            return positions
    return None


# Sizes


def configuration_fields(
    name: str, configuration: Any, width: int, depth: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a type's configuration for a width and a depth.

    Heads are 64 wide, as those of our Transformer. Inner widths keep their default proportion to
    the width, and the numbers of key-value heads and groups theirs to the number of heads. Dropout
    is 0, and the vocabulary as small as possible, because the embedding is ours.
    """
    standard = configuration()
    if not hasattr(standard, "num_hidden_layers") or not isinstance(
        getattr(standard, "hidden_size", None), int
    ):
        raise ValueError("its configuration has no hidden_size and num_hidden_layers of its own")
    if standard.is_encoder_decoder or configuration.sub_configs:
        raise ValueError("it is made of several models: expected one that reads text alone")

    chosen = {_field_name(configuration, option): value for option, value in options.items()}
    defaults = _constructor_defaults(configuration)
    fields = {
        _field_name(configuration, "hidden_size"): width,
        _field_name(configuration, "num_hidden_layers"): depth,
        "vocab_size": 2,
        **FIXED_FIELDS.get(name, {}),
    }
    if "is_decoder" in defaults:
        fields["is_decoder"] = True

    growth = width / standard.hidden_size
    for field, default in defaults.items():
        if _is_dropout(field, default):
            fields[field] = 0.0
        elif isinstance(default, int) and field.endswith(("intermediate_size", "ffn_dim")):
            fields[field] = 8 * math.ceil(default * growth / 8)  # kernels of experts need 8
        elif field.endswith(("embedding_size", "embed_proj_dim")):
            fields[field] = width
        elif isinstance(default, int) and field in ("pad_token_id", "bos_token_id", "eos_token_id"):
            fields[field] = min(default, 1)
    return {**fields, **_head_fields(configuration, standard, width, chosen), **chosen}


def _head_fields(
    configuration: Any, standard: Any, width: int, chosen: Mapping[str, Any]
) -> dict[str, int]:
    """Return the number of heads, their width, and the fields that depend on these."""
    defaults = _constructor_defaults(configuration)
    names = (_field_name(configuration, "num_attention_heads"), "num_heads")
    heads_field = next((name for name in names if name in defaults), None)
    if heads_field is None:
        return {}

    # the heads together may be wider or narrower than the model
    standard_heads = getattr(standard, heads_field)
    standard_head_width = defaults.get("head_dim")
    inner_width = width
    if isinstance(standard_head_width, int) and isinstance(standard_heads, int):
        inner_width = round(width * standard_head_width * standard_heads / standard.hidden_size)
    heads = chosen.get(heads_field) or max(2, inner_width // 64)
    head_width = max(2, inner_width // heads // 2 * 2)
    if inner_width == width and width != heads * head_width:
        raise ValueError(f"{heads} heads: expected an even width a head")

    fields = {}
    if isinstance(defaults[heads_field], int):
        fields[heads_field] = heads
    if "head_dim" in defaults:
        fields["head_dim"] = head_width
    if isinstance(defaults.get("rotary_dim"), int):
        fields["rotary_dim"] = min(head_width, defaults["rotary_dim"])
    for field in (_field_name(configuration, "num_key_value_heads"), "n_groups"):
        groups = defaults.get(field)
        if isinstance(groups, int) and isinstance(standard_heads, int):
            most = min(groups, max(1, heads * groups // standard_heads))
            fields[field] = next(n for n in range(most, 0, -1) if heads % n == 0)
    return fields


def _field_name(configuration: Any, name: str) -> str:
    """Return the type's own name of a field that every type has."""
    return configuration.attribute_map.get(name, name)


def _constructor_defaults(configuration: Any) -> dict[str, Any]:
    """Return the constructor's defaults; None where a field is computed from others."""
    parameters = inspect.signature(configuration).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _is_dropout(field: str, default: Any) -> bool:
    return isinstance(default, float) and ("dropout" in field or "pdrop" in field)


def _option_defaults(configuration: Any) -> dict[str, Any]:
    """Return the fields that a user may set, under the type's names and those of all types."""
    hidden = {*COMMON_FIELDS, *FRAME_FIELDS}
    hidden.update(_field_name(configuration, field) for field in FRAME_FIELDS)
    options = {}
    for field, default in _constructor_defaults(configuration).items():
        if field not in hidden:
            options[field] = 0.0 if _is_dropout(field, default) else default

    names = configuration.attribute_map
    aliases = {alias: options[field] for alias, field in names.items() if field in options}
    return {**aliases, **options}


# The libraries


@register_family(
    "hf", "any causal language model of transformers, with fresh weights: hf:llama, hf:mamba, ..."
)
def transformers_architecture(kind: str) -> Architecture:
    """Return the architecture of a `model_type` of transformers, or raise ValueError."""
    name = f"hf:{kind}"
    _require(name, "transformers", "transformers", "hf")
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    transformers.logging.set_verbosity_error()  # no advice on faster kernels or special tokens
    _check_kind(name, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    configuration = getattr(transformers, CONFIG_MAPPING_NAMES[kind])
    language_model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
    return _architecture(name, configuration, language_model)


@register_family(
    "fla",
    "any model of flash-linear-attention, on a GPU: fla:rwkv7, fla:gated_deltanet, fla:gla, ...",
)
def fla_architecture(kind: str) -> Architecture:
    """Return the architecture of a type of flash-linear-attention, or raise ValueError."""
    name = f"fla:{kind}"
    _require(name, "fla.models", "flash-linear-attention", "fla")
    import transformers

    transformers.logging.set_verbosity_error()
    library = importlib.import_module("fla.models")

    # not by the registry of transformers, in which both libraries have a `mamba`
    classes: dict[str, tuple[Any, Any]] = {}
    for class_name, language_model in vars(library).items():
        if class_name.endswith("ForCausalLM"):
            configuration = getattr(library, class_name.replace("ForCausalLM", "Config"))
            classes[configuration.model_type] = configuration, language_model

    _check_kind(name, classes)
    return _architecture(name, *classes[kind])


def _require(name: str, module: str, package: str, extra: str) -> None:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise ValueError(f"model {name!r} needs the package {package}: pip install -e '.[{extra}]'")


def _check_kind(name: str, kinds: Mapping[str, Any]) -> None:
    """Raise ValueError that suggests similar names if the library has no model of this type."""
    family, _, kind = name.partition(":")
    if kind not in kinds:
        similar = difflib.get_close_matches(kind, kinds) or sorted(kinds)
        suggestions = [f"{family}:{suggestion}" for suggestion in similar]
        raise ValueError(f"unknown model {name!r}: expected {' or '.join(suggestions)}")


@cache
def _architecture(name: str, configuration: Any, language_model: Any) -> Architecture:
    """Return the architecture whose block is a LibraryStack of these classes."""
    attributes = {
        "name": name,
        "configuration": configuration,
        "language_model": language_model,
        "__module__": __name__,
        "__doc__": f"{language_model.__module__}.{language_model.__name__}, "
        f"made from a {configuration.__name__}.",
    }
    block = type("LibraryStack", (LibraryStack,), attributes)
    spec = ArchitectureSpec(is_full_stack=True)
    return Architecture(block, spec, _option_defaults(configuration))
