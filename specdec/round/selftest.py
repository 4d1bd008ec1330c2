"""Start-up self-test of the row-invariance contract, the first entries of the cost table, and prompts to get warm on.

The same tokens are computed one row at a time, as chains of many lengths, as a prompt chunk and in a bushy tree; the
logits of the rows must agree bit for bit. Where the machine's matrix products need more rows for that, rows are padded.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.draft.tree import DraftTree
from specdec.round.batch import RowSpec, build_rows
from specdec.round.runner import Runner

ROW_MULTIPLES = (1, 4, 16)
CHAIN_LENGTHS = (2, 3, 5, 8, 16, 17, 33, 64)
_NUM_ALONE = 33  # rows computed one at a time; longer chains are compared up to there
_HISTORY = 61  # just below a tile boundary of 64, so that trees cross it
_NO_TOKENS = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What was found.

    row_multiple: rows are padded to a multiple of it.
    exact: whether all rows agreed bit for bit; if not, `failure` says what differed first.
    """

    row_multiple: int
    exact: bool
    failure: str | None = None


def check_rows(runner: Runner, vocab_size: int, scratch: IntArray) -> SelfTest:
    """Find the smallest row multiple under which the contract holds, and set it.

    Args:
        runner: nothing may run on it yet; its first pages are overwritten.
        vocab_size: of the model.
        scratch: KV slots for nodes off the spine.
    """
    failure: str | None = None
    for multiple in ROW_MULTIPLES:
        runner.row_multiple = multiple
        failure = _first_difference(runner, vocab_size, scratch)
        if failure is None:
            return SelfTest(multiple, True)
    return SelfTest(ROW_MULTIPLES[-1], False, failure)


def _first_difference(runner: Runner, vocab_size: int, scratch: IntArray) -> str | None:
    tokens = np.random.default_rng(0).integers(0, vocab_size, _HISTORY + max(CHAIN_LENGTHS) + 1)
    _run(runner, tokens[:_HISTORY], None, 0, scratch)
    alone = torch.cat(
        [
            _run(runner, _NO_TOKENS, DraftTree.root(int(token)), _HISTORY + i, scratch)
            for i, token in enumerate(tokens[_HISTORY : _HISTORY + _NUM_ALONE])
        ]
    )
    for length in CHAIN_LENGTHS:
        tree = DraftTree.chain(int(tokens[_HISTORY]), tokens[_HISTORY + 1 : _HISTORY + length], 0)
        same = min(length, _NUM_ALONE)
        if not torch.equal(_run(runner, _NO_TOKENS, tree, _HISTORY, scratch)[:same], alone[:same]):
            return f"a chain of {length} rows differs from the same rows one at a time"
        last = _HISTORY + same - 1
        in_chunk = _run(runner, tokens[:last], DraftTree.root(int(tokens[last])), 0, scratch)
        if not torch.equal(in_chunk, alone[same - 1 : same]):
            return f"a prompt of {last + 1} rows differs from the same rows one at a time"
    bushy, right = _bushy(tokens[_HISTORY : _HISTORY + 8], vocab_size)
    if not torch.equal(_run(runner, _NO_TOKENS, bushy, _HISTORY, scratch)[right], alone[:8]):
        return "the right path of a tree differs from the same rows one at a time"
    return None


def _bushy(path: IntArray, vocab_size: int) -> tuple[DraftTree, IntArray]:
    """A tree whose spine is wrong and which holds `path` as its last branch; also the nodes of that branch."""
    wrong = (path + 1) % vocab_size
    n = len(path)
    tokens = np.concatenate([path[:1], wrong[1:], path[1:]])
    parents = np.concatenate([[0], np.arange(n - 1), [0], np.arange(n, 2 * n - 2)])
    zeros = np.zeros(2 * n - 1, np.int64)
    return DraftTree(tokens, parents, np.zeros(2 * n - 1), zeros, zeros), np.concatenate([[0], np.arange(n, 2 * n - 1)])


def _run(runner: Runner, chunk: IntArray, tree: DraftTree | None, num_cached: int, scratch: IntArray) -> Tensor:
    size = runner.pool.page_size
    nodes = len(tree) if tree is not None else 0
    pages = np.arange(-(-(num_cached + len(chunk) + nodes) // size))
    spec = RowSpec(chunk=chunk, tree=tree, num_cached=num_cached, pages=pages, scratch=scratch)
    logits = runner.forward(build_rows([spec], size, runner.device)).logits_TV
    return logits if logits is not None else torch.empty(0)


@dataclass(frozen=True, slots=True)
class RoundCost:
    """A round of `rows` rows, its longest context `context` tokens: median seconds that it took, and its device alone."""

    rows: int
    context: int
    seconds: float
    device_seconds: float


def measure_costs(
    runner: Runner, row_counts: Sequence[int], contexts: Sequence[int], scratch: IntArray, repeats: int = 5
) -> Iterator[RoundCost]:
    """Time verification.

    The history's values do not matter for the time; whatever lies in the pages is read. The rows' tokens do: a mixture of
    experts is the dearer the more experts they visit, so they are drawn at random, anew for each repeat.
    """
    draws = np.random.default_rng(1)
    for context in contexts:
        for rows in row_counts:
            taken = []
            # where rounds are recorded the first is launched kernel by kernel, and the second records it
            warm_ups = 2 if runner.device.type == "cuda" else 0
            for _ in range(warm_ups + repeats):
                tokens = draws.integers(0, runner.model.config.vocab_size, rows)
                tree = DraftTree.chain(int(tokens[0]), tokens[1:], 0)
                started = time.perf_counter()
                _run(runner, _NO_TOKENS, tree, context, scratch).argmax(-1).tolist()
                seconds = time.perf_counter() - started
                taken.append((seconds, runner.device_seconds() or seconds))
            medians = [statistics.median(each) for each in zip(*taken[warm_ups:], strict=True)]
            yield RoundCost(rows, context, *medians)


def warm_up_prompts(runner: Runner, row_counts: Sequence[int], scratch: IntArray) -> Iterator[None]:
    """Read a prompt of each length twice: the first time compiles its kernels, the second records its graph if it has one."""
    for rows in row_counts:
        for _ in range(2):
            _run(runner, np.zeros(rows - 1, np.int64), DraftTree.root(0), 0, scratch)
        yield
