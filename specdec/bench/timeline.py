"""Where a round's time goes on a GPU: `python -m specdec.bench.timeline [--streams 64] [--drafter ngram]`.

The engine decodes random prompts with random weights under the profiler, as `specdec bench speed --shape` does. Kernels
overlap, so a kernel is charged from where the one before it ended to its own end. Idle is what no kernel covers; the largest
single gap of a round is where the host would be waited for. All but that is of the commonest kind of round, those with the
same launches: while some streams still read their prompts, or few are left, rounds are others. The profiler itself slows
rounds a little.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from specdec import assemble
from specdec.bench.shapes import SHAPES, load_shape
from specdec.bench.synthetic import shape_request
from specdec.config import EngineConfig
from specdec.llm import LLM

_LAST_KERNEL = "_commit_kernel"  # of a round


@dataclass(frozen=True, slots=True)
class Kernel:
    """One launch, microseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Medians over the rounds of the commonest kind, microseconds.

    rounds: how many those are, and how many there were. charged: by kernel, (launches, time). idle: time that no kernel covers.
    gaps: the largest of each round, of all kinds.
    """

    rounds: tuple[int, int]
    round: float
    charged: dict[str, tuple[int, float]]
    idle: float
    gaps: list[float]


@dataclass(frozen=True, slots=True)
class _Round:
    """One round: launches and time by kernel, microseconds."""

    length: float
    launches: Counter[str]
    times: dict[str, float]
    idle: float
    gap: float

    @staticmethod
    def of(kernels: Sequence[Kernel], begin: float) -> "_Round":
        """Of its kernels in order of their ends."""
        launches: Counter[str] = Counter()
        times: dict[str, float] = defaultdict(float)
        idle, gap, clock = 0.0, 0.0, begin
        for kernel in kernels:
            waited = max(kernel.start - clock, 0.0)
            idle, gap = idle + waited, max(gap, waited)
            launches[kernel.name] += 1
            times[kernel.name] += kernel.end - max(clock, kernel.start)
            clock = max(clock, kernel.end)
        return _Round(kernels[-1].end - begin, launches, times, idle, gap)


def read_trace(path: Path) -> list[Kernel]:
    """The launches of a profiler's trace in order of their ends; copies and fills count as kernels."""
    events = json.loads(path.read_text())["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    found = [Kernel(e["name"], float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in events if e.get("cat") in kinds]
    return sorted(found, key=lambda kernel: kernel.end)


def summarise(kernels: Iterable[Kernel]) -> Timeline:
    """Cut at the last kernel of each round; what lies before the first cut and the first round after it are left out."""
    rounds: list[list[Kernel]] = [[]]
    for kernel in kernels:
        rounds[-1].append(kernel)
        if kernel.name == _LAST_KERNEL:
            rounds.append([])
    found = [_Round.of(mine, before[-1].end) for before, mine in itertools.pairwise(rounds[1:-1])]
    kinds = Counter(frozenset(round_.launches.items()) for round_ in found)
    commonest, count = kinds.most_common(1)[0]
    alike = [round_ for round_ in found if round_.launches.items() == commonest]
    return Timeline(
        rounds=(count, len(found)),
        round=statistics.median(r.length for r in alike),
        charged={name: (launches, statistics.median(r.times[name] for r in alike)) for name, launches in commonest},
        idle=statistics.median(r.idle for r in alike),
        gaps=[r.gap for r in found],
    )


def measure(llm: LLM, streams: int, prompt: int, tokens: int) -> Timeline:
    """Decode twice, the second time under the profiler."""
    vocab_size = llm.assembled.model_info.config.vocab_size

    def decode(seed: int) -> None:
        llm.generate([shape_request(f"{seed} {i}", prompt, tokens, seed + i, vocab_size) for i in range(streams)])

    decode(0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        decode(1000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return summarise(read_trace(path))


def main() -> None:
    """Entry point of `python -m specdec.bench.timeline`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-30b-a3b")
    parser.add_argument("--streams", type=int, nargs="+", default=[1])
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--cache-gb", type=float, default=10.0, help="memory of an engine's keys and values")
    parser.add_argument("--drafter", choices=["none", "ngram"], nargs="+", default=["none"])
    args = parser.parse_args()
    loaded = load_shape(args.shape, dtype="bfloat16", device="cuda")
    base = EngineConfig(model=args.shape, prefix_cache=False, max_batch=max(args.streams), cache_gb=args.cache_gb)
    print(torch.cuda.get_device_name())
    for drafter in args.drafter:
        llm = LLM(assemble.build(replace(base, drafters=() if drafter == "none" else (drafter,)), None, loaded))
        for streams in args.streams:
            found = measure(llm, streams, args.prompt, args.tokens)
            print(f"\n{streams} streams, drafter {drafter}, {args.prompt} prompt tokens: {found.round:.0f} us a round")
            print(f"{found.rounds[0]} of {found.rounds[1]} rounds, those of the commonest kind")
            print(f"{'kernel':<70}{'launches':>9}{'us':>9}{'us each':>9}")
            for name, (count, time) in sorted(found.charged.items(), key=lambda item: -item[1][1]):
                print(f"{name[:68]:<70}{count:>9}{time:>9.1f}{time / count:>9.2f}")
            gaps = sorted(found.gaps)
            largest = f"median {statistics.median(gaps):.1f}, 90 % {gaps[int(len(gaps) * 0.9)]:.1f}"
            print(f"idle {found.idle:.1f}; largest gap: {largest}")


if __name__ == "__main__":
    main()
