"""The walk of states over prompt rows and trees, in plain PyTorch; see the package for the legend.

No value is read back and no shape depends on one, so that it can be recorded. What nobody wants is written to the last state,
row -1, which is nobody's.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from specdec.kernels.state_scan import StateStore, StateTables, Step

_NOBODY = -1


def scan_states_reference(rows_RW: Tensor, step: "Step", store: "StateStore", tables: "StateTables") -> Tensor:
    """As `specdec.kernels.state_scan.scan_states`."""
    windows_RJW = _windows(rows_RW, store, tables)
    read = step.read(windows_RJW)
    states = _take_in(step, store, tables)
    outputs = _along_prompts(read, states, step, store, tables)
    store.states.index_copy_(0, tables.states_M, states)
    outputs += _down_trees(read, states, step, tables)
    _remember(rows_RW, windows_RJW, store, tables)
    return torch.cat(outputs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where rows are found, int64 but for bools.

    tree_firsts_M, tree_ends_M: the tree rows of each sequence. are_roots_T: bool. repeat_C: bool, whether a prompt row repeats
    the one before. kept_C: where the state behind a prompt row is kept aside. window_rows_RJ, window_at_RJ: the last J rows on
    each row's path and their positions; are_here_RJ: bool, whether they are rows of this call. last_rows_MJ, last_at_MJ: the
    root, then the prompt rows before it, and their positions; last_states_MJ: whose ring they go to.
    """

    tree_firsts_M: Tensor
    tree_ends_M: Tensor
    are_roots_T: Tensor
    repeat_C: Tensor
    kept_C: Tensor | None
    window_rows_RJ: Tensor
    window_at_RJ: Tensor
    are_here_RJ: Tensor
    last_rows_MJ: Tensor
    last_at_MJ: Tensor
    last_states_MJ: Tensor

    @staticmethod
    def of(tables: "StateTables") -> "Places":
        """Of a call's rows."""
        chunk, members, last = tables.num_chunk, len(tables.states_M), len(tables.positions_R) - 1
        back_J = torch.arange(tables.taps, device=tables.positions_R.device)
        starts_R1, bases_R1 = (values_M[tables.sequences_R, None] for values_M in (tables.starts_M, tables.bases_M))
        chunk_firsts_M, _ = _bounds(tables.sequences_R[:chunk], members)
        tree_firsts_M, tree_ends_M = _bounds(tables.sequences_R[chunk:], members)
        at_RJ = tables.positions_R[:, None] - back_J.flip(0)
        in_chunk_RJ = (chunk_firsts_M - tables.starts_M)[tables.sequences_R, None] + at_RJ
        rows_RJ = torch.where(at_RJ >= bases_R1, F.pad(_climbed(tables) + chunk, (0, 0, chunk, 0)), in_chunk_RJ)
        last_at_MJ = tables.bases_M[:, None] - back_J
        in_chunk_MJ = (chunk_firsts_M - tables.starts_M)[:, None] + last_at_MJ
        has_MJ = torch.where(back_J > 0, last_at_MJ >= tables.starts_M[:, None], (tree_ends_M > tree_firsts_M)[:, None])
        return Places(
            tree_firsts_M=tree_firsts_M,
            tree_ends_M=tree_ends_M,
            are_roots_T=(tables.positions_R[:, None] == bases_R1)[chunk:, 0],
            repeat_C=_repeats(tables),
            kept_C=_kept(tables),
            window_rows_RJ=rows_RJ.clamp(0, last),
            window_at_RJ=at_RJ,
            are_here_RJ=at_RJ >= starts_R1,
            last_rows_MJ=torch.where(back_J > 0, in_chunk_MJ, (chunk + tree_firsts_M)[:, None]).clamp(0, last),
            last_at_MJ=last_at_MJ,
            last_states_MJ=torch.where(has_MJ, tables.states_M[:, None], _NOBODY),
        )


def _take_in(step: "Step", store: "StateStore", tables: "StateTables") -> Tensor:
    """[M, ...] the states as of starts_M: what waits in the ring joins them."""
    states = store.states.index_select(0, tables.states_M)
    if not tables.waiting:
        return states
    at_MQ = tables.folded_M[:, None] + torch.arange(1 - tables.taps, tables.waiting, device=states.device)
    rows_MQW = _recent(store, tables.states_M[:, None], at_MQ)
    windows = rows_MQW.unfold(1, tables.taps, 1).transpose(2, 3)  # [M, waiting, J, W]
    read = [part.view(*windows.shape[:2], *part.shape[1:]) for part in step.read(windows.flatten(0, 1))]
    for index in range(tables.waiting):
        after, _ = step.advance(states, *(part[:, index] for part in read))
        waits_M = tables.folded_M + index < tables.starts_M
        states = torch.where(_like(waits_M, states), after, states)
    return states


def _along_prompts(
    read: tuple[Tensor, ...], states: Tensor, step: "Step", store: "StateStore", tables: "StateTables"
) -> list[Tensor]:
    """Outputs of the prompt rows, one by one; `states` is moved on. A row that repeats another has its output."""
    places, outputs = tables.places, list[Tensor]()
    for row in range(tables.num_chunk):
        one = slice(row, row + 1)
        sequence_1, repeats_1 = tables.sequences_R[one], places.repeat_C[one]
        before = states.index_select(0, sequence_1)
        after, output = step.advance(before, *(part[one] for part in read))
        after = torch.where(_like(repeats_1, after), before, after)
        states.index_copy_(0, sequence_1, after)
        outputs.append(torch.where(_like(repeats_1, output), outputs[-1], output) if row else output)
        if places.kept_C is not None:
            store.kept[places.kept_C[one]] = after
    return outputs


def _down_trees(read: tuple[Tensor, ...], states: Tensor, step: "Step", tables: "StateTables") -> list[Tensor]:
    """Outputs of the tree rows: the first row of every tree, then the second of every tree that has one, and so on."""
    places, count, chunk = tables.places, len(tables.parents_T), tables.num_chunk
    if not count:
        return []
    behind = states.new_empty(count + 1, *states.shape[1:])  # the state behind each row; the last takes what is none
    found: Tensor | None = None
    for node in range(tables.num_nodes):
        rows_M = places.tree_firsts_M + node
        target_M = torch.where(rows_M < places.tree_ends_M, rows_M, count)
        rows_M = rows_M.clamp(max=count - 1)
        above = behind.index_select(0, tables.parents_T[rows_M]) if node else states
        before = torch.where(_like(places.are_roots_T[rows_M], states), states, above)
        after, outputs = step.advance(before, *(part[chunk + rows_M] for part in read))
        if found is None:
            found = outputs.new_zeros(count + 1, *outputs.shape[1:])
        behind.index_copy_(0, target_M, after)
        found.index_copy_(0, target_M, outputs)
    return [] if found is None else [found[:count]]


def _remember(rows_RW: Tensor, windows_RJW: Tensor, store: "StateStore", tables: "StateTables") -> None:
    """The roots and the last prompt rows go to the rings; what stands before a state that was kept aside goes beside it."""
    places, room = tables.places, store.recent_SBW.shape[1]
    store.recent_SBW[places.last_states_MJ, places.last_at_MJ % room] = rows_RW[places.last_rows_MJ]
    if places.kept_C is not None:
        store.kept_rows_KJW[places.kept_C] = windows_RJW[: tables.num_chunk, 1:]


def _windows(rows_RW: Tensor, store: "StateStore", tables: "StateTables") -> Tensor:
    """[R, J, W]: the last J rows on each row's path, its own last; zeros before the text."""
    places = tables.places
    older_RJW = _recent(store, tables.states_M[tables.sequences_R, None], places.window_at_RJ)
    return torch.where(places.are_here_RJ[:, :, None], rows_RW[places.window_rows_RJ], older_RJW)


def _recent(store: "StateStore", states: Tensor, at: Tensor) -> Tensor:
    """Rows of the ring, [..., W]; zeros before the text, whatever lies there."""
    rows = store.recent_SBW[states, at % store.recent_SBW.shape[1]]
    return torch.where((at >= 0)[..., None], rows, torch.zeros_like(rows))


def _climbed(tables: "StateTables") -> Tensor:
    """int64 [T, J]: the tree rows on the way to each, itself last; from a root on upwards the root."""
    way = [torch.arange(len(tables.parents_T), device=tables.parents_T.device)]
    for _ in range(tables.taps - 1):
        way.append(tables.parents_T[way[-1]])
    return torch.stack(way[::-1], 1)


def _repeats(tables: "StateTables") -> Tensor:
    keys_C = torch.stack((tables.sequences_R, tables.positions_R))[:, : tables.num_chunk]
    return F.pad((keys_C[:, 1:] == keys_C[:, :-1]).all(0), (min(tables.num_chunk, 1), 0))


def _kept(tables: "StateTables") -> Tensor | None:
    if tables.marks_MX is None or tables.kept_MX is None:
        return None
    sequences_C, ends_C = tables.sequences_R[: tables.num_chunk], tables.positions_R[: tables.num_chunk] + 1
    return torch.where(tables.marks_MX[sequences_C] == ends_C[:, None], tables.kept_MX[sequences_C], _NOBODY).amax(1)


def _bounds(sequences_X: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """int64 [M] each: the first of the rows that are each sequence's, and behind the last."""
    wanted_M, sequences_X = torch.arange(count, device=sequences_X.device), sequences_X.contiguous()
    return torch.searchsorted(sequences_X, wanted_M), torch.searchsorted(sequences_X, wanted_M, right=True)


def _like(mask_N: Tensor, values: Tensor) -> Tensor:
    """The mask, to be broadcast over values [N, ...]."""
    return mask_N.view(-1, *[1] * (values.dim() - 1))
