"""The benches of kernels without a GPU: what they time is what it should be, under Triton's interpreter."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from specdec.bench import small_kernels
from specdec.bench.kernels import PAGE, SHAPES, chains, lay_out, small_sizes, stack_bytes
from specdec.bench.small_kernels import Case, Inputs, Result, Sizes, agrees, cases

CPU = torch.device("cpu")
SIZES = [Sizes(1, 1, 130, 1, 2, 16), Sizes(1, 6, 130, 2, 2, 16), Sizes(3, 2, 130, 1, 1, 16)]
FOLDERS = ("suffix_match", "tree_select", "tree_rows", "logit_edits", "gumbel", "tree_walk", "entry_move", "commit")


@pytest.mark.usefixtures("triton_interpreter")
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{sizes.trees}x{sizes.nodes}")
def test_small_kernels_are_timed_beside_what_they_mean(sizes: Sizes) -> None:
    found = cases(Inputs(sizes, CPU))
    assert [case.name.split()[0] for case in found] == list(FOLDERS)
    for case in found:
        assert agrees(case, CPU), case.name


@pytest.mark.usefixtures("triton_interpreter")
def test_what_is_timed_has_something_to_do() -> None:
    inputs = Inputs(SIZES[1], CPU)
    assert inputs.accepted.num_M.tolist() == [4], "all drafts but the wrong one"
    tokens_MC = inputs.candidates.tokens_MC
    assert (tokens_MC >= 0).float().mean() > 0.5, "a lookup finds places"
    assert int(inputs.verified.trees.counts_M[0]) == 5
    for case in cases(inputs):
        before, after = case.fresh(), case.fresh()
        case.kernel(after)
        if case.name in ("logit_edits", "entry_move"):
            assert not torch.equal(before, after), case.name


@pytest.mark.usefixtures("triton_interpreter")
def test_texts_have_room_for_all_calls() -> None:
    inputs = Inputs(SIZES[1], CPU)
    (commit,) = (case for case in cases(inputs) if case.name == "commit")
    state = commit.fresh()
    tokens_SL, lengths_S, _ = commit.kernel(state)
    calls = small_kernels._CALLS * (small_kernels._REPLAYS + 2)
    assert int(lengths_S[0]) - int(inputs.texts.lengths_S[0]) == 5
    assert int(inputs.texts.lengths_S[0]) + 5 * calls <= tokens_SL.shape[1]


@pytest.mark.usefixtures("triton_interpreter")
def test_a_kernel_that_differs_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    case = cases(Inputs(SIZES[0], CPU))[4]
    wrong = Case(case.name, case.fresh, case.kernel, lambda arguments: [values + 1 for values in case.reference(arguments)])
    assert agrees(case, CPU)
    assert not agrees(wrong, CPU)
    small_kernels.show([Result("commit", SIZES[1], 2.0, 300.0, True), Result("gumbel", SIZES[2], 4.0, 100.0, False)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["commit", "1x6", "2.00", "300", "150", "yes"]
    assert lines[2].split() == ["gumbel", "3x2", "4.00", "100", "25", "NO"]


def test_rounds_that_are_met_fit_their_kernels() -> None:
    for sizes in small_sizes(SHAPES["qwen3-30b-a3b"]):
        assert sizes.trees * sizes.nodes <= 256
        inputs = Inputs(replace(sizes, vocabulary=8, layers=1), CPU)
        assert inputs.layout.trees_T.shape == (sizes.trees * sizes.nodes,)
        assert inputs.entries.spare == inputs.entries.scratch + -(-sizes.trees * sizes.nodes // 64) * 64


@pytest.mark.parametrize(("rows", "sequences"), [(1, 1), (8, 1), (64, 64), (12, 4)])
def test_chains_read_the_context_and_write_behind_it(rows: int, sequences: int) -> None:
    laid_out, pages = lay_out(chains(rows, sequences, 100), "cpu")
    each = rows // sequences
    assert laid_out.positions_R.tolist() == [100 + node for _ in range(sequences) for node in range(each)]
    assert len(set(laid_out.entries_R.tolist())) == rows
    assert int(laid_out.entries_R.max()) < (pages - 1) * PAGE
    assert set(laid_out.attention.bases_M.tolist()) == {100}
    pages_read = laid_out.attention.page_table_MP.flatten().tolist()
    assert len(set(pages_read)) == len(pages_read)


def test_bytes_of_a_whole_round() -> None:
    shape = SHAPES["qwen3-30b-a3b"]
    one, many = stack_bytes(shape, 1, 1024), stack_bytes(shape, 64, 1024)
    experts = 48 * 3 * 2048 * 768 * 2
    assert many - one == pytest.approx(experts * (128 * (1 - (1 - 8 / 128) ** 64) - 8), rel=1e-6)
