"""A chain round's ends: rows are those that the host would lay out, the outcome is that of the host's walk; and the kernels
do what the reference does, in Triton's interpreter and on the GPU."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.draft.tree import DraftTree
from specdec.kernels.chain import ChainRows, Chains, Match, Origin, Told, chain_rows, commit_chains
from specdec.kernels.chain.reference import chain_rows_reference, commit_chains_reference, tell_reference
from specdec.kernels.suffix_match import SEPARATOR, suffix_match
from specdec.kernels.suffix_match.reference import suffix_match_reference
from specdec.round.accept.shared_noise import walk
from specdec.round.batch import RowSpec, build_rows

PAGE, SPARE = 4, 999
CPU = torch.device("cpu")
# a text that repeats itself, one that repeats a reference, one that is new, one that repeats the corpus
TEXTS = [[1, 2, 3, 4, 1, 2], [9, 8, 7, SEPARATOR, 5, 9, 8], [20, 21, 22], [30, 40, 41]]
OFFSETS = [0, 4, 0, 0]
CORPUS = [40, 41, 42, 43, SEPARATOR, 0]
DRAFTS = [[3, 4, 1, 2], [7], [], [42, 43]]
ORIGINS = [Origin.HISTORY, Origin.REFERENCE, Origin.HISTORY, Origin.CORPUS]


def chains_of(texts: list[list[int]] = TEXTS, most_drafts: list[int] | None = None, shortest: int = 2) -> Chains:
    count = len(texts)
    history = torch.zeros(count, 20, dtype=torch.int32)
    for row, text in zip(history, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return Chains(
        history_SL=history,
        lengths_S=torch.tensor([len(text) for text in texts]),
        offsets_S=torch.tensor(OFFSETS[:count]),
        corpus_C=torch.tensor(CORPUS, dtype=torch.int32),
        page_table_SP=torch.arange(count * 5).view(count, 5).flip(1).contiguous(),
        mirrors_S=torch.zeros(count, dtype=torch.bool),
        most_drafts_S=torch.tensor(most_drafts or [7] * count),
        shortest_1=torch.tensor([shortest]),
        turns_1=torch.zeros(1, dtype=torch.int64),
        told_TX=torch.full((3, count * (len(Told) + 16)), -7),
    )


def match_of(chains: Chains) -> Match:
    return Match(*suffix_match(chains.history_SL, chains.lengths_S, chains.corpus_C, 16))


def rows_of(chains: Chains, width: int) -> ChainRows:
    return chain_rows(chains, match_of(chains), width=width, page_size=PAGE, spare_slot=SPARE)


def specs(width: int, most_drafts: list[int]) -> list[RowSpec]:
    found = []
    for index, (text, offset, drafts) in enumerate(zip(TEXTS, OFFSETS, DRAFTS, strict=True)):
        chain = DraftTree.chain(text[-1], drafts[: min(width - 1, most_drafts[index])], 0)
        pages = np.arange(index * 5, index * 5 + 5)[::-1].copy()
        nothing = np.zeros(0, np.int64)
        found.append(RowSpec(chunk=nothing, tree=chain, num_cached=len(text) - 1 - offset, pages=pages, scratch=nothing))
    return found


@pytest.mark.parametrize("most_drafts", [[7, 7, 7, 7], [2, 0, 1, 1]])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_rows_are_those_of_the_host_and_the_rest_repeats_the_last(width: int, most_drafts: list[int]) -> None:
    rows = rows_of(chains_of(most_drafts=most_drafts), width)
    expected, first = build_rows(specs(width, most_drafts), PAGE, CPU), 0
    names = ("tokens_R", "positions_R", "sequences_R", "slots_R")
    for index, segment in enumerate(expected.segments):
        own = slice(index * width, index * width + segment.num_tree)
        theirs = slice(first, first + segment.num_tree)
        first = theirs.stop
        for name in names:
            assert torch.equal(getattr(rows, name)[own], getattr(expected, name)[theirs]), name
        depths = expected.ancestor_slots_RD.shape[1]
        assert torch.equal(rows.ancestor_slots_RD[own][:, :depths], expected.ancestor_slots_RD[theirs][:, :width])
        assert int(rows.counts_S[index]) == segment.num_tree - 1
        for row in range(own.stop, (index + 1) * width):
            assert int(rows.slots_R[row]) == SPARE
            for name in ("tokens_R", "positions_R", "sequences_R", "ancestor_slots_RD"):
                assert torch.equal(getattr(rows, name)[row], getattr(rows, name)[own.stop - 1]), name
    assert torch.equal(rows.bases_S, expected.bases_S)
    assert torch.equal(rows.draws_R, rows.positions_R + 1)
    assert rows.matched_S.tolist() == [2, 2, 0, 2]
    assert rows.guesses_S[rows.matched_S > 0].tolist() == [3, 7, 42]
    assert rows.origins_S[rows.matched_S > 0].tolist() == [ORIGINS[i] for i in (0, 1, 3)]


@pytest.mark.parametrize("count", [1, 4])
def test_kernels_may_read_the_rows(count: int) -> None:
    rows = rows_of(chains_of(TEXTS[:count]), 3)
    assert rows.sequences_R.tolist() == [s for s in range(count) for _ in range(3)]
    assert all(getattr(rows, field.name).is_contiguous() for field in fields(rows))


def test_without_a_match_there_are_roots_only() -> None:
    rows = chain_rows(chains_of(), None, width=1, page_size=PAGE, spare_slot=SPARE)
    assert rows.tokens_R.tolist() == [text[-1] for text in TEXTS]
    assert not rows.counts_S.any()
    assert not rows.matched_S.any()


@pytest.mark.parametrize(("shortest", "counts"), [(1, [2, 1, 2]), (2, [2, 1, 0]), (3, [0, 0, 0])])
def test_short_matches_are_told_but_drafted_from_only_where_that_is_wanted(shortest: int, counts: list[int]) -> None:
    chains = chains_of([*TEXTS[:2], [22, 21, 22]], shortest=shortest)
    rows = rows_of(chains, 3)
    assert rows.counts_S.tolist() == counts
    assert rows.matched_S.tolist() == [2, 2, 1]
    commit_chains(chains, rows, torch.tensor([0, 0, 0, 0, 0, 0, 21, 0, 0]), torch.zeros(9), None)
    told = last_told(chains, 3)
    assert told[:, Told.MATCHED].tolist() == [2, 2, 1]
    assert told[:, Told.GUESSED].tolist() == [0, 0, 1]


def test_a_text_that_repeats_itself_is_continued_with_its_period() -> None:
    rows = rows_of(chains_of([[1, 5, 6, 5, 6, 5, 6]]), 6)
    assert rows.tokens_R.tolist() == [6, 5, 6, 5, 6, 5]


def test_mirrors_repeat_a_sequence_and_write_nowhere() -> None:
    chains = replace(chains_of(), mirrors_S=torch.tensor([False, False, False, True]))
    rows = rows_of(chains, 3)
    assert rows.slots_R[9:].tolist() == [SPARE] * 3
    assert int(rows.counts_S[3]) == 2
    assert (rows.ancestor_slots_RD[9:] != SPARE).all()


def drawn(rows: ChainRows, width: int, seed: int) -> Tensor:
    """What the target might draw: often the drafts; the same at rows that are the same."""
    generator = torch.Generator().manual_seed(seed)
    tokens = rows.tokens_R.view(-1, width)
    chosen = torch.randint(0, 50, tokens.shape, generator=generator)
    agree = torch.rand(len(tokens), width - 1, generator=generator) < 0.7
    chosen[:, :-1] = torch.where(agree, tokens[:, 1:], chosen[:, :-1])
    for row, count in enumerate(rows.counts_S.tolist()):
        chosen[row, count + 1 :] = chosen[row, count]
    return chosen


@pytest.mark.parametrize("seed", range(8))
def test_the_outcome_is_that_of_the_walk(seed: int) -> None:
    width, chains = 4, chains_of()
    rows = rows_of(chains, width)
    tree = build_rows(specs(width, [7] * 4), PAGE, CPU).tree
    assert tree is not None
    chosen = drawn(rows, width, seed)
    expected = walk(tree, chosen[torch.arange(width) <= rows.counts_S[:, None]])
    tops = torch.zeros(16)
    tops[5], tops[9] = torch.nan, -torch.inf
    settled = torch.ones(16, dtype=torch.bool)
    settled[15] = False
    commit_chains(chains, rows, chosen.view(-1), tops, settled)
    told = last_told(chains, width)
    assert told[:, Told.ACCEPTED].tolist() == expected.num_accepted_S.tolist()
    assert told[:, Told.DRAFTED].tolist() == [3, 1, 0, 2]
    assert told[:, Told.SOUND].tolist() == [1, 0, 0, 0]
    guessed = [int(found and chosen[row, 0] == rows.guesses_S[row]) for row, found in enumerate((True, True, False, True))]
    assert told[:, Told.GUESSED].tolist() == guessed
    assert torch.equal(told[:, len(Told) :], torch.cat((rows.tokens_R.view(4, width), chosen), 1))
    for row, text in enumerate(TEXTS):
        emitted = chosen[row, : told[row, Told.ACCEPTED] + 1].tolist()
        assert emitted == expected.emitted_SD[row, : len(emitted)].tolist()
        assert chains.history_SL[row, : int(chains.lengths_S[row])].tolist() == [*text, *emitted]


def many(seed: int) -> Chains:
    """Sequences of few different tokens, so that matches are long, many, and of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    count, room = 37, 60

    def integers(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=dtype)

    lengths = integers(1, room - 8, count)
    offsets = (torch.rand(count, generator=generator) * lengths).long()
    history = integers(SEPARATOR, 4, count, room, dtype=torch.int32)
    history[torch.arange(count), lengths - 1] = 2
    return Chains(
        history_SL=history,
        lengths_S=lengths,
        offsets_S=offsets,
        corpus_C=integers(SEPARATOR, 4, (0, 3, 90)[seed % 3], dtype=torch.int32),
        page_table_SP=integers(0, 100, count, 16),
        mirrors_S=torch.rand(count, generator=generator) < 0.2,
        most_drafts_S=integers(0, 9, count),
        shortest_1=torch.tensor([1 + seed % 3]),
        turns_1=torch.tensor([seed]),
        told_TX=torch.full((3, count * (len(Told) + 16)), -7),
    )


def last_told(chains: Chains, width: int) -> Tensor:
    """What the host is told of the last round, [S, X]; the other rows of the ring are as they were."""
    count, turn = len(chains.lengths_S), int(chains.turns_1) % len(chains.told_TX)
    others = [row for row in range(len(chains.told_TX)) if row != turn]
    assert (chains.told_TX[others] == -7).all()
    return chains.told_TX[turn, : count * (len(Told) + 2 * width)].view(count, -1)


def moved(value: Any, device: str) -> Any:
    """A dataclass of tensors, copied to a device."""
    return type(value)(**{field.name: getattr(value, field.name).to(device, copy=True) for field in fields(value)})


def hold_to_the_reference(kernel: Any, device: str) -> None:
    for seed, width in enumerate((1, 2, 3, 5, 8, 1, 4)):
        mine, theirs = moved(many(seed), device), many(seed)
        match = None
        if seed != 5:
            match = Match(*suffix_match_reference(theirs.history_SL, theirs.lengths_S, theirs.corpus_C, 16))
        shape = {"width": width, "page_size": PAGE, "spare_slot": SPARE}
        expected = chain_rows_reference(theirs, match, **shape)
        found = kernel.chain_rows_triton(mine, moved(match, device) if match else None, **shape)
        for field in fields(expected):
            a, b = getattr(found, field.name).cpu(), getattr(expected, field.name)
            if field.name == "origins_S":
                a, b = (origins * (expected.matched_S > 0) for origins in (a, b))
            assert torch.equal(a, b), (seed, field.name)
        chosen = drawn(expected, width, seed).view(-1)
        tops = torch.zeros(len(chosen))
        tops[0], tops[-1], tops[7 % len(tops)] = torch.nan, torch.inf, -torch.inf
        settled = torch.arange(len(chosen)) % 11 != 3 if seed % 2 else None
        kernel.commit_chains_triton(
            mine, found, chosen.to(device), tops.to(device), settled.to(device) if settled is not None else None
        )
        commit_chains_reference(theirs, expected, chosen, tops, settled)
        wanted = last_told(theirs, width)
        wanted[:, Told.ORIGIN] = found.origins_S.cpu()
        assert torch.equal(last_told(mine, width).cpu(), wanted), seed
        for values in (torch.randn(37, width * 9), torch.arange(37 * width)):
            rings = [torch.full((3, 37 * 8 * 9), -7, dtype=values.dtype, device=place) for place in (device, "cpu")]
            kernel.tell_triton(values.to(device), rings[0], mine.turns_1)
            tell_reference(values, rings[1], theirs.turns_1)
            assert torch.equal(rings[0].cpu(), rings[1])
            assert torch.equal(rings[1][(seed + 1) % 3, : values.numel()], values.flatten())
            assert (rings[1] == -7).sum() == rings[1].numel() - values.numel()
        assert mine.turns_1.item() == theirs.turns_1.item() == seed + 1
        assert torch.equal(mine.history_SL.cpu(), theirs.history_SL)
        assert torch.equal(mine.lengths_S.cpu(), theirs.lengths_S)


def test_the_kernels_do_what_the_reference_does(triton_interpreter: None) -> None:
    hold_to_the_reference(pytest.importorskip("specdec.kernels.chain.kernel"), "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernels_do_the_same_on_the_gpu() -> None:
    hold_to_the_reference(pytest.importorskip("specdec.kernels.chain.kernel"), "cuda")
