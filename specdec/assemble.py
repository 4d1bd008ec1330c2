"""The composition root: turns an EngineConfig into a running engine. The one place that names every concrete class."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from specdec.cache.kinds import CacheRoom, Caches, cache_dtype, has_state, page_bytes, slot_bytes
from specdec.cache.marks import MarkBook
from specdec.config import EngineConfig
from specdec.draft.planner import Planner
from specdec.draft.protocol import Drafter
from specdec.drafters.registry import DrafterFactory, DrafterResources, make_drafters
from specdec.engine.admission import Admission
from specdec.engine.engine import Engine
from specdec.engine.metrics import EngineMetrics
from specdec.engine.scheduler import Scheduler
from specdec.engine.sequence import HostWork
from specdec.errors import ConfigError
from specdec.kernels.tree_select import MAX_NODES
from specdec.models.base import CacheSpec, Model
from specdec.models.generation_config import read_sampling_defaults
from specdec.models.info import ModelInfo, describe, model_info
from specdec.models.loader import load_model
from specdec.models.source import resolve
from specdec.progress import NoProgress, Progress
from specdec.request import SamplingDefaults
from specdec.round.accept.registry import RULES
from specdec.round.forward import Forward
from specdec.round.plan import MOST_TREE_ROWS, ROW_BUCKETS
from specdec.round.probe import Probe, RoundCost, measure_costs
from specdec.round.rehearsal import rehearse
from specdec.round.round import Round
from specdec.round.rows import Entries
from specdec.round.selftest import MOST_POSITIONS, SelfTest, check_rows
from specdec.round.slots import Slots
from specdec.text.tokenizer import Tokenizer
from specdec.user_tiles import use_own

_log = logging.getLogger(__name__)

_COST_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_COST_CONTEXTS = (128, 1024)
GPU_TILE = 64  # keys that the attention kernels read at once, from one page
_CPU_CACHE_GB = 2.0
_ROOM_FOR_ROWS = 2e9  # bytes, of which 8,192 rows of a 30B mixture of experts take about a third
_GPU_SHARE = 0.85  # of the memory that the weights leave free; the rest is for slots, activations and graphs
_MOST_POSITIONS = 1 << 20  # of all pages, whatever memory is given
# drafts of a chain that are looked for where the planner decides; more never paid on an H200, and cost every round a little
_MOST_OFFERED = 31
_FEWEST_PAGES = 2
_MARKS_PER_SLOT = 1  # states kept for prefixes, beside those of sequences


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A target in memory, on which several engines can be built one after another."""

    model: Model
    tokenizer: Tokenizer
    name: str
    sampling_defaults: SamplingDefaults = field(default_factory=SamplingDefaults)


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
    page_bytes: int  # of one page of the caches, all layers
    state_bytes: int  # of what the caches keep beside pages: for each slot, and for prefixes
    sampling_defaults: SamplingDefaults  # for what requests leave out


def load(config: EngineConfig, progress: Progress | None = None) -> LoadedModel:
    """Read the target's weights and tokenizer.

    Raises:
        ConfigError: they cannot be found or used.
    """
    _use_threads(config)
    source = resolve(config.model, progress)
    with _explained_memory("a smaller model"):
        model = load_model(source, dtype=config.dtype, device=config.device, progress=progress)
    defaults = read_sampling_defaults(source) if config.generation_config == "auto" else SamplingDefaults()
    return LoadedModel(model, Tokenizer.load(source), config.model, defaults)


def build(
    config: EngineConfig,
    progress: Progress | None = None,
    loaded: LoadedModel | None = None,
    oracle: Mapping[tuple[tuple[int, ...], str], Sequence[int]] | None = None,
    fixed_shapes: bool | None = None,
    drafters: Mapping[str, DrafterFactory] | None = None,
) -> Assembled:
    """Load what is not loaded yet, prove the row contract on this machine, measure costs, and put the engine together.

    Args:
        config: the settings.
        progress: shows loading and the self-test.
        loaded: the target, when it is in memory already.
        oracle: for the adversarial drafter of tests and benches, see `specdec.drafters.adversarial`.
        fixed_shapes: see `specdec.round.round.Round`; None: on a GPU, which records its rounds. Tests and benches ask for them
            on a CPU too.
        drafters: the caller's own ones by name, for `config.drafters` to name; see `specdec.drafters.registry`.

    Raises:
        ConfigError: a setting does not fit the model or the machine.
    """
    progress = progress or NoProgress()
    _use_threads(config)
    loaded = loaded or load(config, progress)
    model = loaded.model
    use_own(model.device)
    made = _drafters(config, model, progress, oracle, drafters)
    specs = [*model.cache_specs, *(spec for drafter in made for spec in drafter.cache_specs)]
    sizes = _sizes(config, model, specs)
    with _explained_memory("a lower --cache-gb or --max-model-len"):
        caches, entries = _caches(specs, sizes, config, model)
        forward = Forward(model, caches)
        self_test, costs = _measure(Probe(forward, entries, sizes.num_pages), sizes, config, made, progress)
        _bind(made, caches, len(model.cache_specs), forward.row_multiple)
        fixed = fixed_shapes if fixed_shapes is not None else model.device.type == "cuda"
        round_ = _round(config, sizes, forward, made, entries, fixed)
        planner = _planner(config, sizes, round_, costs)
        if model.device.type == "cuda":
            rehearse(round_, planner, sizes.chunk_tokens, sizes.max_model_len, progress)
    engine = Engine(
        round_=round_,
        scheduler=_scheduler(config, sizes),
        planner=planner,
        tokenizer=loaded.tokenizer,
        admission=Admission(model.config.vocab_size, sizes.max_model_len, round_.drafting.names.names),
        metrics=EngineMetrics(loaded.name),
        depth=_depth(config, model),
        host_work=[drafter for drafter in made if isinstance(drafter, HostWork)],
    )
    return Assembled(
        engine=engine,
        tokenizer=loaded.tokenizer,
        model_name=loaded.name,
        model_info=describe(model.config, loaded.name),
        config=replace(config, max_model_len=sizes.max_model_len),
        drafters=round_.drafting.names.names,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        self_test=self_test,
        costs=costs,
        page_bytes=page_bytes(specs, config.page_size, caches.room.dtype),
        state_bytes=_state_bytes(config, model, specs),
        sampling_defaults=loaded.sampling_defaults,
    )


def cache_gb_for(config: EngineConfig, model: Model, num_pages: int) -> float:
    """The least `cache_gb` with which an engine on `model` starts and has so many pages for sequences."""
    specs = [*model.cache_specs]
    if config.draft_model is not None:
        specs += model_info(resolve(config.draft_model, weights=False)).cache_specs
    pages = max(num_pages, _FEWEST_PAGES, -(-MOST_POSITIONS // config.page_size))
    of_page = page_bytes(specs, config.page_size, cache_dtype(model.dtype, model.device))
    return (pages * of_page + _state_bytes(config, model, specs) + 1) / 1e9


def _use_threads(config: EngineConfig) -> None:
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)


def _depth(config: EngineConfig, model: Model) -> int:
    return config.depth if config.depth is not None else int(model.device.type == "cuda")


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
    """What the settings come to on this machine; max_model_len is in positions. num_marks: None where prefixes need none."""

    num_pages: int
    max_model_len: int
    max_batch: int
    chunk_tokens: int
    num_marks: int | None
    longest_path: int


def _max_batch(config: EngineConfig, model: Model) -> int:
    return min(config.max_batch or (256 if model.device.type == "cuda" else 32), MOST_TREE_ROWS)


def _sizes(config: EngineConfig, model: Model, specs: Sequence[CacheSpec]) -> _Sizes:
    on_gpu = model.device.type == "cuda"
    max_batch = _max_batch(config, model)
    cache_gb = config.cache_gb
    if cache_gb is None:
        cache_gb = _GPU_SHARE * torch.cuda.mem_get_info(model.device)[0] / 1e9 if on_gpu else _CPU_CACHE_GB
    stored = cache_dtype(model.dtype, model.device)
    states = _state_bytes(config, model, specs)
    each = max(page_bytes(specs, config.page_size, stored), 1)  # states alone need no page
    positions = min(max(int(cache_gb * 1e9 - states), 0) // each * config.page_size, _MOST_POSITIONS)
    fewer = f"; {max_batch} sequences keep {states / 1e9:.2g} GB of states, fewer with a lower --max-batch" if states else ""
    most = model.config.max_position_embeddings
    wanted = config.max_model_len
    if wanted is not None and wanted > most:
        raise ConfigError(f"max_model_len is {wanted}, but the model knows {most} positions; lower --max-model-len.")
    if wanted is not None and wanted > positions:
        raise ConfigError(
            f"cache_gb {cache_gb:g} holds {positions} tokens of this model, less than max_model_len {wanted}; "
            f"raise --cache-gb or lower --max-model-len{fewer}."
        )
    if on_gpu and config.page_size % GPU_TILE:
        raise ConfigError(f"page_size is {config.page_size}, but on a GPU it must be a multiple of {GPU_TILE}.")
    if positions < _FEWEST_PAGES * config.page_size:
        raise ConfigError(f"cache_gb {cache_gb:g} holds only {positions} tokens of this model; raise --cache-gb{fewer}.")
    return _Sizes(
        num_pages=positions // config.page_size,
        max_model_len=wanted or min(most, positions),
        max_batch=max_batch,
        chunk_tokens=config.chunk_tokens or _chunk_tokens(model.device, cache_gb * 1e9),
        num_marks=_num_marks(config, max_batch) if has_state(specs) else None,
        longest_path=_longest_path(config),
    )


def _num_marks(config: EngineConfig, max_batch: int) -> int:
    return max_batch * _MARKS_PER_SLOT if config.prefix_cache else 0


def _longest_path(config: EngineConfig) -> int:
    """Rows of a tree that a round keeps at most."""
    return min(config.max_tree_nodes, config.max_tree_depth + 1) if config.drafters else 1


def _state_bytes(config: EngineConfig, model: Model, specs: Sequence[CacheSpec]) -> int:
    """What the caches keep beside pages: of all slots and for prefixes, a spare one each."""
    max_batch, stored = _max_batch(config, model), cache_dtype(model.dtype, model.device)
    slots = (max_batch + 1) * slot_bytes(specs, _longest_path(config), stored)
    return slots + (_num_marks(config, max_batch) + 1) * slot_bytes(specs, 0, stored)


def _chunk_tokens(device: torch.device, cache_bytes: float) -> int:
    """Large products want many rows, where there is room for what these leave behind."""
    if device.type != "cuda":
        return 256
    return 8192 if torch.cuda.mem_get_info(device)[0] - cache_bytes >= _ROOM_FOR_ROWS else 2048


def _drafters(
    config: EngineConfig,
    model: Model,
    progress: Progress,
    oracle: Mapping[tuple[tuple[int, ...], str], Sequence[int]] | None,
    own: Mapping[str, DrafterFactory] | None,
) -> list[Drafter]:
    positions = config.max_model_len or model.config.max_position_embeddings

    def load_draft_model() -> Model:
        assert config.draft_model is not None, "EngineConfig asks for one with the drafter draft-model"
        source = resolve(config.draft_model, progress)
        with _explained_memory("a smaller draft model"):
            return load_model(source, dtype=config.dtype, device=config.device, progress=progress, num_positions=positions)

    resources = DrafterResources(
        num_slots=_max_batch(config, model),
        max_model_len=positions,
        max_drafts=max(min(config.max_tree_nodes - 1, _MOST_OFFERED if config.adaptive else MAX_NODES - 1), 1),
        vocab_size=model.config.vocab_size,
        device=model.device,
        target=model,
        samples=not RULES[config.acceptance]().per_seed,
        load_draft_model=load_draft_model if config.draft_model is not None else None,
        oracle=oracle,
    )
    return make_drafters(config, resources, own)


def _caches(specs: Sequence[CacheSpec], sizes: _Sizes, config: EngineConfig, model: Model) -> tuple[Caches, Entries]:
    """Pages for sequences, and behind them as many entries as a round has tree rows, and more for long chains of the
    self-test."""
    scratch_pages = -(-MOST_TREE_ROWS // config.page_size)
    room = CacheRoom(
        num_pages=sizes.num_pages + scratch_pages,
        page_size=config.page_size,
        num_slots=sizes.max_batch,
        num_marks=sizes.num_marks or 0,
        longest_path=sizes.longest_path,
        dtype=cache_dtype(model.dtype, model.device),
        device=model.device,
    )
    return Caches(specs, room), Entries(config.page_size, room.spare_entry, sizes.num_pages * config.page_size)


def _bind(drafters: Sequence[Drafter], caches: Caches, first_layer: int, row_multiple: int) -> None:
    for drafter in drafters:
        drafter.bind(caches, first_layer, row_multiple)
        first_layer += len(drafter.cache_specs)


def _round(
    config: EngineConfig, sizes: _Sizes, forward: Forward, drafters: Sequence[Drafter], entries: Entries, fixed_shapes: bool
) -> Round:
    model = forward.model
    spare_page = entries.spare // entries.page_size
    slots = Slots(sizes.max_batch, sizes.max_model_len, config.page_size, spare_page, model.config.vocab_size, model.device)
    return Round(
        forward=forward,
        slots=slots,
        drafters=drafters,
        rule=RULES[config.acceptance](),
        entries=entries,
        max_depth=config.max_tree_depth,
        max_chunk=sizes.chunk_tokens,
        fixed_shapes=fixed_shapes,
    )


def _planner(config: EngineConfig, sizes: _Sizes, round_: Round, costs: Sequence[RoundCost]) -> Planner:
    names = round_.drafting.names
    planner = Planner(
        names.priors_X,
        num_slots=sizes.max_batch,
        max_nodes=config.max_tree_nodes,
        max_rows=MOST_TREE_ROWS,
        adaptive=config.adaptive,
        row_buckets=np.array(ROW_BUCKETS) if round_.fixed_shapes else None,
    )
    for cost in costs:
        planner.costs.observe(cost.rows, cost.rows, cost.context, cost.seconds)
    return planner


def _scheduler(config: EngineConfig, sizes: _Sizes) -> Scheduler:
    return Scheduler(
        num_pages=sizes.num_pages,
        page_size=config.page_size,
        max_batch=sizes.max_batch,
        chunk_tokens=sizes.chunk_tokens,
        max_model_len=sizes.max_model_len,
        max_tree_rows=MOST_TREE_ROWS,
        prefix_cache=config.prefix_cache,
        marks=MarkBook(sizes.num_marks) if sizes.num_marks is not None else None,
    )


def _measure(
    probe: Probe, sizes: _Sizes, config: EngineConfig, drafters: Sequence[Drafter], progress: Progress
) -> tuple[SelfTest, tuple[RoundCost, ...]]:
    """The self-test, then the cost of rounds by rows and context."""
    if sizes.num_pages * config.page_size < MOST_POSITIONS:
        raise ConfigError(f"The cache holds fewer than {MOST_POSITIONS} tokens; raise --cache-gb.")
    with progress.task("Checking that rows keep their bits", 1) as advance:
        self_test = check_rows(probe, probe.forward.model.config.vocab_size)
        advance(1)
    if not self_test.exact:
        _log.warning(
            "On this machine %s: speculation may change tokens whose logits nearly tie. Please report this processor.",
            self_test.failure,
        )
    if not drafters or not config.adaptive:
        return self_test, ()
    rows = [count for count in _COST_ROWS if count <= max(config.max_tree_nodes, _max_batch(config, probe.forward.model))]
    limit = min(sizes.max_model_len, sizes.num_pages * config.page_size) - max(rows)
    contexts = [context for context in _COST_CONTEXTS if context <= limit]
    costs = []
    with progress.task("Measuring what a round costs", len(rows) * len(contexts)) as advance:
        for cost in measure_costs(probe, rows, contexts):
            costs.append(cost)
            advance(1)
    probe.forget()
    return self_test, tuple(costs)
