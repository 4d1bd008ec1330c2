"""The shipped tensor rules draw from the target's distribution: chi-square over many seeds, and the same test on wrong rules.

A small Markov model is decoded over several rounds, so that noise which leaks from one round into the next shows; SmolLM2's
own distributions are decoded for one round behind several contexts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from scipy import stats
from torch import Tensor

from specdec.kernels.gumbel.search import race
from specdec.kernels.tree_walk import Accepted
from specdec.models.base import Model
from specdec.models.loader import load_model
from specdec.models.source import resolve
from specdec.request import SamplingParams
from specdec.round.accept import rejection
from specdec.round.accept.base import AcceptanceRule
from specdec.round.accept.registry import RULES
from specdec.round.sample.noise import Domain, in_round
from specdec.text.tokenizer import Tokenizer
from tests.specdec.round.accept.conftest import sampling_of, verification

PLAUSIBLE, ABSURD = 1e-3, 1e-6
CHAIN, PAIR, WIDE, LOPSIDED = (0, 0, 1, 2), (0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 1, 1)  # parents, the root's own first
SHARED, OWN, FIXED = "shared noise", "own noise", "fixed"  # how a drafter ranks its candidates
VOCAB, LENGTH, START = 6, 4, 30


@dataclass(frozen=True)
class Drafter:
    """Draws or ranks the children of every node from logits of its own."""

    ranks_by: str
    domain: Domain = Domain.DRAFT
    keyed_by_round: bool = True

    def children(self, logits_SV: Tensor, positions_S: Tensor, roots_S: Tensor, num: int) -> Tensor:
        if self.ranks_by == FIXED:
            return logits_SV.topk(num, dim=-1).indices
        keyed = in_round(positions_S, roots_S) if self.keyed_by_round else positions_S
        domain, positions = (Domain.TARGET, positions_S) if self.ranks_by == SHARED else (self.domain, keyed)
        return race(logits_SV, torch.arange(len(logits_SV)), positions, num, domain)[1]


class Markov:
    """Target and draft logits of the next token given the last one; `error` is how far they lie apart."""

    def __init__(self, seed: int, error: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.target_VV = torch.randn(VOCAB, VOCAB, generator=generator)
        self.draft_VV = self.target_VV + error * torch.randn(VOCAB, VOCAB, generator=generator)

    def law(self) -> Tensor:
        """Probability of every sequence of LENGTH tokens after token 0, flattened."""
        p_VV = self.target_VV.double().softmax(-1)
        law = p_VV[0]
        for _ in range(LENGTH - 1):
            law = law[..., None] * p_VV
        return law.flatten()

    def propose(self, drafter: Drafter, parents: tuple[int, ...], last_S: Tensor, positions_S: Tensor) -> Tensor:
        tokens = [last_S]
        for node in range(len(parents)):
            children = [i for i in range(1, len(parents)) if parents[i] == node]
            if children:
                depth = 0 if node == 0 else 1 + sum(1 for _ in _above(parents, node))
                drawn = drafter.children(self.draft_VV[tokens[node]], positions_S + depth + 1, positions_S, len(children))
                tokens += list(drawn.unbind(1))
        return torch.stack(tokens, dim=1)


def _above(parents: tuple[int, ...], node: int) -> list[int]:
    """The nodes between a node and the root."""
    between = []
    while parents[node]:
        node = parents[node]
        between.append(node)
    return between


def _decode(rule: AcceptanceRule, drafter: Drafter, parents: tuple[int, ...], model: Markov, num: int) -> Tensor:
    """LENGTH tokens for each of `num` seeds, round after round; int64 [num, LENGTH]."""
    out = torch.full((num, LENGTH + 8), -1)
    lengths_S, last_S = torch.zeros(num, dtype=torch.int64), torch.zeros(num, dtype=torch.int64)
    sampling = sampling_of(SamplingParams(), torch.arange(num), VOCAB)
    parents_Sn, sizes_S = torch.tensor(parents).expand(num, -1), torch.full((num,), len(parents))
    while bool((lengths_S < LENGTH).any()):
        positions_S = START + lengths_S
        tokens_Sn = model.propose(drafter, parents, last_S, positions_S)
        logits_TV, laws_SnV = model.target_VV[tokens_Sn.flatten()], model.draft_VV.softmax(-1)[tokens_Sn]
        laws = laws_SnV if drafter.ranks_by == OWN else None
        accepted = rule.accept(verification(tokens_Sn, parents_Sn, sizes_S, positions_S, logits_TV, sampling, laws_MNV=laws))
        # sequences that are long enough stand still
        running_S = lengths_S < LENGTH
        for place in range(accepted.emitted_MD.shape[1]):
            writes_S = running_S & (place <= accepted.num_M)
            out[writes_S, lengths_S[writes_S]] = accepted.emitted_MD[writes_S, place]
            last_S = torch.where(writes_S, accepted.emitted_MD[:, place], last_S)
            lengths_S = lengths_S + writes_S
    return out[:, :LENGTH]


def _markov_pvalue(
    rule: AcceptanceRule, drafter: Drafter, parents: tuple[int, ...], num: int = 20000, error: float = 0.8
) -> float:
    model = Markov(5, error)
    tokens = _decode(rule, drafter, parents, model, num)
    cells = (tokens * VOCAB ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)
    return _pvalue([(torch.bincount(cells, minlength=VOCAB**LENGTH), model.law())])


def _pvalue(tables: list[tuple[Tensor, Tensor]]) -> float:
    """Chi-square of several independent tables (counts, probabilities) together; rare cells are pooled."""
    statistic, freedom = 0.0, 0
    for counts, law in tables:
        order = law.argsort(descending=True)
        expected, observed = (law * counts.sum())[order], counts[order].double()
        common = int((expected >= 5).sum())
        if common < len(expected):
            rest = torch.stack([expected[common:].sum(), observed[common:].sum()])
            if rest[0] < 5 and common > 1:
                common -= 1
                rest = torch.stack([expected[common:].sum(), observed[common:].sum()])
            expected, observed = torch.cat([expected[:common], rest[:1]]), torch.cat([observed[:common], rest[1:]])
        statistic += float(((observed - expected).square() / expected).sum())
        freedom += len(expected) - 1
    return float(stats.chi2.sf(statistic, freedom))


CASES = [
    ("shared-noise", SHARED, CHAIN),
    ("shared-noise", SHARED, LOPSIDED),
    ("shared-noise", FIXED, WIDE),
    ("rejection", OWN, CHAIN),
    ("rejection", OWN, PAIR),
    ("rejection", OWN, WIDE),
    ("rejection", OWN, LOPSIDED),
    ("rejection", FIXED, LOPSIDED),
    ("rejection", SHARED, LOPSIDED),
    ("rejection", FIXED, (0,)),
]


@pytest.mark.parametrize(("name", "ranks_by", "parents"), CASES)
def test_rules_draw_from_the_target(name: str, ranks_by: str, parents: tuple[int, ...]) -> None:
    assert _markov_pvalue(RULES[name](), Drafter(ranks_by), parents) > PLAUSIBLE


WrongRule = Callable[[pytest.MonkeyPatch], Drafter]


def _keeps_everything(patch: pytest.MonkeyPatch) -> Drafter:
    patch.setattr(rejection, "acceptance_probability", lambda p, q, x: torch.ones(len(p), dtype=p.dtype))
    return Drafter(OWN)


def _forgets_the_residual(patch: pytest.MonkeyPatch) -> Drafter:
    patch.setattr(rejection, "residual", lambda p, q: p)
    return Drafter(OWN)


WRONG = [_keeps_everything, _forgets_the_residual]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_rules_are_found_out(wrong: WrongRule, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _markov_pvalue(RULES["rejection"](), wrong(monkeypatch), PAIR) < ABSURD


@pytest.mark.parametrize(
    ("drafter", "parents", "error"),
    [
        (Drafter(OWN, keyed_by_round=False), CHAIN, 0.8),  # the next round drafts with it again
        (Drafter(OWN, domain=Domain.RESIDUAL, keyed_by_round=False), (0, 0), 2.5),  # the rule draws its own token with it
    ],
)
def test_noise_that_is_used_twice_is_found_out(drafter: Drafter, parents: tuple[int, ...], error: float) -> None:
    assert _markov_pvalue(RULES["rejection"](), drafter, parents, 60_000, error) < ABSURD
    assert _markov_pvalue(RULES["rejection"](), Drafter(OWN), parents, 60_000, error) > PLAUSIBLE


PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "def area(radius):\n    return",
    "My favourite colour is",
]
SEEDS = 2500  # draws per context and kind of tree
REAL = SamplingParams(temperature=0.9, top_k=50)


@dataclass(frozen=True)
class Context:
    """A context of the real model: logits behind it and behind each of its likely next tokens, on the tokens top_k can keep."""

    root_V: Tensor
    after_CV: Tensor
    candidates_C: Tensor  # among the V

    def accept(self, rule: AcceptanceRule, drafter: Drafter, width: int) -> Accepted:
        """One round over SEEDS seeds: `width` drafts behind the root, drawn from a flatter, tilted copy of its logits."""
        tilt_V = torch.zeros_like(self.root_V)
        tilt_V[self.candidates_C[::2]] = 0.7
        q_V = torch.full_like(self.root_V, -torch.inf)
        q_V[self.candidates_C] = (self.root_V * 0.8 + tilt_V)[self.candidates_C]
        positions_S = torch.full((SEEDS,), START)
        drafts_SK = drafter.children(q_V.expand(SEEDS, -1), positions_S + 1, positions_S, width)
        tokens_Sn = torch.cat([torch.zeros(SEEDS, 1, dtype=torch.int64), drafts_SK], 1)
        slots_V = torch.zeros(len(self.root_V), dtype=torch.int64)
        slots_V[self.candidates_C] = torch.arange(len(self.candidates_C))
        logits_SnV = torch.cat([self.root_V.expand(SEEDS, 1, -1), self.after_CV[slots_V[drafts_SK]]], dim=1)
        laws = q_V.softmax(-1).expand(SEEDS, width + 1, -1) if drafter.ranks_by == OWN else None
        sizes_S, sampling = torch.full((SEEDS,), width + 1), sampling_of(REAL, torch.arange(SEEDS), len(self.root_V))
        trees = tokens_Sn, torch.zeros_like(tokens_Sn), sizes_S, positions_S
        return rule.accept(verification(*trees, logits_SnV.flatten(0, 1), sampling, laws_MNV=laws, truncates=True))

    def tables(self, accepted: Accepted) -> list[tuple[Tensor, Tensor]]:
        """Counts and law of the first token, and of the second behind each draft that was kept."""
        vocab, kept_S = len(self.root_V), accepted.num_M > 0
        first_S = accepted.emitted_MD[:, 0]
        tables = [(torch.bincount(first_S, minlength=vocab), _law(self.root_V))]
        for slot, token in enumerate(self.candidates_C.tolist()):
            second = accepted.emitted_MD[kept_S & (first_S == token), 1]
            if len(second) >= 100:
                tables.append((torch.bincount(second, minlength=vocab), _law(self.after_CV[slot])))
        return tables


def _law(logits_V: Tensor) -> Tensor:
    """What REAL draws from, written out once more."""
    best = logits_V.topk(REAL.top_k)
    return torch.zeros(len(logits_V), dtype=torch.float64).scatter(
        0, best.indices, (best.values.double() / REAL.temperature).softmax(-1)
    )


@pytest.fixture(scope="module")
def contexts(smollm2: str, all_logits: Callable[[Model, list[int]], Tensor]) -> list[Context]:
    source = resolve(smollm2)
    model, tokenizer = load_model(source, dtype="float32", device="cpu"), Tokenizer.load(source)
    found = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        root = all_logits(model, ids)[-1]
        candidates = root.topk(8).indices
        after = torch.stack([all_logits(model, [*ids, token])[-1] for token in candidates.tolist()])
        # a token outside every row's best can never be drawn: leaving it out changes no distribution
        kept = torch.cat([root[None], after]).topk(REAL.top_k).indices.flatten().bincount().nonzero()[:, 0]
        found.append(Context(root[kept].clone(), after[:, kept].clone(), torch.searchsorted(kept, candidates)))
    return found


def _real_pvalue(contexts: list[Context], rule: AcceptanceRule, drafter: Drafter, widths: tuple[int, ...] = (1, 3)) -> float:
    return _pvalue([table for c in contexts for width in widths for table in c.tables(c.accept(rule, drafter, width))])


@pytest.mark.weights
@pytest.mark.parametrize(
    ("name", "ranks_by"), [("shared-noise", SHARED), ("shared-noise", FIXED), ("rejection", OWN), ("rejection", FIXED)]
)
def test_rules_draw_from_the_real_models_distributions(contexts: list[Context], name: str, ranks_by: str) -> None:
    assert _real_pvalue(contexts, RULES[name](), Drafter(ranks_by)) > PLAUSIBLE


@pytest.mark.weights
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_rules_are_found_out_on_the_real_model(
    contexts: list[Context], wrong: WrongRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _real_pvalue(contexts, RULES["rejection"](), wrong(monkeypatch), widths=(3,)) < ABSURD
