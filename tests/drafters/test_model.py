"""The draft model: what it proposes and how sure it says it is, by a model that reads one token."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from scipy import stats
from torch import Tensor

from specdec.cache.kinds import Caches
from specdec.config import EngineConfig
from specdec.draft.protocol import Drafts, DraftView
from specdec.drafters.model import ModelDrafter
from specdec.drafters.registry import DrafterResources, make_drafters
from specdec.errors import ConfigError
from specdec.kernels.gumbel import Keys, gumbel_argmax
from specdec.models.base import Model, RecurrentSpec
from specdec.request import SamplingParams
from specdec.round.drafts import Drafting, SharedNoiseRanking
from specdec.round.sample.draw import Nucleus
from specdec.round.sample.truncation import truncate
from specdec.round.slots import Occupant, Slots
from tests.drafters.conftest import CPU, SAMPLINGS, chosen, no_rank, trees_of, view_of

VOCAB = 7
TABLE = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(2)) * 1.5
UNLIKELY = 1e-4  # a right drafter falls below it once in ten thousand sets of seeds; these are fixed


class Bigram:
    """A model whose logits depend on the row's token alone, and so need no cache."""

    config = SimpleNamespace(vocab_size=VOCAB)
    cache_specs = ()
    dtype = torch.float32
    device = CPU

    def forward(self, tokens_R: Tensor, ctx: object) -> Tensor:
        del ctx
        return TABLE[tokens_R]

    def logits(self, hidden_RE: Tensor) -> Tensor:
        return hidden_RE


def drafter_of(*, samples: bool, depth: int = 5, width: int = 2) -> ModelDrafter:
    made = ModelDrafter(cast(Model, Bigram()), samples=samples, depth=depth, width=width)
    made.bind(cast(Caches, None), 0, 1)
    return made


def slots_of(texts: Sequence[Sequence[int]], samplings: Sequence[SamplingParams]) -> Slots:
    slots = Slots(len(texts), 64, 64, 0, VOCAB, CPU)
    for slot, (text, sampling) in enumerate(zip(texts, samplings, strict=True)):
        occupant = Occupant(tokens=text, num_prompt_tokens=1, sampling=sampling, stop_ids=frozenset(), pages=[0])
        slots.enter(slot, occupant, 1, restricted=False)
    return slots


def view(slots: Slots, num_nodes: int = 64, nucleus: Nucleus = Nucleus.EXACT) -> DraftView:
    members = list(range(slots.num_slots))
    rank = SharedNoiseRanking(torch.tensor(members), slots.sampling, nucleus)
    return view_of(slots.texts, members, num_nodes=num_nodes, keys=slots.sampling.keys, rank=rank, page_size=64)


@pytest.mark.parametrize("name", SAMPLINGS)
def test_its_spine_is_what_a_target_like_it_would_say_itself(name: str) -> None:
    """At any temperature, with the target's own noise; its leaves are the runners-up."""
    samplings = [replace(SAMPLINGS[name], seed=seed) for seed in range(40)]
    slots = slots_of([[5, seed % VOCAB] for seed in range(40)], samplings)
    drafts = drafter_of(samples=False).draft(view(slots))
    assert drafts.laws_MLV is None
    assert not drafts.repeats
    tokens, parents = drafts.candidates.tokens_MC.tolist(), drafts.candidates.parents_MC.tolist()
    assert parents == [[-1, -1, 0, 0, 2, 2, 4, 4, 6, 6]] * 40
    sampling, members = slots.sampling, torch.arange(40)
    at_M, runners_up = members % VOCAB, 0
    for level in range(5):
        scores = TABLE[at_M] / sampling.keys.temperatures_S[:40, None]
        if name == "filters":
            scores = truncate(scores, sampling.truncation.of(members))
        ones = Keys(sampling.keys.seeds_S, sampling.ones_S, sampling.keys.noisy_S)
        own_M, _ = gumbel_argmax(scores.contiguous(), ones, members, torch.full((40,), 1 + level))
        assert [row[2 * level] for row in tokens] == own_M.tolist()
        without = scores.scatter(1, own_M[:, None], -torch.inf).contiguous()
        next_M, tops_M = gumbel_argmax(without, ones, members, torch.full((40,), 1 + level))
        expected = torch.where(tops_M > -torch.inf, next_M, -1)
        assert [row[2 * level + 1] for row in tokens] == expected.tolist()
        runners_up += int((expected >= 0).sum())
        at_M = own_M
    assert runners_up > 150


def test_a_greedy_tree_is_the_model_s_own_continuation() -> None:
    slots = slots_of([[3], [1, 2, 6]], [SamplingParams(temperature=0.0)] * 2)
    verified, _ = chosen(Drafting([drafter_of(samples=False)], 63, CPU), view(slots), [11, 11])
    for tree, root in zip(trees_of(verified, [3, 6]), (3, 6), strict=True):
        spine, at = [], root
        for _ in range(5):
            at = int(TABLE[at].argmax())
            spine.append(at)
        on_path = [
            node for node in range(1, len(tree)) if tree.tokens[tree.path(node)[1:]].tolist() == spine[: tree.depths()[node]]
        ]
        assert len(on_path) == 5
        assert len(tree) == 11
        for node in range(1, 11):
            best_two = TABLE[tree.tokens[tree.parents[node]]].topk(2).indices.tolist()
            assert tree.tokens[node] in best_two


@pytest.mark.parametrize(("num_nodes", "depth"), [(1, 1), (2, 1), (3, 2), (6, 5), (64, 5)])
@pytest.mark.parametrize("samples", [False, True])
def test_no_deeper_than_there_are_nodes(samples: bool, num_nodes: int, depth: int) -> None:
    slots = slots_of([[3], [4]], [SamplingParams(), SamplingParams(temperature=0.0)])
    drafts = drafter_of(samples=samples).draft(view(slots, num_nodes))
    assert drafts.candidates.tokens_MC.shape == (2, 2 * depth)
    if samples:
        assert drafts.laws_MLV is not None
        assert drafts.laws_MLV.shape == (2, 2 * depth + 1, VOCAB)


def test_the_surer_the_model_the_likelier_the_draft() -> None:
    drafter = drafter_of(samples=False, depth=1)
    slots = slots_of([[token] for token in range(VOCAB)], [SamplingParams(temperature=0.0)] * VOCAB)
    kinds = drafter.draft(view(slots)).candidates.kinds_MC
    chances = TABLE.softmax(1).topk(2).values
    priors = torch.from_numpy(drafter.kinds.priors_X)[kinds]
    assert (priors - chances).abs().max() < 0.09
    assert drafter.kinds.elders_X is None


COUNT = 6000


@pytest.fixture(scope="module")
def drawn() -> tuple[Drafts, DraftView]:
    """Two depths of two, drawn for many seeds behind one root; and one greedy member."""
    samplings = [SamplingParams(temperature=0.8, seed=seed) for seed in range(COUNT)]
    slots = slots_of([[5, 3]] * (COUNT + 1), [*samplings, SamplingParams(temperature=0.0)])
    seen = replace(view(slots), rank=no_rank)  # what is drawn is not ranked
    return drafter_of(samples=True, depth=2).draft(seen), seen


def p_value(found: Sequence[Any], law: dict[Any, float]) -> float:
    counts = Counter(found)
    assert counts.keys() <= law.keys()
    kept = [key for key, chance in law.items() if chance * len(found) > 5]
    rest = len(found) - sum(counts[key] for key in kept)
    expected = [law[key] * len(found) for key in kept]
    value: float = stats.chisquare([*(counts[key] for key in kept), rest], [*expected, len(found) - sum(expected)]).pvalue
    return value


def pairs(law_V: Tensor) -> dict[tuple[int, int], float]:
    """Two tokens in the order that they are drawn without replacement."""
    q = law_V.double().tolist()
    return {(a, b): q[a] * q[b] / (1 - q[a]) for a in range(VOCAB) for b in range(VOCAB) if a != b}


def test_sampled_siblings_are_drawn_without_replacement_from_the_law_that_is_stated(drawn: tuple[Drafts, DraftView]) -> None:
    drafts, _ = drawn
    laws, tokens = drafts.laws_MLV, drafts.candidates.tokens_MC[:COUNT]
    assert laws is not None
    law_V = (TABLE[3] / 0.8).softmax(0)
    assert torch.allclose(laws[:COUNT, 0], law_V, atol=1e-6)
    assert p_value([tuple(pair) for pair in tokens[:, :2].tolist()], pairs(law_V)) > UNLIKELY
    flatter = (TABLE[3] / 1.0).softmax(0)
    assert p_value([tuple(pair) for pair in tokens[:, :2].tolist()], pairs(flatter)) < UNLIKELY, "enough to tell"


def test_what_is_drawn_below_a_draft_has_the_law_of_that_draft_and_noise_of_its_own(drawn: tuple[Drafts, DraftView]) -> None:
    drafts, _ = drawn
    laws, tokens = drafts.laws_MLV, drafts.candidates.tokens_MC[:COUNT].tolist()
    assert laws is not None
    for first in range(VOCAB):
        rows = [row for row in range(COUNT) if tokens[row][0] == first]
        if len(rows) > 200:
            law_V = (TABLE[first] / 0.8).softmax(0)
            assert torch.allclose(laws[rows, 1], law_V, atol=1e-6)
            assert p_value([tuple(tokens[row][2:]) for row in rows], pairs(law_V)) > UNLIKELY


def test_where_nothing_is_drawn_there_is_no_law_and_no_token(drawn: tuple[Drafts, DraftView]) -> None:
    drafts, _ = drawn
    laws, tokens = drafts.laws_MLV, drafts.candidates.tokens_MC
    assert laws is not None
    assert not laws[:, 2:].any(), "below the second of a pair, and below the last ones"
    best = int(TABLE[3].argmax())
    assert tokens[COUNT].tolist() == [best, -1, int(TABLE[best].argmax()), -1], "who is greedy draws one token"
    assert laws[COUNT, 0].nonzero().flatten().tolist() == [best]
    assert laws[COUNT, 0, best] == 1.0


def test_the_shape_of_a_drawn_tree_does_not_depend_on_what_was_drawn(drawn: tuple[Drafts, DraftView]) -> None:
    """Not on how likely the tokens were either."""
    _, seen = drawn
    few = replace(seen, slots_M=seen.slots_M[:300], starts_M=seen.starts_M[:300])
    drafting = Drafting([drafter_of(samples=True, depth=3)], 63, CPU)
    for nodes in (2, 3, 4, 6):
        verified, laws = chosen(drafting, few, nodes)
        assert laws is not None
        assert (verified.trees.counts_M == nodes - 1).all()
        assert (verified.trees.picks_MN == verified.trees.picks_MN[0]).all()
        assert (verified.trees.parents_MN == verified.trees.parents_MN[0]).all()
        assert len({tuple(row) for row in verified.trees.tokens_MN.tolist()}) > 5


def test_noise_of_one_round_does_not_come_back_in_the_next() -> None:
    """A draft that was looked at and dropped has told of its noise."""
    drafter, samplings = drafter_of(samples=True, depth=2, width=1), [SamplingParams(seed=seed) for seed in range(2000)]
    before = drafter.draft(view(slots_of([[5, 3]] * 2000, samplings))).candidates.tokens_MC
    ahead = before[:, 0].tolist()
    after = drafter.draft(view(slots_of([[5, 3, token] for token in ahead], samplings))).candidates.tokens_MC
    q = TABLE.softmax(1)
    again = sum(float((q[token] ** 2).sum()) for token in ahead) / 2000  # drawn twice, alike by chance
    assert abs(float((before[:, 1] == after[:, 0]).float().mean()) - again) < 0.05


def test_what_is_drawn_has_nothing_of_the_target_s_noise() -> None:
    """At position 0 too, where a round's number adds nothing."""
    slots = slots_of([[3]] * 2000, [SamplingParams(seed=seed) for seed in range(2000)])
    drawn = drafter_of(samples=True, depth=1).draft(view(slots)).candidates.tokens_MC[:, 0]
    members, sampling = torch.arange(2000), slots.sampling
    own, _ = gumbel_argmax(TABLE[3].repeat(2000, 1), sampling.keys, members, torch.zeros(2000, dtype=torch.int64))
    by_chance = float((TABLE[3].softmax(0) ** 2).sum())
    assert abs(float((drawn == own).float().mean()) - by_chance) < 0.05


def test_a_model_that_keeps_states_is_refused() -> None:
    specs = (RecurrentSpec(state_shape=(2,), row_width=2),)

    def load() -> Model:
        return cast(Model, SimpleNamespace(config=SimpleNamespace(vocab_size=VOCAB), cache_specs=specs, device=CPU))

    resources = DrafterResources(
        num_slots=2, max_model_len=64, max_drafts=7, vocab_size=VOCAB, device=CPU, load_draft_model=load
    )
    with pytest.raises(ConfigError, match="states that no draft can take back"):
        make_drafters(EngineConfig(drafters=("draft-model",), draft_model="tiny"), resources)


def test_without_a_model_it_says_how_to_name_one() -> None:
    resources = DrafterResources(num_slots=2, max_model_len=64, max_drafts=7, vocab_size=VOCAB, device=CPU)
    with pytest.raises(ConfigError, match="--draft-model"):
        make_drafters(SimpleNamespace(drafters=("draft-model",)), resources)  # type: ignore[arg-type]
