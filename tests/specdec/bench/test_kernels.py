"""The benches of kernels without a GPU: what they time is what it should be, under Triton's interpreter."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from specdec.bench import kernels, small_kernels
from specdec.bench.kernels import PAGE, SHAPES, Shape, chains, lay_out, small_sizes, stack_bytes
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


class Once:
    """In place of `Recording`: the work is done, and nothing timed."""

    def __init__(self, work: Callable[[], object]) -> None:
        work()

    def seconds(self, replays: int) -> float:
        return 32e-6


@pytest.mark.usefixtures("triton_interpreter")
def test_every_small_kernel_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_kernels, "Recording", Once)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    results = small_kernels.measure(SIZES[:1], CPU)
    assert [result.kernel.split()[0] for result in results] == list(FOLDERS)
    assert results[0].microseconds == pytest.approx(2.0), "of one of the calls in a graph"
    assert all(result.same and result.reference_microseconds > 0 for result in results)


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


def test_more_rows_than_a_tree_holds_are_a_prompts() -> None:
    laid_out, pages = lay_out(chains(100, 1, 64), "cpu")
    assert (laid_out.num_chunk, laid_out.num_rows, pages) == (100, 100, 4)
    assert laid_out.positions_R.tolist() == list(range(64, 164))


TINY = Shape(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=16, experts=4, experts_per_row=2, inner=16, vocabulary=64)


@pytest.fixture
def interpreted(triton_interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench runs on the CPU, each of its kernels once."""

    def once(work: Callable[[], object], repeats: int = 0) -> float:
        work()
        return 1e-6

    monkeypatch.setattr(kernels, "DEVICE", "cpu")
    monkeypatch.setattr(kernels, "BF16", torch.float16)  # the interpreter knows no bfloat16
    monkeypatch.setattr(kernels, "COLD_BYTES", 0)
    monkeypatch.setattr(kernels, "replay_seconds", once)


@pytest.mark.usefixtures("interpreted")
def test_every_kernel_is_timed_at_every_number_of_rows(capsys: pytest.CaptureFixture[str]) -> None:
    results = [
        *kernels.time_small(TINY, 3),
        kernels.time_linear(32, 64, 3),
        kernels.time_attention(TINY, 3, 1, 70, 256),
        kernels.time_attention(TINY, 4, 4, 5, 64),
        kernels.time_experts(TINY, 3, [kernels.random_expert_weights(TINY)]),
    ]
    assert [result.rows for result in results] == [3, 3, 3, 3, 3, 4, 3]
    kernels.show(results, 1e12)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(results)
    assert "attention 1x70 of 256" in lines[5]


@pytest.mark.usefixtures("interpreted")
def test_a_stack_computes_a_row_alone_as_in_a_chain() -> None:
    torch.manual_seed(0)
    stack = kernels.random_stack(TINY, 70, 3)
    tokens = torch.tensor([5, 9, 11])
    chain, _ = lay_out(chains(3, 1, 70), "cpu")
    alone, _ = lay_out(chains(1, 1, 70), "cpu")
    later, _ = lay_out(chains(1, 1, 71), "cpu")
    expected = stack.round(tokens, chain)
    assert torch.equal(stack.round(tokens[:1], alone), expected[:1])
    assert torch.equal(stack.round(tokens[1:2], later), expected[1:2])
    result = kernels.time_stack(stack, 3)
    assert result.bytes_read == stack_bytes(TINY, 3, 70)


def test_page_tables_may_be_wider_than_needed() -> None:
    narrow, pages = lay_out(chains(2, 1, 100), "cpu")
    wide, same = lay_out(chains(2, 1, 100), "cpu", max_positions=1280)
    assert (narrow.attention.max_positions, wide.attention.max_positions) == (128, 1280)
    assert pages == same
    assert torch.equal(wide.attention.page_table_MP[:, :2], narrow.attention.page_table_MP)


def test_bytes_of_a_whole_round() -> None:
    shape = SHAPES["qwen3-30b-a3b"]
    one, many = stack_bytes(shape, 1, 1024), stack_bytes(shape, 64, 1024)
    experts = 48 * 3 * 2048 * 768 * 2
    assert many - one == pytest.approx(experts * (128 * (1 - (1 - 8 / 128) ** 64) - 8), rel=1e-6)
