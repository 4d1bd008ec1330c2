"""The composition root: turns an EngineConfig into a running engine. The one place that names every concrete class."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from specdec.arrays import IntArray
from specdec.cache.attention import KVPool, cache_dtype
from specdec.config import EngineConfig
from specdec.device_loop import DeviceLoop
from specdec.draft.cost import CostTable
from specdec.draft.planner import Planner
from specdec.draft.protocol import Drafter
from specdec.draft_runner import DraftRunner
from specdec.drafters.registry import DrafterResources, make_drafters
from specdec.engine.admission import Admission
from specdec.engine.engine import Engine
from specdec.engine.metrics import EngineMetrics
from specdec.engine.scheduler import Scheduler
from specdec.errors import ConfigError
from specdec.kernels.linear import uses_triton
from specdec.lookup_width import WidthPolicy
from specdec.loop_costs import LoopCosts
from specdec.models.base import Model
from specdec.models.info import ModelInfo, describe
from specdec.models.loader import load_model
from specdec.models.source import resolve
from specdec.progress import NoProgress, Progress
from specdec.round.accept.base import AcceptanceRule
from specdec.round.accept.registry import RULES
from specdec.round.graphs import prompt_buckets
from specdec.round.runner import Runner
from specdec.round.selftest import RoundCost, SelfTest, check_rows, measure_costs, warm_up_prompts
from specdec.speculation import Speculator
from specdec.text.tokenizer import Tokenizer
from specdec.user_tiles import use_own

_log = logging.getLogger(__name__)

SCRATCH_SLOTS = 512  # tree nodes of a round that may lie off their spines
_COST_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_COST_CONTEXTS = (128, 1024)
GPU_TILE = 64  # keys that the attention kernels read at once, from one page
_CORPUS_TOKENS = 1 << 16  # of earlier responses that the device copies from
_CPU_CACHE_GB = 2.0
_ROOM_FOR_ROWS = 2e9  # bytes, of which 8,192 rows of a 30B mixture of experts take about a third
_GPU_SHARE = 0.85  # of the memory that the weights leave free; the rest is for activations and graphs
_GPU_SHARE_BESIDE_DRAFTER = 0.4  # a draft model brings weights, and keys and values of as many positions
_MOST_POSITIONS = 1 << 20  # of the pool, whatever memory is given


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A target in memory, on which several engines can be built one after another.

    threads: of torch, as they were set when it was loaded.
    """

    model: Model
    tokenizer: Tokenizer
    name: str


@dataclass(frozen=True, slots=True)
class Assembled:
    """An engine ready to serve, and what is worth telling about it."""

    engine: Engine
    tokenizer: Tokenizer
    model_name: str
    model_info: ModelInfo
    config: EngineConfig
    drafters: tuple[str, ...]
    dtype: str
    device: str
    self_test: SelfTest
    costs: tuple[RoundCost, ...]  # as measured at start-up


def load(config: EngineConfig, progress: Progress | None = None) -> LoadedModel:
    """Read the target's weights and tokenizer.

    Raises:
        ConfigError: they cannot be found or used.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    source = resolve(config.model, progress)
    with _explained_memory("a smaller model"):
        model = load_model(source, dtype=config.dtype, device=config.device, progress=progress)
    return LoadedModel(model, Tokenizer.load(source), config.model)


def build(
    config: EngineConfig,
    progress: Progress | None = None,
    loaded: LoadedModel | None = None,
    oracle: Mapping[str, Sequence[int]] | None = None,
) -> Assembled:
    """Load what is not loaded yet, prove the row contract on this machine, measure costs, and put the engine together.

    Args:
        config: the settings.
        progress: shows loading and the self-test.
        loaded: the target, when it is in memory already.
        oracle: for the adversarial drafter of tests and benches, see `specdec.drafters.adversarial`.

    Raises:
        ConfigError: a setting does not fit the model or the machine.
    """
    progress = progress or NoProgress()
    loaded = loaded or load(config, progress)
    model = loaded.model
    rule = RULES[config.acceptance]()
    sizes = _sizes(config, model)
    num_pages, max_model_len = sizes.num_pages, sizes.max_model_len
    scratch_pages = -(-SCRATCH_SLOTS // config.page_size)
    stored = cache_dtype(model.dtype, model.device)
    scratch = np.arange(num_pages * config.page_size, (num_pages + scratch_pages) * config.page_size)
    use_own(model.device)
    with _explained_memory("a lower --cache-gb"):
        pool = KVPool(model.cache_specs, num_pages + scratch_pages, config.page_size, stored, model.device)
        runner = Runner(model, pool)
        self_test, costs = _measure(runner, max_model_len, config, scratch, progress)

    def draft_model() -> DraftRunner:
        return _load_draft_model(config, num_pages, max_model_len, self_test.row_multiple, progress)

    resources = DrafterResources(
        vocab_size=model.config.vocab_size,
        samples=not rule.per_seed,
        draft_model_factory=draft_model if config.draft_model is not None else None,
        oracle=oracle,
    )
    speculator = _speculator(make_drafters(config, resources), costs, rule, config, max_model_len)
    names = tuple(drafter.name for drafter in speculator.drafters)
    runner.capture = speculator.hidden_layers
    scheduler = Scheduler(
        num_pages=num_pages,
        page_size=config.page_size,
        max_batch=sizes.max_batch,
        chunk_tokens=sizes.chunk_tokens,
        prefix_cache=config.prefix_cache,
    )
    with _explained_memory("a lower --cache-gb or --max-model-len"):
        _warm_up(runner, min(max_model_len, sizes.chunk_tokens, num_pages * config.page_size), scratch, progress)
        loop = _device_loop(config, sizes, runner, speculator, rule, progress)
    engine = Engine(
        runner=runner,
        scheduler=scheduler,
        speculator=speculator,
        rule=rule,
        tokenizer=loaded.tokenizer,
        admission=Admission(model.config.vocab_size, max_model_len, names),
        scratch=scratch,
        metrics=EngineMetrics(loaded.name),
        loop=loop,
    )
    return Assembled(
        engine=engine,
        tokenizer=loaded.tokenizer,
        model_name=loaded.name,
        model_info=describe(model.config, loaded.name),
        config=replace(config, max_model_len=max_model_len),
        drafters=names,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        self_test=self_test,
        costs=costs,
    )


@contextmanager
def _explained_memory(remedy: str) -> Iterator[None]:
    """ConfigError in place of torch's own when a GPU's memory runs out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info()
        raise ConfigError(
            f"The GPU's memory does not suffice ({free / 1e9:.1f} of {total / 1e9:.1f} GB are free): choose {remedy}."
        ) from error


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the settings come to on this machine; max_model_len is in positions."""

    num_pages: int
    max_model_len: int
    max_batch: int
    chunk_tokens: int


def _sizes(config: EngineConfig, model: Model) -> _Sizes:
    on_gpu = model.device.type == "cuda"
    cache_gb = config.cache_gb
    if cache_gb is None:
        share = _GPU_SHARE_BESIDE_DRAFTER if config.draft_model is not None else _GPU_SHARE
        cache_gb = share * torch.cuda.mem_get_info(model.device)[0] / 1e9 if on_gpu else _CPU_CACHE_GB
    page_bytes = KVPool.page_bytes(model.cache_specs, config.page_size, cache_dtype(model.dtype, model.device))
    positions = min(int(cache_gb * 1e9) // page_bytes * config.page_size, _MOST_POSITIONS)
    most = model.config.max_position_embeddings
    wanted = config.max_model_len
    if wanted is not None and wanted > most:
        raise ConfigError(f"max_model_len is {wanted}, but the model knows {most} positions; lower --max-model-len.")
    if wanted is not None and wanted > positions:
        raise ConfigError(
            f"cache_gb {cache_gb:g} holds {positions} tokens of this model, less than max_model_len {wanted}; "
            "raise --cache-gb or lower --max-model-len."
        )
    if model.device.type == "cuda" and config.page_size % GPU_TILE:
        raise ConfigError(f"page_size is {config.page_size}, but on a GPU it must be a multiple of {GPU_TILE}.")
    if positions < 2 * config.page_size:
        raise ConfigError(f"cache_gb {cache_gb:g} holds only {positions} tokens of this model; raise --cache-gb.")
    return _Sizes(
        num_pages=positions // config.page_size,
        max_model_len=wanted or min(most, positions),
        max_batch=config.max_batch or (256 if on_gpu else 32),
        chunk_tokens=config.chunk_tokens or _chunk_tokens(model.device, cache_gb * 1e9),
    )


def _chunk_tokens(device: torch.device, cache_bytes: float) -> int:
    """Large products want many rows, where there is room for what these leave behind."""
    if device.type != "cuda":
        return 256
    return 8192 if torch.cuda.mem_get_info(device)[0] - cache_bytes >= _ROOM_FOR_ROWS else 2048


def _speculator(
    drafters: Sequence[Drafter], costs: Sequence[RoundCost], rule: AcceptanceRule, config: EngineConfig, max_model_len: int
) -> Speculator:
    """Trees are judged by what rounds take with the host, chains of the device loop by what the device takes alone."""
    names = [drafter.name for drafter in drafters]
    planner = Planner(names, config.max_tree_nodes, config.adaptive, shape_only=not rule.per_seed)
    device_costs = CostTable()
    for cost in costs:
        planner.observe_cost(cost.rows, cost.context, cost.seconds)
        device_costs.observe(cost.rows, cost.context, cost.device_seconds)
    width = WidthPolicy(LoopCosts(device_costs), config.max_tree_nodes, config.adaptive)
    return Speculator(drafters, planner, width, config, max_model_len)


def _device_loop(
    config: EngineConfig,
    sizes: _Sizes,
    runner: Runner,
    speculator: Speculator,
    rule: AcceptanceRule,
    progress: Progress,
) -> DeviceLoop | None:
    """Rounds without the host, where the kernels run on a GPU and the rule is the walk that they know."""
    if not (config.device_loop and uses_triton(runner.device) and rule.per_seed and not speculator.hidden_layers):
        return None
    loop = DeviceLoop(
        runner.model,
        runner.pool,
        max_sequences=sizes.max_batch,
        max_model_len=sizes.max_model_len,
        corpus_tokens=_CORPUS_TOKENS if speculator.copies_responses else 0,
    )
    widths = speculator.loop_widths(loop.width_limit(1))
    if runner.device.type == "cuda":
        with progress.task("Recording rounds", loop.num_prepared(widths)) as advance:
            for times in loop.prepare(widths, speculator.looks_up and widths[-1] > 1):
                for time in times:
                    speculator.observe_loop_time(time)
                advance(1)
    return loop


def _warm_up(runner: Runner, most_rows: int, scratch: IntArray, progress: Progress) -> None:
    """So that no prompt of a lone sequence waits for the compiler, where there is one."""
    if not (uses_triton(runner.device) and runner.device.type == "cuda"):
        return
    lengths = [rows for rows in prompt_buckets() if rows <= most_rows]
    with progress.task("Recording prompts", len(lengths)) as advance:
        for _ in warm_up_prompts(runner, lengths, scratch):
            advance(1)


def _measure(
    runner: Runner, max_model_len: int, config: EngineConfig, scratch: IntArray, progress: Progress
) -> tuple[SelfTest, tuple[RoundCost, ...]]:
    """The self-test, then the cost of rounds by rows and context."""
    rows = [n for n in _COST_ROWS if n <= config.max_tree_nodes]
    limit = min(max_model_len, runner.pool.num_pages * config.page_size) - config.max_tree_nodes
    contexts = [n for n in _COST_CONTEXTS if n <= limit]
    with progress.task("Checking that rows keep their bits", 1) as advance:
        self_test = check_rows(runner, runner.model.config.vocab_size, scratch)
        advance(1)
    if not self_test.exact:
        _log.warning(
            "On this machine %s: speculation may change tokens whose logits nearly tie. Please report this processor.",
            self_test.failure,
        )
    if not config.drafters or not config.adaptive:
        return self_test, ()
    costs = []
    with progress.task("Measuring what a round costs", len(rows) * len(contexts)) as advance:
        for cost in measure_costs(runner, rows, contexts, scratch):
            costs.append(cost)
            advance(1)
    return self_test, tuple(costs)


def _load_draft_model(
    config: EngineConfig, num_pages: int, max_model_len: int, row_multiple: int, progress: Progress
) -> DraftRunner:
    assert config.draft_model is not None, "EngineConfig asks for one with the drafter draft-model"
    source = resolve(config.draft_model, progress)
    with _explained_memory("a lower --cache-gb or a smaller draft model"):
        model = load_model(source, dtype=config.dtype, device=config.device, progress=progress)
        longest = min(max_model_len, model.config.max_position_embeddings)
        return DraftRunner(model, num_pages, config.page_size, longest, row_multiple)
