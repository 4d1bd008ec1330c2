"""CUDA graphs of rounds: each shape is recorded when it comes first, and replayed from then on; and of any other work that
is timed."""

import functools
import gc
import statistics
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar

import torch

from specdec.round.plan import RoundShape

MOST_GRAPHS = 384  # the one used longest ago is dropped; up to 300 are recorded at start-up
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
        self._memory = torch.cuda.graph_pool_handle() if self._on_gpu else None
        self.version = 0  # changes with the recordings

    def shapes(self) -> Iterable[RoundShape]:
        """Those that are recorded."""
        return self._graphs.keys()

    def records(self, shape: RoundShape) -> bool:
        """Whether a shape is recorded when it comes."""
        return self._on_gpu and self._worth(shape)

    def __contains__(self, shape: RoundShape) -> bool:
        return shape in self._graphs

    def launch(self, shape: RoundShape) -> None:
        """As a graph where shapes have any: to record a round takes the host about as long as to launch it kernel by kernel."""
        if shape in self._graphs:
            self._graphs.move_to_end(shape)
        elif self.records(shape):
            self.record(shape)
        else:
            self._launch(shape)
            return
        self._graphs[shape].replay()

    def record(self, shape: RoundShape) -> None:
        """Capture a round, which computes nothing. What a launch makes once and keeps must exist by then."""
        try:
            graph = self._captured(shape)
        except torch.OutOfMemoryError:  # within a capture nothing that is cached is given back for it
            torch.cuda.empty_cache()
            graph = self._captured(shape)
        self._graphs[shape] = graph
        self.version += 1
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)

    def _captured(self, shape: RoundShape) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with recording(graph, self._memory):
            self._launch(shape)
        return graph

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
    """Capture a CUDA graph, its memory from that pool. What is underway on the device goes on meanwhile.

    No garbage is collected meanwhile: to free an older graph's memory on this thread would spoil the capture. Kernels may be
    loaded, which only the relaxed mode allows.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.stream(_capture_stream(torch.cuda.current_device())):
            graph.capture_begin(**({} if memory is None else {"pool": memory}), capture_error_mode="relaxed")
            try:
                yield
            finally:
                graph.capture_end()
    finally:
        if collected:
            gc.enable()


@functools.cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """One for all captures: graphs share memory."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _median_seconds(spans: Sequence[tuple[torch.cuda.Event, torch.cuda.Event]]) -> float:
    """Of the second half."""
    return statistics.median(float(begin.elapsed_time(end)) for begin, end in spans[len(spans) // 2 :]) / 1e3
