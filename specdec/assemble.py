"""The composition root: turns an EngineConfig into a running engine. The one place that names every concrete class."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from specdec.cache.kinds import CacheRoom, Caches, cache_dtype, page_bytes
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
from specdec.measurements import Measurements, kept_trials, measure, path_for, rounds_to_time
from specdec.models.base import CacheSpec, Model
from specdec.models.generation_config import read_sampling_defaults
from specdec.models.info import ModelInfo, describe, model_info
from specdec.models.loader import choose_device, choose_dtype, load_model, read_source_config
from specdec.models.source import has_weights, resolve
from specdec.progress import NoProgress, Progress
from specdec.request import SamplingDefaults
from specdec.round.accept.registry import RULES
from specdec.round.forward import Forward, Vocabulary
from specdec.round.plan import MOST_TREE_ROWS, ROW_BUCKETS
from specdec.round.probe import Probe, RoundCost
from specdec.round.rehearsal import rehearse
from specdec.round.round import Round
from specdec.round.rows import Entries
from specdec.round.selftest import MOST_POSITIONS, SelfTest
from specdec.round.slots import Slots
from specdec.sizes import FEWEST_PAGES, Sizes, most_sequences, sizes_of, state_bytes_of, too_long
from specdec.text.chosen import chosen_tokenizer
from specdec.text.pair import draftable
from specdec.text.tokenizer import Tokenizer
from specdec.user_tiles import use_own

# drafts of a chain that are looked for where the planner decides; more never paid on an H200, and cost every round a little
_MOST_OFFERED = 31


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A target in memory, on which several engines can be built one after another.

    identity: of its files, for what is kept of earlier starts; None keeps nothing.
    """

    model: Model
    tokenizer: Tokenizer
    name: str
    sampling_defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    identity: str | None = None


@dataclass(frozen=True, slots=True)
class Assembled:
    """An engine ready to serve, and what is worth telling about it."""

    engine: Engine
    tokenizer: Tokenizer
    model_name: str
    model_info: ModelInfo
    config: EngineConfig
    max_batch: int  # sequences that may run at once
    drafters: tuple[str, ...]
    dtype: str
    device: str
    self_test: SelfTest
    costs: tuple[RoundCost, ...]  # as measured at start-up
    measured_at: float  # when both were measured, in seconds since 1970
    page_bytes: int  # of one page of the caches, all layers
    state_bytes: int  # of what the caches keep beside pages: for each slot, and for prefixes
    sampling_defaults: SamplingDefaults  # for what requests leave out


def load(config: EngineConfig, progress: Progress | None = None) -> LoadedModel:
    """Read the target's weights and tokenizer. All that can be refused without them is refused before weights are read.

    Raises:
        ConfigError: they cannot be found or used.
    """
    _use_threads(config)
    source = resolve(config.model, progress, weights=False, revision=config.revision)
    found = read_source_config(source)
    if config.max_model_len is not None and config.max_model_len > found.longest:
        raise too_long(config.max_model_len, found.longest)
    tokenizer = chosen_tokenizer(config, source, found.vocab_size, progress)
    defaults = read_sampling_defaults(source) if config.generation_config == "auto" else SamplingDefaults()
    _draftable(config, tokenizer, progress)
    if not (source.is_gguf or has_weights(source.path)):
        choose_dtype(config.dtype, choose_device(config.device))
        source = resolve(config.model, progress, revision=config.revision)
    positions = config.max_model_len or 0
    with _explained_memory("a smaller model"), kept_trials(config.measure_anew):
        model = load_model(source, dtype=config.dtype, device=config.device, progress=progress, num_positions=positions)
    return LoadedModel(model, tokenizer, config.model, defaults, source.identity)


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
    made = _drafters(config, loaded, progress, oracle, drafters)
    specs = [*model.cache_specs, *(spec for drafter in made for spec in drafter.cache_specs)]
    sizes = sizes_of(config, model, specs)
    with _explained_memory("a lower --cache-gb or --max-model-len"):
        caches, entries = _caches(specs, sizes, config, model)
        vocab_size = model.config.vocab_size
        vocabulary = Vocabulary(vocab_size, loaded.tokenizer.nameless(vocab_size))
        forward = Forward(model, caches, vocabulary=vocabulary)
        measured = _measured(Probe(forward, entries, sizes.num_pages), loaded, sizes, config, bool(made), progress)
        _bind(made, caches, len(model.cache_specs), forward.row_multiple)
        fixed = fixed_shapes if fixed_shapes is not None else model.device.type == "cuda"
        round_ = _round(config, sizes, forward, made, entries, fixed)
        planner = _planner(config, sizes, round_, measured.costs)
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
        max_batch=sizes.max_batch,
        drafters=round_.drafting.names.names,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        self_test=measured.self_test,
        costs=measured.costs,
        measured_at=measured.measured_at,
        page_bytes=page_bytes(specs, config.page_size, caches.room.dtype),
        state_bytes=state_bytes_of(config, model, specs),
        sampling_defaults=loaded.sampling_defaults,
    )


def cache_gb_for(config: EngineConfig, model: Model, num_pages: int) -> float:
    """The least `cache_gb` with which an engine on `model` starts and has so many pages for sequences."""
    specs = [*model.cache_specs]
    if config.draft_model is not None:
        specs += model_info(resolve(config.draft_model, weights=False)).cache_specs
    pages = max(num_pages, FEWEST_PAGES, -(-MOST_POSITIONS // config.page_size))
    of_page = page_bytes(specs, config.page_size, cache_dtype(model.dtype, model.device))
    return (pages * of_page + state_bytes_of(config, model, specs) + 1) / 1e9


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


def _draftable(config: EngineConfig, tokenizer: Tokenizer, progress: Progress | None) -> frozenset[int]:
    """See `specdec.text.pair`; nothing where there is no draft model."""
    if config.draft_model is None or "draft-model" not in config.drafters:
        return frozenset()
    return draftable(tokenizer, Tokenizer.load(resolve(config.draft_model, progress, weights=False)))


def _drafters(
    config: EngineConfig,
    loaded: LoadedModel,
    progress: Progress,
    oracle: Mapping[tuple[tuple[int, ...], str], Sequence[int]] | None,
    own: Mapping[str, DrafterFactory] | None,
) -> list[Drafter]:
    model = loaded.model
    positions = config.max_model_len or model.config.max_position_embeddings

    def load_draft_model() -> Model:
        assert config.draft_model is not None, "EngineConfig asks for one with the drafter draft-model"
        source = resolve(config.draft_model, progress)
        with _explained_memory("a smaller draft model"), kept_trials(config.measure_anew):
            return load_model(source, dtype=config.dtype, device=config.device, progress=progress, num_positions=positions)

    resources = DrafterResources(
        num_slots=most_sequences(config, model),
        max_model_len=positions,
        max_drafts=max(min(config.max_tree_nodes - 1, _MOST_OFFERED if config.adaptive else MAX_NODES - 1), 1),
        vocab_size=model.config.vocab_size,
        device=model.device,
        target=model,
        samples=not RULES[config.acceptance]().per_seed,
        load_draft_model=load_draft_model if config.draft_model is not None else None,
        draftable=_draftable(config, loaded.tokenizer, progress),
        oracle=oracle,
    )
    return make_drafters(config, resources, own)


def _caches(specs: Sequence[CacheSpec], sizes: Sizes, config: EngineConfig, model: Model) -> tuple[Caches, Entries]:
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
    config: EngineConfig, sizes: Sizes, forward: Forward, drafters: Sequence[Drafter], entries: Entries, fixed_shapes: bool
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


def _planner(config: EngineConfig, sizes: Sizes, round_: Round, costs: Sequence[RoundCost]) -> Planner:
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


def _scheduler(config: EngineConfig, sizes: Sizes) -> Scheduler:
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


def _measured(
    probe: Probe, loaded: LoadedModel, sizes: Sizes, config: EngineConfig, speculates: bool, progress: Progress
) -> Measurements:
    """The self-test, and what rounds cost where that is asked."""
    if sizes.num_pages * config.page_size < MOST_POSITIONS:
        raise ConfigError(f"The cache holds fewer than {MOST_POSITIONS} tokens; raise --cache-gb.")
    longest = min(sizes.max_model_len, sizes.num_pages * config.page_size)
    wanted = rounds_to_time(max(config.max_tree_nodes, sizes.max_batch), longest) if speculates and config.adaptive else []
    path = None
    if loaded.identity is not None:
        path = path_for(loaded.identity, loaded.model.dtype, loaded.model.device, config.page_size)
    return measure(probe, wanted, path, config.measure_anew, progress)
