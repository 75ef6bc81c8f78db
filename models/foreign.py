"""Causal language models of other libraries, with fresh weights, as architectures of this project.

`hf:TYPE` is a model of transformers and `fla:TYPE` one of flash-linear-attention, where TYPE is the
library's own `model_type`. Such a model is one block that holds all layers and the last norm; it
runs between our embedding and our head, so that vocabulary, pooling, loss and trainer are those of
every model. Nothing is downloaded. Sizes follow width and depth in the proportions of the type's
own defaults (`configuration_fields`); every field of its configuration is an option of the model.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lookback.models.model import (
    Architecture,
    ArchitectureSpec,
    register_family,
    unknown_model,
)

# What libraries call their cache, as an argument of `forward` and in its output.
CACHE_NAMES = ("past_key_values", "cache_params", "state")

# Fields that are the same in every model, where a type has them.
FIXED_FIELDS: Mapping[str, Any] = {
    "vocab_size": 2,  # the embedding is ours
    "pad_token_id": 1,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "is_decoder": True,  # BERT and its relatives read both ways by default
    "rescale_every": 0,  # RWKV divides its weights in place every few layers, for float16
}

# Fields that are no options: the frame decides them, or they do not change the stack.
HIDDEN_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "use_cache",
    "tie_word_embeddings",
    "add_cross_attention",
)

MESSAGE_LENGTH = 300  # characters of a library's error that a message repeats

CacheState = tuple[Any, int]  # the library's cache, and the number of positions it has read


class LibraryStack(nn.Module):
    """All layers of a library's model as one block; its options are configuration fields."""

    name: ClassVar[str]
    configuration: ClassVar[Any]
    language_model: ClassVar[Any]

    def __init__(self, width: int, layer: int, depth: int, **options: Any) -> None:
        super().__init__()
        try:
            fields = configuration_fields(self.configuration, width, depth, options)
            language_model = self.language_model(self.configuration(**fields))
            self.stack: Any = language_model.base_model
            self.stack.set_input_embeddings(nn.Identity())  # ours comes before it
            self.cache_name = cache_argument_name(self.stack)
        except Exception as error:
            message = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"model {self.name!r} cannot have width {width}, depth {depth} and "
                f"{options or 'no options'}: {message[:MESSAGE_LENGTH]}"
            ) from error

    def forward(self, x: Tensor) -> Tensor:  # (batch, length, width) -> same
        self.check_length(x.shape[1])
        return self.stack(inputs_embeds=x.clone(), use_cache=False)[0]  # CTRL writes into it

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> CacheState:
        """Return an empty state; the library makes its cache when it reads the first token."""
        return None, 0

    def prefill(self, x: Tensor) -> tuple[Tensor, CacheState]:
        return self.read(x, (None, 0))

    def step(self, x: Tensor, state: CacheState) -> tuple[Tensor, CacheState]:
        y, state = self.read(x[:, None], state)
        return y[:, 0], state

    def read(self, x: Tensor, state: CacheState) -> tuple[Tensor, CacheState]:
        """Read (batch, length, width) after the positions that the state has seen."""
        library_cache, position = state
        length = position + x.shape[1]
        self.check_length(length)

        inputs = {"inputs_embeds": x.clone(), self.cache_name: library_cache}
        output = self.stack(use_cache=True, **inputs)
        if self.cache_name not in output:
            raise ValueError(
                f"model {self.name!r} keeps no state: its library returns no {self.cache_name}"
            )

        y = output[0]
        if y.shape != x.shape:
            raise ValueError(
                f"model {self.name!r} reads {tuple(x.shape)} and returns {tuple(y.shape)}: "
                "its library fails to read several sequences token by token; "
                "a batch of one sequence may do"
            )
        return y, (output[self.cache_name], length)

    def check_length(self, length: int) -> None:
        """Raise ValueError if a stack with a table of positions has no row for the last one."""
        positions = getattr(self.stack.config, "max_position_embeddings", None)
        if positions is None or length <= positions:
            return

        # learned positions, or computed ones in a buffer; some have two more rows, for padding
        modules = self.stack.modules()
        tables = [module.weight for module in modules if isinstance(module, nn.Embedding)]
        tables += [buffer for buffer in self.stack.buffers() if buffer.ndim > 1]
        if any(positions <= len(table) <= positions + 2 for table in tables):
            option = field_name(self.configuration, "max_position_embeddings")
            raise ValueError(
                f"model {self.name!r} knows {positions} positions, not {length}: "
                f"its option {option!r} sets their number"
            )


def cache_argument_name(stack: nn.Module) -> str:
    """Return the name of a stack's cache; raises ValueError if it reads whole sequences only."""
    parameters = inspect.signature(stack.forward).parameters
    for name in CACHE_NAMES:
        if name in parameters and "use_cache" in parameters:
            return name
    raise ValueError("it keeps no state: expected a model that can read token by token")


# Sizes


def configuration_fields(
    configuration: Any, width: int, depth: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a type's configuration for a width and a depth.

    Heads are 64 wide, as those of our Transformer. Inner widths keep their default proportion to
    the width, and the numbers of key-value heads and groups theirs to the number of heads. Dropout
    is 0, and the vocabulary as small as possible, because the embedding is ours.
    """
    standard = configuration()
    for field in ("hidden_size", "num_hidden_layers"):
        if not isinstance(getattr(standard, field, None), int):
            raise ValueError(f"its configuration has no {field}")
    if standard.is_encoder_decoder or configuration.sub_configs:
        raise ValueError("it is made of several models: expected one that reads text alone")

    fields: dict[str, Any] = {
        field_name(configuration, "hidden_size"): width,
        field_name(configuration, "num_hidden_layers"): depth,
    }
    for field, default in constructor_defaults(configuration).items():
        if field in FIXED_FIELDS:
            fields[field] = FIXED_FIELDS[field]
        elif is_dropout(field, default):
            fields[field] = 0.0
        elif isinstance(default, int) and field.endswith(("intermediate_size", "ffn_dim")):
            inner_width = default * width / standard.hidden_size
            fields[field] = 8 * math.ceil(inner_width / 8)  # kernels of experts need 8
        elif field.endswith(("embedding_size", "embed_proj_dim")):
            fields[field] = width

    chosen = {field_name(configuration, option): value for option, value in options.items()}
    return {**fields, **head_fields(configuration, standard, width, chosen), **chosen}


def head_fields(
    configuration: Any, standard: Any, width: int, chosen: Mapping[str, Any]
) -> dict[str, int]:
    """Return the number of heads, their width, and the fields that depend on these.

    `standard` is the configuration with its defaults, and `chosen` holds the user's fields.
    """
    defaults = constructor_defaults(configuration)
    heads_field = field_name(configuration, "num_attention_heads")
    if heads_field not in defaults:
        heads_field = "num_heads"  # Mamba-2
    if heads_field not in defaults:
        return {}

    # the heads together may be wider or narrower than the model
    standard_heads = getattr(standard, heads_field)
    inner_width = width
    if defaults.get("head_dim"):
        standard_width = defaults["head_dim"] * standard_heads
        inner_width = round(width * standard_width / standard.hidden_size)
    heads = chosen.get(heads_field) or max(2, inner_width // 64)
    head_width = inner_width // heads // 2 * 2  # rotary positions rotate pairs of features
    if inner_width == width and width != heads * head_width:
        raise ValueError(f"{heads} heads: expected an even width a head")

    fields = {heads_field: heads}
    if "head_dim" in defaults:
        fields["head_dim"] = head_width
    if defaults.get("rotary_dim"):
        fields["rotary_dim"] = min(head_width, defaults["rotary_dim"])
    for field in (field_name(configuration, "num_key_value_heads"), "n_groups"):
        groups = defaults.get(field)
        if groups:
            most = min(groups, max(1, heads * groups // standard_heads))
            fields[field] = next(n for n in range(most, 0, -1) if heads % n == 0)
    return fields


def field_name(configuration: Any, name: str) -> str:
    """Return the type's own name of a field that every type has."""
    return configuration.attribute_map.get(name, name)


def constructor_defaults(configuration: Any) -> dict[str, Any]:
    """Return the constructor's defaults; None where a field is computed from others."""
    parameters = inspect.signature(configuration).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def is_dropout(field: str, default: Any) -> bool:
    """Whether a field of a configuration is a share of dropout."""
    return isinstance(default, float) and ("dropout" in field or "pdrop" in field)


def option_defaults(configuration: Any) -> dict[str, Any]:
    """Return the fields that a user may set, under the type's names and those of all types."""
    from transformers import PreTrainedConfig

    options = constructor_defaults(configuration)
    for field in (*HIDDEN_FIELDS, *FIXED_FIELDS, *constructor_defaults(PreTrainedConfig)):
        options.pop(field_name(configuration, field), None)

    for field, default in options.items():
        if is_dropout(field, default):
            options[field] = 0.0
    for alias, field in configuration.attribute_map.items():
        if field in options:
            options[alias] = options[field]
    return options


# The libraries


@register_family(
    "hf", "any causal language model of transformers, with fresh weights: hf:llama, hf:mamba, ..."
)
def transformers_architecture(kind: str) -> Architecture:
    """Return the architecture of a `model_type` of transformers, or raise ValueError."""
    require(f"hf:{kind}", "transformers", "transformers")
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        names = [f"hf:{name}" for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
        raise unknown_model(f"hf:{kind}", names)
    configuration = getattr(transformers, CONFIG_MAPPING_NAMES[kind])
    language_model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])
    return library_architecture(f"hf:{kind}", configuration, language_model)


@register_family(
    "fla",
    "any model of flash-linear-attention, on a GPU: fla:rwkv7, fla:gated_deltanet, fla:gla, ...",
)
def fla_architecture(kind: str) -> Architecture:
    """Return the architecture of a type of flash-linear-attention, or raise ValueError."""
    require(f"fla:{kind}", "fla", "flash-linear-attention")
    library = importlib.import_module("fla.models")

    # not by the registry of transformers, in which both libraries have a `mamba`
    names = []
    for class_name, language_model in vars(library).items():
        if class_name.endswith("ForCausalLM"):
            configuration = getattr(library, class_name.replace("ForCausalLM", "Config"))
            if configuration.model_type == kind:
                return library_architecture(f"fla:{kind}", configuration, language_model)
            names.append(f"fla:{configuration.model_type}")
    raise unknown_model(f"fla:{kind}", names)


def require(name: str, module: str, package: str) -> None:
    """Raise ValueError if a library is not installed; the extra is the model's prefix."""
    if importlib.util.find_spec(module) is None:
        extra = name.partition(":")[0]
        raise ValueError(f"model {name!r} needs the package {package}: pip install -e '.[{extra}]'")


@cache
def library_architecture(name: str, configuration: Any, language_model: Any) -> Architecture:
    """Return the architecture whose block is a LibraryStack of these classes."""
    import transformers

    transformers.logging.set_verbosity_error()  # hide advice on faster kernels and special tokens
    attributes = {
        "name": name,
        "configuration": configuration,
        "language_model": language_model,
        "__module__": __name__,
        "__doc__": f"{language_model.__module__}.{language_model.__name__}, "
        f"made from a {configuration.__name__}.",
    }
    block = type("LibraryStack", (LibraryStack,), attributes)
    spec = ArchitectureSpec(is_full_stack=True, needs_gpu=name.startswith("fla:"))
    return Architecture(block, spec, option_defaults(configuration))
