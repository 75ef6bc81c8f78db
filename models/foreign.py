"""Causal language models of other libraries, with fresh weights: `hf:TYPE` of transformers,
`fla:TYPE` of flash-linear-attention, where TYPE is the library's own `model_type`.

Such a model comes as a whole stack, its last norm included, and stands between our embedding and
our head: vocabulary, reading, loss and trainer are those of every model. Nothing is fetched. Sizes
follow width and depth in the proportions of the type's own defaults (`fields`); every field of its
configuration is an option of the model.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import register_pytree_node

from lookback.models.contract import CLOSE, TRIED
from lookback.models.model import ArchitectureSpec, register_family

CACHES = ("past_key_values", "cache_params", "state")
"""What a stack calls what it keeps of the past, as an argument and in what it gives back."""

WHOLE = ArchitectureSpec(is_full_stack=True)
FRAMES = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
)  # which the frame says: width, depth, vocabulary
NO_OPTIONS = (
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
    "kwargs",
)
FIXED: Mapping[str, Mapping[str, Any]] = {
    "hf:rwkv": {"rescale_every": 0}
}  # a trick for float16, by writing in weights


class Kept:
    """What a stack keeps of the past, in whatever object its library has for it: a node of which
    tensors are leaves.
    """

    def __init__(self, inside: Any) -> None:
        self.inside = inside


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors that an object holds, in containers and in attributes, each once."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, nn.Module | type):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
        return
    held = (
        value.values()
        if isinstance(value, Mapping)
        else value
        if isinstance(value, list | tuple | set)
        else ()
    )
    for part in (*held, *getattr(value, "__dict__", {}).values()):
        yield from tensors_in(part, seen)


def _whole(leaves: Any, kept: Any) -> Kept:
    return kept


register_pytree_node(Kept, lambda kept: (list(tensors_in(kept.inside)), kept), _whole)


class Stack(nn.Module):
    """All layers of a model of another library as one block. Its keyword arguments are fields of
    the configuration.
    """

    name: ClassVar[str]
    configuration: ClassVar[type]
    language_model: ClassVar[type]

    def __init__(self, width: int, layer: int, depth: int, **options: Any) -> None:
        super().__init__()
        self.width = width
        try:
            config = self.configuration(
                **fields(self.name, self.configuration, width, depth, options)
            )
            self.stack: Any = _without_head(self.language_model(config))
        except Exception as error:
            said = " ".join((str(error) or type(error).__name__).split())[:300]
            wanted = f"width {width}, depth {depth} and {options or 'no options'}"
            raise ValueError(f"model {self.name!r} cannot have {wanted}: {said}") from error
        self.stack.set_input_embeddings(nn.Identity())  # ours stands before it
        takes = inspect.signature(self.stack.forward).parameters
        self.cache_name = next((name for name in CACHES if name in takes), None)
        self.use_cache = "use_cache" in takes
        self.longest = _longest(self.stack, config)
        self.tried: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:  # (batch, length, width) -> same
        self.check_length(x.shape[1])
        self._try_once(
            "causal", self._is_causal, "is not causal: what comes later changes what it says before"
        )
        return self.read(x)

    def read(self, x: Tensor) -> Tensor:
        """All positions at once, (batch, length, width) -> same, keeping nothing."""
        return self.stack(
            inputs_embeds=x, return_dict=True, **({"use_cache": False} if self.use_cache else {})
        )[0]

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Kept, int]:
        """Nothing yet: a stack makes its own when it reads the first token."""
        if self.cache_name is None or not self.use_cache:
            raise ValueError(
                f"model {self.name!r} keeps no state: it reads whole sequences and cannot go on from one"
            )
        self._try_once(
            "state", self._goes_on, "keeps no state to trust: token by token it says something else"
        )
        return Kept(None), 0

    def prefill(self, x: Tensor) -> tuple[Tensor, tuple[Kept, int]]:
        return self.go_on(x, self.initial_state(len(x), x.device, x.dtype))

    def step(self, x: Tensor, state: tuple[Kept, int]) -> tuple[Tensor, tuple[Kept, int]]:
        y, state = self.go_on(x[:, None], state)
        return y[:, 0], state

    def go_on(self, x: Tensor, state: tuple[Kept, int]) -> tuple[Tensor, tuple[Kept, int]]:
        """Read (batch, length, width) behind what was read before."""
        kept, before = state
        self.check_length(before + x.shape[1])
        found = self.stack(
            inputs_embeds=x, return_dict=True, use_cache=True, **{str(self.cache_name): kept.inside}
        )
        if found[0].shape != x.shape:
            raise ValueError(
                f"model {self.name!r} reads {tuple(x.shape)} and gives {tuple(found[0].shape)}: its library goes wrong "
                "where several sequences are read token by token; a batch of one sequence may do"
            )
        return found[0], (Kept(found[self.cache_name]), before + x.shape[1])

    def _try_once(self, what: str, right: Callable[[Tensor], bool], wrong: str) -> None:
        """Try on a few positions whether a model does what it must: libraries have many, and nobody
        tries them all.

        Inputs are as small as weights at the start, so that what is added to them, as of positions,
        is seen.
        """
        weight = next(self.parameters())
        if (
            what in self.tried
            or isinstance(weight, FakeTensor)
            or weight.is_meta
            or torch.compiler.is_compiling()
        ):
            return
        self.tried.add(what)
        training, length = self.training, min(TRIED, self.longest or TRIED)
        self.eval()
        try:
            with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
                wave = 0.02 * torch.arange(length * self.width, device=weight.device).cos()
                fine = right(wave.to(weight.dtype).view(1, length, self.width))
        except Exception as error:
            said = " ".join((str(error) or type(error).__name__).split())[:300]
            raise RuntimeError(f"model {self.name!r} does not run here: {said}") from error
        finally:
            self.train(training)
        if not fine:
            raise ValueError(f"model {self.name!r} {wrong}")

    def _is_causal(self, x: Tensor) -> bool:
        half = x.shape[1] // 2
        return _close(
            self.read(torch.cat([x[:, :half], -x[:, half:]], 1))[:, :half], self.read(x)[:, :half]
        )

    def _goes_on(self, x: Tensor) -> bool:
        half = x.shape[1] // 2
        y, state = self.go_on(x[:, :half], (Kept(None), 0))
        outputs = [y]
        for position in x[:, half:].unbind(1):
            y, state = self.step(position, state)
            outputs.append(y[:, None])
        return _close(torch.cat(outputs, 1), self.read(x))

    def check_length(self, length: int) -> None:
        """Raise ValueError, naming the option, where the model has no positions for so many tokens."""
        if self.longest is not None and length > self.longest:
            raise ValueError(
                f"model {self.name!r} knows {self.longest} positions, not {length}: its option "
                f"{_own(self.configuration, 'max_position_embeddings')!r} says how many"
            )

    def drop(self, dropout: nn.Dropout) -> None:
        """Have `dropout` leave out its share of what each layer adds."""
        lists = [module for module in self.stack.modules() if isinstance(module, nn.ModuleList)]
        layers = next(
            (found for found in lists if len(found) == self.stack.config.num_hidden_layers), None
        )
        if layers is None:
            raise ValueError(
                f"model {self.name!r} does not show its layers: it has no dropout but its options'"
            )

        def dropped(layer: nn.Module, given: Any, named: Any, out: Any) -> Any:
            x = given[0] if given else named["hidden_states"]
            y = out if isinstance(out, Tensor) else out[0]
            y = x + dropout(y - x) if dropout.training and layer.training else y
            return y if isinstance(out, Tensor) else (y, *out[1:])

        for layer in layers:
            layer.register_forward_hook(dropped, with_kwargs=True)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= CLOSE * b.abs().max())


def _without_head(language_model: Any) -> Any:
    stack = language_model.base_model
    return language_model.model if stack is language_model else stack


def _longest(stack: nn.Module, config: Any) -> int | None:
    """Positions that a stack has a table for, learned or not; None where any length will do."""
    most = getattr(config, "max_position_embeddings", None)
    if not isinstance(most, int):
        return None
    tables = [module.weight for module in stack.modules() if isinstance(module, nn.Embedding)]
    tables += [buffer for buffer in stack.buffers() if buffer.ndim > 1]
    sizes = {size for table in tables for size in table.shape}
    return (
        most if any(most <= size <= most + 2 for size in sizes) else None
    )  # some keep a row or two for padding


# Sizes


def _own(configuration: Any, name: str) -> str:
    """A type's own word for a field that every type has."""
    return dict(getattr(configuration, "attribute_map", {})).get(name, name)


def _written(configuration: type) -> dict[str, Any]:
    """Defaults as the configuration's constructor has them: None where it works a field out from
    others.
    """
    parameters = inspect.signature(configuration).parameters.values()
    return {
        p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def fields(
    name: str, configuration: Any, width: int, depth: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a configuration is made of.

    Heads are 64 wide as those of our Transformer; inner widths grow with the width from what they
    are by default, heads of keys and groups with the number of heads. Dropout is none, and the
    vocabulary, which is ours, as good as none.
    """
    own = lambda field: _own(configuration, field)  # noqa: E731
    given = {own(key): value for key, value in options.items()}
    written, standard = _written(configuration), configuration()
    if not isinstance(getattr(standard, "hidden_size", None), int) or not hasattr(
        standard, "num_hidden_layers"
    ):
        raise ValueError("its configuration has no hidden_size and num_hidden_layers of its own")
    if standard.is_encoder_decoder or getattr(configuration, "sub_configs", {}):
        raise ValueError("it is made of several models: expected one that reads text alone")
    sizes = {
        own("hidden_size"): width,
        own("num_hidden_layers"): depth,
        "vocab_size": 2,
        **FIXED.get(name, {}),
    }
    growth = width / standard.hidden_size
    for field, value in written.items():
        if _drops(field, value):
            sizes[field] = 0.0
        elif isinstance(value, int) and field.endswith(("intermediate_size", "ffn_dim")):
            sizes[field] = 8 * math.ceil(value * growth / 8)  # kernels for experts want it so
        elif field.endswith(("embedding_size", "embed_proj_dim")):
            sizes[field] = width
        elif isinstance(value, int) and field in ("pad_token_id", "bos_token_id", "eos_token_id"):
            sizes[field] = min(value, 1)
    if "is_decoder" in written:
        sizes["is_decoder"] = True
    return {**sizes, **_heads(configuration, written, standard, width, given), **given}


def _drops(field: str, value: Any) -> bool:
    return isinstance(value, float) and ("dropout" in field or "pdrop" in field)


def _heads(
    configuration: Any,
    written: Mapping[str, Any],
    standard: Any,
    width: int,
    given: Mapping[str, Any],
) -> Any:
    """Heads, their width, and what comes in shares of them."""
    field = next(
        (f for f in (_own(configuration, "num_attention_heads"), "num_heads") if f in written), None
    )
    if field is None:
        return {}
    usual, head_width = getattr(standard, field), written.get("head_dim")
    inner = width
    if isinstance(head_width, int) and isinstance(usual, int):
        inner = round(width * head_width * usual / standard.hidden_size)
    heads = given.get(field) or max(2, inner // 64)
    each = max(2, inner // heads // 2 * 2)
    if inner == width and width != heads * each:
        raise ValueError(f"{heads} heads: expected an even width a head")
    sizes = {field: heads} if isinstance(written[field], int) else {}
    if "head_dim" in written:
        sizes["head_dim"] = each
    if isinstance(written.get("rotary_dim"), int):
        sizes["rotary_dim"] = min(each, written["rotary_dim"])
    for shared in (_own(configuration, "num_key_value_heads"), "n_groups"):
        if isinstance(written.get(shared), int) and isinstance(usual, int):
            sizes[shared] = _divisor(
                heads, min(written[shared], max(1, heads * written[shared] // usual))
            )
    return sizes


def _divisor(number: int, most: int) -> int:
    return next(n for n in range(most, 0, -1) if number % n == 0)


# The libraries


def _imported(name: str, module: str, package: str, extra: str) -> Any:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise ValueError(f"model {name!r} needs the package {package}: pip install -e '.[{extra}]'")
    return importlib.import_module(module)


def _quiet(transformers: Any) -> None:
    """Without advice on faster kernels and special tokens, which is not for those who measure."""
    transformers.utils.logging.set_verbosity_error()


Found = tuple[type, type]
"""A configuration and the causal language model that is made from it."""


@register_family(
    "hf", "any causal language model of transformers, with fresh weights: hf:llama, hf:mamba, ..."
)
def of_transformers(kind: str) -> tuple[type[nn.Module], ArchitectureSpec, dict[str, Any]]:
    """Block, spec and defaults of a `model_type` of transformers; raises ValueError where it has
    none.
    """
    name = f"hf:{kind}"
    library = _imported(name, "transformers", "transformers", "hf")
    configurations = importlib.import_module(
        "transformers.models.auto.configuration_auto"
    ).CONFIG_MAPPING_NAMES
    models = importlib.import_module(
        "transformers.models.auto.modeling_auto"
    ).MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    _quiet(library)
    return _stack(
        name,
        models,
        lambda: (getattr(library, configurations[kind]), getattr(library, models[kind])),
    )


@register_family(
    "fla",
    "any model of flash-linear-attention, on a GPU: fla:rwkv7, fla:gated_deltanet, fla:gla, ...",
)
def of_flash_linear_attention(
    kind: str,
) -> tuple[type[nn.Module], ArchitectureSpec, dict[str, Any]]:
    """Block, spec and defaults of a type of flash-linear-attention; raises ValueError where it
    has none.
    """
    name = f"fla:{kind}"
    library = _imported(name, "fla.models", "flash-linear-attention", "fla")
    _quiet(importlib.import_module("transformers"))
    pairs = _pairs(library)
    return _stack(name, pairs, lambda: pairs[kind])


def _pairs(library: Any) -> dict[str, Found]:
    """By model_type. The registry of transformers will not do: both libraries have a `mamba` in it."""
    names = [name.removesuffix("Config") for name in vars(library) if name.endswith("Config")]
    return {
        getattr(library, f"{name}Config").model_type: (
            getattr(library, f"{name}Config"),
            getattr(library, f"{name}ForCausalLM"),
        )
        for name in names
        if hasattr(library, f"{name}ForCausalLM")
    }


def _stack(
    name: str, known: Mapping[str, Any], find: Callable[[], Found]
) -> tuple[type[nn.Module], ArchitectureSpec, dict[str, Any]]:
    family, _, kind = name.partition(":")
    if kind not in known:
        near = difflib.get_close_matches(kind, known) or sorted(known)
        raise ValueError(
            f"unknown model {name!r}: expected {' or '.join(f'{family}:{each}' for each in near)}"
        )
    return _made(name, find)


_FOUND: dict[str, tuple[type[nn.Module], ArchitectureSpec, dict[str, Any]]] = {}


def _made(
    name: str, find: Callable[[], Found]
) -> tuple[type[nn.Module], ArchitectureSpec, dict[str, Any]]:
    if name not in _FOUND:
        configuration, language_model = find()
        block = type(
            "Stack",
            (Stack,),
            {
                "name": name,
                "configuration": configuration,
                "language_model": language_model,
                "__module__": __name__,
                "__doc__": f"{language_model.__module__}.{language_model.__name__}, made from a {configuration.__name__}.",
            },
        )
        _FOUND[name] = block, WHOLE, _options(configuration)
    return _FOUND[name]


def _options(configuration: Any) -> dict[str, Any]:
    """Fields of a configuration that a user may set, by the type's own words and by those that all
    types have.
    """
    hidden = {*NO_OPTIONS, *FRAMES, *(_own(configuration, name) for name in FRAMES)}
    own = {
        k: 0.0 if _drops(k, v) else v for k, v in _written(configuration).items() if k not in hidden
    }
    alike = {k: own[v] for k, v in configuration.attribute_map.items() if v in own}
    return {**alike, **own}
