"""CUDA graphs of rounds: each shape is recorded when it comes for the second time, and replayed from then on; and of any
other work that is timed."""

import gc
import statistics
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar

import torch

from specdec.round.plan import RoundShape

MOST_GRAPHS = 384  # the one used longest ago is dropped; up to 100 are recorded at start-up
_MOST_SEEN = 4096  # shapes, each of about 1 kB; ten times what may be recorded
_REPLAYS = 8  # to time a round; the first half warms up

_Output = TypeVar("_Output")


class Graphs:
    """Launches rounds: kernel by kernel, or as graphs where there are any.

    Args:
        launch: all kernels of a round.
        device: where they run. Only a GPU has graphs.
        worth: whether a shape is worth a graph: a device that computes many rows is busy for longer than the host needs to
        launch.
    """

    def __init__(
        self, launch: Callable[[RoundShape], None], device: torch.device, worth: Callable[[RoundShape], bool] = lambda _: True
    ) -> None:
        self._launch = launch
        self._worth = worth
        self._on_gpu = device.type == "cuda"
        self._graphs: OrderedDict[RoundShape, torch.cuda.CUDAGraph] = OrderedDict()
        self._seen: set[RoundShape] = set()
        self._memory = torch.cuda.graph_pool_handle() if self._on_gpu else None
        self.version = 0  # changes with the recordings

    def shapes(self) -> Iterable[RoundShape]:
        """Those that are recorded."""
        return self._graphs.keys()

    def records(self, shape: RoundShape) -> bool:
        """Whether a shape is recorded when it comes again."""
        return self._on_gpu and self._worth(shape)

    def __contains__(self, shape: RoundShape) -> bool:
        return shape in self._graphs

    def launch(self, shape: RoundShape) -> None:
        """As a graph from the second time on: a shape that comes once is not worth one."""
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
        elif shape in self._seen and self.records(shape):
            self.record(shape)
        else:
            self._see(shape)
            self._launch(shape)
            return
        self._graphs[shape].replay()

    def _see(self, shape: RoundShape) -> None:
        """Only what may be recorded is remembered, and not for ever: there is no end of shapes."""
        if self._on_gpu:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            self._seen.add(shape)

    def record(self, shape: RoundShape) -> None:
        """Capture a round whose kernels are compiled."""
        graph = torch.cuda.CUDAGraph()
        with recording(graph, self._memory):
            self._launch(shape)
        self._graphs[shape] = graph
        self.version += 1
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)

    def seconds(self, shape: RoundShape, staying: Callable[[], AbstractContextManager[None]]) -> float:
        """Of a recorded round, replayed behind others of its kind so that the host is ahead; each leaves all as it was."""
        spans = []
        for _ in range(_REPLAYS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            with staying():
                begin.record()
                self._graphs[shape].replay()
                end.record()
            spans.append((begin, end))
        torch.cuda.synchronize()
        return _median_seconds(spans)


class Recording(Generic[_Output]):
    """Some work as a graph, to be timed.

    Args:
        work: the same kernels each time. What it gives is `output`, which every replay writes anew.
    """

    def __init__(self, work: Callable[[], _Output]) -> None:
        work()  # so that everything is compiled
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with recording(self._graph, None):
            self.output = work()
        self._graph.replay()  # a capture computes nothing

    def seconds(self, replays: int = _REPLAYS) -> float:
        """Of one replay on the device: the median of some behind one another, of which the first half warms up."""
        spans = []
        for _ in range(replays):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            self._graph.replay()
            end.record()
            spans.append((begin, end))
        torch.cuda.synchronize()
        return _median_seconds(spans)


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, memory: Any) -> Iterator[None]:
    """Capture a CUDA graph, its memory from that pool.

    No garbage is collected meanwhile: to free an older graph's memory on this thread would spoil the capture.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            yield
    finally:
        if collected:
            gc.enable()


def _median_seconds(spans: Sequence[tuple[torch.cuda.Event, torch.cuda.Event]]) -> float:
    """Of the second half."""
    return statistics.median(float(begin.elapsed_time(end)) for begin, end in spans[len(spans) // 2 :]) / 1e3
