"""Settings of an engine: plain data, checked when made."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from specdec.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
_OTHER_DTYPES = {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "float": "float32", "fp32": "float32"}
ACCEPTANCE_RULES = ("shared-noise", "rejection")
GENERATION_CONFIGS = ("auto", "none")
DRAFTERS = ("ngram", "suffix", "prediction", "lookahead", "draft-model")  # that are served
NO_DRAFTERS = "none"
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_DRAFTERS = ("ngram", "suffix", "prediction")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How a target is served.

    Raises:
        ConfigError: a value is out of its range.
    """

    model: str = DEFAULT_MODEL  # alias, folder, GGUF file or hub id
    revision: str | None = None  # of the model on the hub: branch, tag or commit
    tokenizer: str | None = None  # a model whose tokenizer is taken; None: its own
    chat_template: str | None = None  # a file, or Jinja source; None: the model's own
    generation_config: str = "auto"  # auto: the model's own sampling defaults; none: those of `SamplingParams`
    parse_special: bool = False  # True: names of special tokens in messages become these tokens, False: they are text
    dtype: str = "auto"  # auto: bfloat16 where the machine computes it natively, else float32
    device: str = "auto"  # auto: cuda where there is one, else cpu
    drafters: tuple[str, ...] = DEFAULT_DRAFTERS  # () decodes plainly
    draft_model: str | None = None  # for the drafter `draft-model`
    acceptance: str = "shared-noise"
    max_model_len: int | None = None  # None: the checkpoint's own
    max_batch: int | None = None  # sequences in one round; None: 256 on a GPU, else 32
    cache_gb: float | None = None  # KV pages; None: most of a GPU's free memory, else 2
    gpu_memory_utilization: float | None = None  # share of a GPU for weights and caches, where cache_gb is None
    page_size: int = 64  # tokens
    # prompt tokens of one round, all sequences together; None: 8,192 on a GPU with room for them, else 2,048; on a CPU 256
    chunk_tokens: int | None = None
    max_tree_nodes: int = 64  # of one sequence, the root counted
    max_tree_depth: int = 64
    prefix_cache: bool = True
    adaptive: bool = True  # False: drafts are always verified whole, whatever they cost
    depth: int | None = None  # rounds enqueued beyond the one whose outcome was read; None: 1 on a GPU, else 0
    num_threads: int | None = None  # of the CPU path; None: torch's own choice
    measure_anew: bool = False  # the self-test and what rounds cost, though an earlier start has measured them

    @staticmethod
    def of(values: Mapping[str, Any]) -> "EngineConfig":
        """The config of fields as people give them: drafters may be a comma list, and a draft model brings its drafter along.

        Raises:
            ConfigError: there is no such field or drafter, or a value is out of its range.
        """
        known = {field.name: field.default for field in fields(EngineConfig)}
        for name in values.keys() - known.keys():
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
            raise ConfigError(f"There is no setting {name!r}; {hint}")
        chosen = named_drafters(values.get("drafters", DEFAULT_DRAFTERS), values.get("draft_model"))
        return EngineConfig(**{**values, "drafters": chosen})

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", _OTHER_DTYPES.get(str(self.dtype).lower(), str(self.dtype).lower()))
        _require(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        known = ", ".join(GENERATION_CONFIGS)
        _require(self.generation_config in GENERATION_CONFIGS, "generation_config", self.generation_config, f"one of {known}")
        _require(self.acceptance in ACCEPTANCE_RULES, "acceptance", self.acceptance, f"one of {', '.join(ACCEPTANCE_RULES)}")
        _require(self.max_model_len is None or self.max_model_len >= 2, "max_model_len", self.max_model_len, "2 or more")
        _require(self.max_batch is None or self.max_batch >= 1, "max_batch", self.max_batch, "1 or more")
        share = self.gpu_memory_utilization
        _require(share is None or 0 < share <= 1, "gpu_memory_utilization", share, "above 0 and at most 1")
        _require(self.cache_gb is None or self.cache_gb > 0, "cache_gb", self.cache_gb, "above 0")
        _require(
            self.page_size >= 16 and self.page_size & (self.page_size - 1) == 0,
            "page_size", self.page_size, "a power of two, 16 or more",
        )  # fmt: skip
        _require(self.chunk_tokens is None or self.chunk_tokens >= 1, "chunk_tokens", self.chunk_tokens, "1 or more")
        _require(1 <= self.max_tree_nodes <= 64, "max_tree_nodes", self.max_tree_nodes, "between 1 and 64")
        _require(self.depth is None or 0 <= self.depth <= 2, "depth", self.depth, "between 0 and 2")
        _require(self.max_tree_depth >= 1, "max_tree_depth", self.max_tree_depth, "1 or more")
        _require(self.num_threads is None or self.num_threads >= 1, "num_threads", self.num_threads, "1 or more")
        if "draft-model" in self.drafters and self.draft_model is None:
            raise ConfigError("The drafter draft-model needs a model of its own; name it with --draft-model.")


def names(text: str) -> tuple[str, ...]:
    """The items of a comma list, without blanks."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def named_drafters(given: str | Iterable[str] | None, draft_model: str | None) -> tuple[str, ...]:
    """The drafters of a comma list or of several names; a draft model brings its drafter along.

    Raises:
        ConfigError: an unknown name.
    """
    chosen = names(given) if isinstance(given, str) else tuple(given or ())
    chosen = () if chosen == (NO_DRAFTERS,) else chosen
    if draft_model is not None and "draft-model" not in chosen:
        chosen = (*chosen, "draft-model")
    for name in chosen:
        if name not in DRAFTERS:
            raise ConfigError(f"There is no drafter {name!r}; there are {', '.join((*DRAFTERS, NO_DRAFTERS))}.")
    return chosen


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{name} must be {allowed}, not {value!r}.")
