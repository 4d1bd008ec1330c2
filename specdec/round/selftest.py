"""Start-up self-test of the row-invariance contract.

The same tokens are computed one row at a time, as chains of many lengths, as a prompt chunk and in a bushy tree; the
logits of the rows must agree bit for bit. Where the machine's matrix products need more rows for that, rows are padded.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.draft.tree import DraftTree
from specdec.round.probe import Probe

ROW_MULTIPLES = (1, 4, 16)
CHAIN_LENGTHS = (2, 3, 5, 8, 16, 17, 33, 64)
_NUM_ALONE = 33  # rows computed one at a time; longer chains are compared up to there
_HISTORY = 61  # just below a tile boundary of 64, so that trees cross it
MOST_POSITIONS = _HISTORY + max(CHAIN_LENGTHS) + 1
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


def check_rows(probe: Probe, vocab_size: int) -> SelfTest:
    """Find the smallest row multiple under which the contract holds, and set it.

    Args:
        probe: with room for MOST_POSITIONS.
        vocab_size: of the model.
    """
    failure: str | None = None
    for multiple in ROW_MULTIPLES:
        probe.forward.row_multiple = multiple
        failure = _first_difference(probe, vocab_size)
        if failure is None:
            return SelfTest(multiple, True)
    return SelfTest(ROW_MULTIPLES[-1], False, failure)


def _first_difference(probe: Probe, vocab_size: int) -> str | None:
    tokens = np.random.default_rng(0).integers(0, vocab_size, MOST_POSITIONS)
    history = tokens[:_HISTORY]
    _read(probe, history)
    alone = torch.cat(
        [
            probe.logits(_NO_TOKENS, DraftTree.root(int(token)), _HISTORY + i)
            for i, token in enumerate(tokens[_HISTORY : _HISTORY + _NUM_ALONE])
        ]
    )
    for length in CHAIN_LENGTHS:
        tree = DraftTree.chain(int(tokens[_HISTORY]), tokens[_HISTORY + 1 : _HISTORY + length])
        same = min(length, _NUM_ALONE)
        _read(probe, history)
        if not torch.equal(probe.logits(_NO_TOKENS, tree, _HISTORY)[:same], alone[:same]):
            return f"a chain of {length} rows differs from the same rows one at a time"
        last = _HISTORY + same - 1
        probe.forget()
        in_chunk = probe.logits(tokens[:last], DraftTree.root(int(tokens[last])), 0)
        if not torch.equal(in_chunk, alone[same - 1 : same]):
            return f"a prompt of {last + 1} rows differs from the same rows one at a time"
    bushy, right = _bushy(tokens[_HISTORY : _HISTORY + 8], vocab_size)
    _read(probe, history)
    if not torch.equal(_rows(probe.logits(_NO_TOKENS, bushy, _HISTORY), right), alone[:8]):
        return "the right path of a tree differs from the same rows one at a time"
    return None


def _read(probe: Probe, history: IntArray) -> None:
    probe.forget()
    probe.logits(history, None, 0)


def _rows(logits_TV: Tensor, rows: IntArray) -> Tensor:
    return logits_TV[torch.from_numpy(rows).to(logits_TV.device)]


def _bushy(path: IntArray, vocab_size: int) -> tuple[DraftTree, IntArray]:
    """A tree whose spine is wrong and which holds `path` as its last branch; also the nodes of that branch."""
    wrong = (path + 1) % vocab_size
    n = len(path)
    tokens = np.concatenate([path[:1], wrong[1:], path[1:]])
    parents = np.concatenate([[0], np.arange(n - 1), [0], np.arange(n, 2 * n - 2)])
    return DraftTree(tokens, parents), np.concatenate([[0], np.arange(n, 2 * n - 1)])
