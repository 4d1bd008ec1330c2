"""Log probabilities are the raw model's, the most likely first."""

import pytest
import torch

from specdec.round.sample.logprobs import log_probs, read_logs


def logs(ties: bool) -> torch.Tensor:
    logits = torch.randn(4, 3001, generator=torch.Generator().manual_seed(7)) * 2.5
    return (logits.mul(2).round().div(2) if ties else logits).log_softmax(-1)


def test_a_tokens_own_and_the_best() -> None:
    for ties in (False, True):
        tokens = torch.tensor([1, 2, 3000, 4])
        own, top_tokens, top = read_logs(logs(ties), tokens, 5)
        assert torch.equal(own, logs(ties)[torch.arange(4), tokens])
        assert torch.equal(top, logs(ties).sort(-1, descending=True).values[:, :5])
        assert torch.equal(top, logs(ties).gather(1, top_tokens))
        for row_tokens, row in zip(top_tokens.tolist(), top.tolist(), strict=True):
            pairs = list(zip(row, row_tokens, strict=True))
            assert pairs == sorted(pairs, key=lambda pair: (-pair[0], pair[1])), "equal ones by ascending token"


def test_none_of_the_best_and_all_of_them() -> None:
    tokens = torch.zeros(4, dtype=torch.int64)
    own, top_tokens, top = read_logs(logs(True), tokens, 0)
    assert top_tokens.shape == top.shape == (4, 0)
    assert len(own) == 4
    everything = read_logs(logs(True)[:, :9], tokens, 9)[1]
    assert torch.equal(everything, logs(True)[:, :9].sort(dim=-1, descending=True, stable=True).indices)


@pytest.mark.parametrize("top", [1, 2, 7, 20])
def test_of_equal_ones_the_lower_tokens_are_told(top: int) -> None:
    """Hundreds equal the last one told."""
    values = torch.randint(0, 4, (6, 3001), generator=torch.Generator().manual_seed(top)).float()
    values[0] = values[1] = 0.5
    values[1, 2000], values[2, 0] = 1.0, torch.nan
    wanted = values.sort(dim=-1, descending=True, stable=True)
    _, tokens, found = read_logs(values, torch.zeros(6, dtype=torch.int64), top)
    sound = torch.tensor([0, 1, 3, 4, 5])
    assert torch.equal(tokens[sound], wanted.indices[sound, :top])
    assert torch.equal(found[sound], wanted.values[sound, :top])
    assert (tokens < 3001).all()


@pytest.mark.parametrize("vocab_size", [5, 267, 4099])
def test_a_rows_bits_do_not_depend_on_its_address(vocab_size: int) -> None:
    rows = torch.randn(9, vocab_size, generator=torch.Generator().manual_seed(1)) * 5
    whole = log_probs(rows)
    for offset in range(8):
        moved = torch.zeros(vocab_size + offset)[offset:].copy_(rows[5])
        assert torch.equal(log_probs(moved[None])[0], whole[5])


def test_a_row_is_read_alike_alone() -> None:
    tokens = torch.tensor([9, 8, 7, 6])
    together = read_logs(logs(False), tokens, 20)
    for row in range(4):
        own = slice(row, row + 1)
        alone = read_logs(logs(False)[own], tokens[own], 20)
        assert all(torch.equal(a, b[own]) for a, b in zip(alone, together, strict=True))
