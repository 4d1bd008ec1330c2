"""Where a round's time goes: `python -m specdec.bench.timeline [--streams 1 8 32] [--drafter ngram] [--kernels 1]`.

The engine decodes random prompts with random weights, as `specdec bench speed --shape` does. The host's part is shown by step
for each number of streams, see `specdec.bench.host_time`: it bounds how many streams a GPU can serve, and a shape that hardly
computes (`--shape tiny`) shows little else. A shape's tokens are no text; a checkpoint (`--model`) also shows what text costs.

On a GPU the kernels of a round are shown by stage, as its profiler sees them. Kernels overlap, so a kernel is charged from
where the one before it ended to its own end. Idle is what no kernel covers; the largest single gap of a round is where the host
would be waited for. All but that is of the commonest kind of round, those with the same launches: while some streams still read
their prompts, or few are left, rounds are others. The profiler itself slows rounds a little.
"""

import argparse
import gc
import itertools
import json
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from specdec import assemble
from specdec.bench import host_time
from specdec.bench.environment import conditions, describe
from specdec.bench.host_time import ACCEPT, COMMIT, DEVICE, DRAFT, DRAW, FORWARD, HOST, LAY_OUT, OBSERVE, TELL, HostTime
from specdec.bench.shapes import SHAPES, load_shape
from specdec.bench.synthetic import shape_request
from specdec.config import EngineConfig
from specdec.llm import LLM, complete
from specdec.request import Request

_ROOM = 64  # positions that a round may write beyond the last token
_UPLOAD = "upload the plan"
STAGES = (_UPLOAD, DRAFT, LAY_OUT, FORWARD, DRAW, ACCEPT, OBSERVE, COMMIT, TELL)
# where stages begin and end, by the names of kernels
UPLOAD_KERNEL = "Memcpy HtoD"
ROWS_KERNEL, EMBED_KERNEL, WALK_KERNEL, TELL_KERNEL = "_rows_kernel", "_embed_kernel", "_walk_kernel", "_tell_kernel"
MOVE_KERNEL, LAST_KERNEL = "_move_kernel", "_commit_kernel"  # it also tells the host
MODEL_KERNELS = frozenset({
    "_linear_kernel", "_norm_kernel", "_embed_kernel", "_heads_kernel", "_attend_kernel", "attend_row_kernel", "_merge_kernel",
    "_swiglu_kernel", "_norm_router_kernel", "_route_kernel", "_group_kernel", "_direct_kernel", "_grouped_kernel",
    "_combine_kernel",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch, microseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Medians over the rounds of the commonest kind, microseconds.

    rounds: how many those are, and how many there were. charged: by stage and kernel, (launches, time). idle: time that no
    kernel covers. gaps: the largest of each round, of all kinds.
    """

    rounds: tuple[int, int]
    round: float
    charged: dict[tuple[str, str], tuple[int, float]]
    idle: float
    gaps: list[float]

    @property
    def stages(self) -> dict[str, float]:
        """Time by stage."""
        found = dict.fromkeys(STAGES, 0.0)
        for (stage, _), (_, time) in self.charged.items():
            found[stage] += time
        return {stage: time for stage, time in found.items() if time}


@dataclass(frozen=True, slots=True)
class _Round:
    """One round: launches and time by stage and kernel, microseconds."""

    length: float
    launches: Counter[tuple[str, str]]
    times: dict[tuple[str, str], float]
    idle: float
    gap: float

    @staticmethod
    def of(kernels: Sequence[Kernel], begin: float) -> "_Round":
        """Of its kernels in order of their ends."""
        launches: Counter[tuple[str, str]] = Counter()
        times: dict[tuple[str, str], float] = defaultdict(float)
        idle, gap, clock = 0.0, 0.0, begin
        for kernel, stage in zip(kernels, stages_of([kernel.name for kernel in kernels]), strict=True):
            waited = max(kernel.start - clock, 0.0)
            idle, gap = idle + waited, max(gap, waited)
            launches[stage, kernel.name] += 1
            times[stage, kernel.name] += kernel.end - max(clock, kernel.start)
            clock = max(clock, kernel.end)
        return _Round(kernels[-1].end - begin, launches, times, idle, gap)


def stages_of(names: Sequence[str]) -> list[str]:
    """The stage of each kernel of a round. Many are PyTorch's own and tell nothing by their names, so order decides."""

    def first(wanted: Iterable[str], start: int, other: int) -> int:
        return next((place for place in range(start, len(names)) if names[place] in wanted), other)

    laid_out = first((ROWS_KERNEL,), 0, 0)
    forward = first((EMBED_KERNEL,), laid_out, laid_out)
    end = first((LAST_KERNEL,), forward, len(names))
    walk = first((WALK_KERNEL,), forward, end)
    commit = first((MOVE_KERNEL, LAST_KERNEL), walk, end)
    head = max((place for place in range(forward, walk) if names[place] in MODEL_KERNELS), default=forward - 1) + 1
    bounds = ((laid_out, DRAFT), (forward, LAY_OUT), (head, FORWARD), (walk, DRAW), (walk + 1, ACCEPT), (commit, OBSERVE))
    by_place = [next((stage for bound, stage in bounds if place < bound), COMMIT) for place in range(len(names))]
    by_name = {TELL_KERNEL: TELL, LAST_KERNEL: COMMIT}
    return [
        _UPLOAD if name.startswith(UPLOAD_KERNEL) else by_name.get(name, stage)
        for name, stage in zip(names, by_place, strict=True)
    ]


def read_trace(path: Path) -> list[Kernel]:
    """The launches of a profiler's trace in order of their ends; copies and fills count as kernels."""
    events = json.loads(path.read_text())["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    found = [Kernel(e["name"], float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in events if e.get("cat") in kinds]
    return sorted(found, key=lambda kernel: kernel.end)


def summarise(kernels: Iterable[Kernel]) -> Timeline:
    """Cut at the last kernel of each round; what lies before the first cut and the first round after it are left out.

    Raises:
        ValueError: the kernels are of fewer than three rounds.
    """
    rounds: list[list[Kernel]] = [[]]
    for kernel in kernels:
        rounds[-1].append(kernel)
        if kernel.name == LAST_KERNEL:
            rounds.append([])
    found = [_Round.of(mine, before[-1].end) for before, mine in itertools.pairwise(rounds[1:-1])]
    if not found:
        raise ValueError("The profiler saw fewer than three rounds: ask for more tokens.")
    kinds = Counter(frozenset(round_.launches.items()) for round_ in found)
    commonest, count = kinds.most_common(1)[0]
    alike = [round_ for round_ in found if round_.launches.items() == commonest]
    return Timeline(
        rounds=(count, len(found)),
        round=statistics.median(r.length for r in alike),
        charged={key: (launches, statistics.median(r.times[key] for r in alike)) for key, launches in commonest},
        idle=statistics.median(r.idle for r in alike),
        gaps=[r.gap for r in found],
    )


def profile(llm: LLM, requests: Sequence[Request]) -> Timeline:
    """Decode under the profiler; what is recorded must be so already."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        complete(llm.generate(requests))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return summarise(read_trace(path))


def show_host(found: Mapping[int, HostTime]) -> None:
    """Print a table: steps and stages down, numbers of streams across."""

    def line(name: str, values: Iterable[float | None]) -> None:
        print(f"{name:<26}" + "".join(f"{'' if value is None else f'{value * 1e6:.0f}':>10}" for value in values))

    print(f"{'us of a round, streams':<26}" + "".join(f"{streams:>10}" for streams in found))
    for name in HOST:
        if any(name in each.host for each in found.values()):
            line(name, (each.host.get(name) for each in found.values()))
    line("the host, in all", (each.busy for each in found.values()))
    for name in DEVICE:
        if any(name in each.device for each in found.values()):
            line(name, (each.device.get(name) for each in found.values()))
    line("a round, by the clock", (each.whole for each in found.values()))


def show_kernels(found: Timeline) -> None:
    """Print a line for each stage, and below it one for each of its kernels."""
    print(f"{found.round:.0f} us a round; {found.rounds[0]} of {found.rounds[1]} rounds, those of the commonest kind")
    print(f"{'stage, kernel':<70}{'launches':>9}{'us':>9}{'us each':>9}")
    for stage, whole in found.stages.items():
        mine = {name: charged for (own, name), charged in found.charged.items() if own == stage}
        print(f"{stage:<70}{sum(count for count, _ in mine.values()):>9}{whole:>9.1f}")
        for name, (count, time) in sorted(mine.items(), key=lambda item: -item[1][1]):
            print(f"  {name[:66]:<68}{count:>9}{time:>9.1f}{time / count:>9.2f}")
    gaps = sorted(found.gaps)
    largest = f"median {statistics.median(gaps):.1f}, 90 % {gaps[int(len(gaps) * 0.9)]:.1f}"
    print(f"idle {found.idle:.1f}; largest gap: {largest}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-30b-a3b", help="random weights")
    what.add_argument("--model", help="a checkpoint instead")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="of the weights")
    parser.add_argument("--streams", type=int, nargs="+", default=[1], help="numbers of streams")
    parser.add_argument(
        "--kernels", type=int, nargs="*", help="those whose kernels are shown, on a GPU; the first, if not given"
    )
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--cache-gb", type=float, help="memory of an engine's caches; what is needed, if not given")
    parser.add_argument("--nodes", type=int, default=4, help="of each draft tree, all verified")
    parser.add_argument("--drafter", choices=["none", "ngram"], nargs="+", default=["none"])
    return parser.parse_args()


def main() -> None:
    """Entry point of `python -m specdec.bench.timeline`."""
    args = arguments()
    config = EngineConfig(
        model=args.model or args.shape,
        device=args.device,
        dtype=args.dtype,
        drafters=(),
        adaptive=False,
        max_tree_nodes=args.nodes,
        prefix_cache=False,
        max_batch=max(*args.streams, *(args.kernels or [1])),
        cache_gb=args.cache_gb,
    )
    if args.model is None:
        loaded = load_shape(args.shape, dtype=args.dtype, device=args.device)
    else:
        loaded = assemble.load(config)
    if config.cache_gb is None:
        pages = max(config.max_batch or 1, 1) * -(-(args.prompt + args.tokens + _ROOM) // config.page_size)
        config = replace(config, cache_gb=assemble.cache_gb_for(config, loaded.model, pages))
    on_gpu, vocab_size = loaded.model.device.type == "cuda", loaded.model.config.vocab_size
    shown = args.kernels if args.kernels is not None else args.streams[:1]
    where = conditions(str(loaded.model.device))
    print(f"{config.model}, {args.prompt} prompt tokens, {args.tokens} new ones; {describe(where)}")

    def requests(streams: int, seed: int) -> list[Request]:
        return [shape_request(f"{seed} {i}", args.prompt, args.tokens, seed + i, vocab_size) for i in range(streams)]

    results = []
    for drafter in args.drafter:
        llm = LLM(assemble.build(replace(config, drafters=() if drafter == "none" else (drafter,)), None, loaded))
        gc.collect()
        gc.freeze()  # as `specdec serve` does
        found = {}
        for streams in args.streams:
            llm.generate(requests(streams, 0))  # what is recorded comes twice
            found[streams] = host_time.measure(llm.engine, requests(streams, 1000))
        print(f"\ndrafter {drafter}")
        show_host(found)
        for streams in shown if on_gpu else ():
            llm.generate(requests(streams, 0))
            print(f"\ndrafter {drafter}, {streams} streams")
            show_kernels(profile(llm, requests(streams, 2000)))
        gc.unfreeze()
        results += [{"drafter": drafter, "streams": streams, **asdict(each)} for streams, each in found.items()]
    setting = {"model": config.model, "prompt_tokens": args.prompt, "tokens": args.tokens}
    print(json.dumps({"bench": "timeline", **where, "settings": setting, "results": results}))


if __name__ == "__main__":
    main()
