"""CUDA graphs of the rounds that a device runs ahead of the host."""

import statistics
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

from specdec.round.graphs import MAX_GRAPHS, recording

_MOST_GRAPHS = 2 * MAX_GRAPHS  # up to 72 of them are recorded at start-up
_REPLAYS = 8  # to time a round; the first half warms up


class RoundKey(NamedTuple):
    """What a graph of a round is made for."""

    sequences: int
    width: int
    pages: int
    lookup: bool
    truncated: bool
    biased: bool
    penalised: bool
    scored: bool


class LoopGraphs:
    """Launches rounds: kernel by kernel, or as graphs where there are any.

    Args:
        launch: all kernels of a round.
        device: where they run. Only a GPU has graphs.
    """

    def __init__(self, launch: Callable[[RoundKey], None], device: torch.device) -> None:
        self._launch = launch
        self._on_gpu = device.type == "cuda"
        self._graphs: OrderedDict[RoundKey, torch.cuda.CUDAGraph] = OrderedDict()
        self._seen: set[RoundKey] = set()
        self._memory = torch.cuda.graph_pool_handle() if self._on_gpu else None

    def __contains__(self, key: RoundKey) -> bool:
        return key in self._graphs

    def launch(self, key: RoundKey) -> None:
        """As a graph from the second time on: a shape that comes once is not worth one."""
        if key in self._graphs:
            self._graphs.move_to_end(key)
        elif self._on_gpu and key in self._seen:
            self.record(key)
        else:
            self._seen.add(key)
            self._launch(key)
            return
        self._graphs[key].replay()

    def record(self, key: RoundKey) -> None:
        """Capture a round whose kernels are compiled."""
        graph = torch.cuda.CUDAGraph()
        with recording(graph, self._memory):
            self._launch(key)
        self._graphs[key] = graph
        if len(self._graphs) > _MOST_GRAPHS:
            self._graphs.popitem(last=False)

    def seconds(self, key: RoundKey, staying: Callable[[], AbstractContextManager[None]]) -> float:
        """Of a recorded round, replayed behind others of its kind so that the host is ahead; each leaves all as it was."""
        spans = []
        for _ in range(_REPLAYS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            with staying():
                begin.record()
                self._graphs[key].replay()
                end.record()
            spans.append((begin, end))
        torch.cuda.synchronize()
        return statistics.median(float(begin.elapsed_time(end)) for begin, end in spans[_REPLAYS // 2 :]) / 1e3
