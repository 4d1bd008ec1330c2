"""Settings of an engine: plain data, checked when made."""

from dataclasses import dataclass

from specdec.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
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
    generation_config: str = "auto"  # auto: the model's own sampling defaults; none: those of `SamplingParams`
    dtype: str = "auto"  # auto: bfloat16 where the machine computes it natively, else float32
    device: str = "auto"  # auto: cuda where there is one, else cpu
    drafters: tuple[str, ...] = DEFAULT_DRAFTERS  # () decodes plainly
    draft_model: str | None = None  # for the drafter `draft-model`
    acceptance: str = "shared-noise"
    max_model_len: int | None = None  # None: the checkpoint's own
    max_batch: int | None = None  # sequences in one round; None: 256 on a GPU, else 32
    cache_gb: float | None = None  # KV pages; None: most of a GPU's free memory, else 2
    page_size: int = 64  # tokens
    # prompt tokens of one round, all sequences together; None: 8,192 on a GPU with room for them, else 2,048; on a CPU 256
    chunk_tokens: int | None = None
    max_tree_nodes: int = 64  # of one sequence, the root counted
    max_tree_depth: int = 64
    prefix_cache: bool = True
    adaptive: bool = True  # False: drafts are always verified whole, whatever they cost
    depth: int | None = None  # rounds enqueued beyond the one whose outcome was read; None: 1 on a GPU, else 0
    num_threads: int | None = None  # of the CPU path; None: torch's own choice

    def __post_init__(self) -> None:
        _require(self.dtype in DTYPES, "dtype", self.dtype, f"one of {', '.join(DTYPES)}")
        known = ", ".join(GENERATION_CONFIGS)
        _require(self.generation_config in GENERATION_CONFIGS, "generation_config", self.generation_config, f"one of {known}")
        _require(self.acceptance in ACCEPTANCE_RULES, "acceptance", self.acceptance, f"one of {', '.join(ACCEPTANCE_RULES)}")
        _require(self.max_model_len is None or self.max_model_len >= 2, "max_model_len", self.max_model_len, "2 or more")
        _require(self.max_batch is None or self.max_batch >= 1, "max_batch", self.max_batch, "1 or more")
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


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{name} must be {allowed}, not {value!r}.")
