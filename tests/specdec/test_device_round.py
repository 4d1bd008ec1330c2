"""A round as tensors: its rows are those that the host would lay out, its outcome that of the host's walk."""

import numpy as np
import pytest
import torch

from specdec.acceptance.shared_noise import walk
from specdec.batch import RowSpec, build_rows
from specdec.device_round import SHORTEST_MATCH, LoopState, Origin, Told, commit_round, draft_rows
from specdec.kernels.suffix_match import SEPARATOR
from specdec.tree import DraftTree

PAGE, SPARE = 4, 999
CPU = torch.device("cpu")
# a text that repeats itself, one that repeats a reference, one that is new, one that repeats the corpus
TEXTS = [[1, 2, 3, 4, 1, 2], [9, 8, 7, SEPARATOR, 5, 9, 8], [20, 21, 22], [30, 40, 41]]
OFFSETS = [0, 4, 0, 0]
CORPUS = [40, 41, 42, 43, SEPARATOR, 0]
DRAFTS = [[3, 4, 1, 2], [7], [], [42, 43]]
ORIGINS = [Origin.HISTORY, Origin.REFERENCE, Origin.HISTORY, Origin.CORPUS]


def state(most_drafts: list[int] | None = None, mirrors: list[bool] | None = None) -> LoopState:
    history = torch.zeros(len(TEXTS), 20, dtype=torch.int32)
    for row, text in zip(history, TEXTS, strict=True):
        row[: len(text)] = torch.tensor(text)
    count = len(TEXTS)
    return LoopState(
        history_SL=history,
        corpus_C=torch.tensor(CORPUS, dtype=torch.int32),
        lengths_S=torch.tensor([len(text) for text in TEXTS]),
        offsets_S=torch.tensor(OFFSETS),
        page_table_SP=torch.arange(count * 4).view(count, 4).flip(1),
        mirrors_S=torch.tensor(mirrors or [False] * count),
        most_drafts_S=torch.tensor(most_drafts or [7] * count),
        seeds_S=torch.zeros(count, dtype=torch.int64),
        temperatures_S=torch.ones(count),
        noisy_S=torch.zeros(count, dtype=torch.bool),
    )


def specs(width: int, most_drafts: list[int]) -> list[RowSpec]:
    found = []
    for index, (text, offset, drafts) in enumerate(zip(TEXTS, OFFSETS, DRAFTS, strict=True)):
        chain = DraftTree.chain(text[-1], drafts[: min(width - 1, most_drafts[index])], 0)
        pages = np.arange(index * 4, index * 4 + 4)[::-1].copy()
        nothing = np.zeros(0, np.int64)
        found.append(RowSpec(chunk=nothing, tree=chain, num_cached=len(text) - 1 - offset, pages=pages, scratch=nothing))
    return found


@pytest.mark.parametrize("most_drafts", [[7, 7, 7, 7], [2, 0, 1, 1]])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_rows_are_those_of_the_host_and_the_rest_repeats_the_last(width: int, most_drafts: list[int]) -> None:
    draft = draft_rows(state(most_drafts), width, PAGE, SPARE, lookup=True)
    expected = build_rows(specs(width, most_drafts), PAGE, CPU)
    tables, first = draft.tables, 0
    for index, segment in enumerate(expected.segments):
        own = slice(index * width, index * width + segment.num_tree)
        theirs = slice(first, first + segment.num_tree)
        first = theirs.stop
        for name in ("tokens_R", "positions_R", "sequences_R", "slots_R"):
            assert torch.equal(getattr(tables, name)[own], getattr(expected, name)[theirs]), name
        depths = expected.ancestor_slots_RD.shape[1]
        assert torch.equal(tables.ancestor_slots_RD[own][:, :depths], expected.ancestor_slots_RD[theirs][:, :width])
        assert int(draft.counts_S[index]) == segment.num_tree - 1
        for row in range(own.stop, (index + 1) * width):
            assert int(tables.slots_R[row]) == SPARE
            for name in ("tokens_R", "positions_R", "sequences_R", "ancestor_slots_RD"):
                assert torch.equal(getattr(tables, name)[row], getattr(tables, name)[own.stop - 1]), name
    for name in ("tokens_R", "positions_R", "sequences_R", "slots_R", "bases_S", "starts_S", "ancestor_slots_RD"):
        assert getattr(tables, name).is_contiguous(), name
    assert torch.equal(tables.bases_S, expected.bases_S)
    assert torch.equal(tables.starts_S, expected.starts_S)
    assert draft.found_S.tolist() == [True, True, False, True]
    assert [int(token) for token in draft.guesses_S[draft.found_S]] == [3, 7, 42]
    assert [int(origin) for origin in draft.origins_S[draft.found_S]] == [ORIGINS[i] for i in (0, 1, 3)]


def test_kernels_may_read_the_rows_of_one_sequence_too() -> None:
    whole = state()
    first = LoopState(**{name: getattr(whole, name)[:1] if name != "corpus_C" else whole.corpus_C for name in whole.__slots__})
    tables = draft_rows(first, 3, PAGE, SPARE, lookup=True).tables
    assert tables.sequences_R.tolist() == [0, 0, 0]
    assert all(getattr(tables, name).is_contiguous() for name in tables.__slots__)


def test_without_a_lookup_there_are_roots_only() -> None:
    draft = draft_rows(state(), 1, PAGE, SPARE, lookup=False)
    assert draft.tables.tokens_R.tolist() == [text[-1] for text in TEXTS]
    assert not draft.counts_S.any()
    assert not draft.found_S.any()


def test_short_matches_do_not_count() -> None:
    assert SHORTEST_MATCH == 2
    made = state()
    made.history_SL[2, :3] = torch.tensor([22, 21, 22])
    assert not draft_rows(made, 3, PAGE, SPARE, lookup=True).found_S[2]


def test_a_text_that_repeats_itself_is_continued_with_its_period() -> None:
    made = state()
    made.history_SL[2, :7] = torch.tensor([1, 5, 6, 5, 6, 5, 6])
    made.lengths_S[2] = 7
    tokens = draft_rows(made, 6, PAGE, SPARE, lookup=True).tokens_SW[2]
    assert tokens.tolist() == [6, 5, 6, 5, 6, 5]


def test_mirrors_repeat_a_sequence_and_write_nowhere() -> None:
    made = state(mirrors=[False, False, False, True])
    draft = draft_rows(made, 3, PAGE, SPARE, lookup=True)
    assert draft.tables.slots_R[9:].tolist() == [SPARE] * 3
    assert draft.counts_S[3] == 2
    assert (draft.tables.ancestor_slots_RD[9:] != SPARE).all()


@pytest.mark.parametrize("seed", range(8))
def test_the_outcome_is_that_of_the_walk(seed: int) -> None:
    width = 4
    made = state()
    draft = draft_rows(made, width, PAGE, SPARE, lookup=True)
    tree = build_rows(specs(width, [7] * 4), PAGE, CPU).tree
    assert tree is not None
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, 50, (4, width), generator=generator)
    agree = torch.rand(4, width - 1, generator=generator) < 0.7
    chosen[:, :-1] = torch.where(agree, draft.tokens_SW[:, 1:], chosen[:, :-1])
    for row, count in enumerate(draft.counts_S.tolist()):
        chosen[row, count + 1 :] = chosen[row, count]  # the rows repeat the last one
    live = torch.arange(width) <= draft.counts_S[:, None]
    expected = walk(tree, chosen[live])
    sound = torch.ones(4, width, dtype=torch.bool)
    sound[1, 1] = False
    told = commit_round(made, draft, chosen, sound)
    assert told[:, Told.ACCEPTED].tolist() == expected.num_accepted_S.tolist()
    assert told[:, Told.DRAFTED].tolist() == [3, 1, 0, 2]
    assert told[:, Told.SOUND].tolist() == [1, 0, 1, 1]
    guessed = [int(found and chosen[row, 0] == draft.guesses_S[row]) for row, found in enumerate((True, True, False, True))]
    assert told[:, Told.GUESSED].tolist() == guessed
    for row, text in enumerate(TEXTS):
        emitted = chosen[row, : told[row, Told.ACCEPTED] + 1].tolist()
        assert emitted == expected.emitted_SD[row, : len(emitted)].tolist()
        length = int(made.lengths_S[row])
        assert made.history_SL[row, :length].tolist() == [*text, *emitted]
