"""Log probabilities are the raw model's, the most likely first."""

import torch

from specdec.round.sample.logprobs import read_logs


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


def test_a_row_is_read_alike_alone() -> None:
    tokens = torch.tensor([9, 8, 7, 6])
    together = read_logs(logs(False), tokens, 20)
    for row in range(4):
        own = slice(row, row + 1)
        alone = read_logs(logs(False)[own], tokens[own], 20)
        assert all(torch.equal(a, b[own]) for a, b in zip(alone, together, strict=True))
