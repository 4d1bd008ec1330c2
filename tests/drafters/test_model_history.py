"""The draft model in an engine: it knows every text as it came to be, however rounds went; and how often it is right."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec import assemble
from specdec.config import EngineConfig
from specdec.draft.cost import CostTable
from specdec.draft.protocol import Drafter, Drafts, DraftView
from specdec.drafters.adversarial.drafter import AdversarialDrafter, oracle_key
from specdec.drafters.model import ModelDrafter
from specdec.drafters.registry import DrafterResources
from specdec.llm import LLM, Completion
from specdec.models.base import Model
from specdec.request import Request, SamplingParams
from tests.drafters.conftest import SAMPLINGS
from tests.end_to_end.conftest import Stage
from tests.specdec.conftest import PlainContext

Ways = dict[str, Any]
PROMPT = tuple((i * 7) % 250 + 3 for i in range(45))
PROMPTS = (PROMPT, (*PROMPT[:33], 9, 8, 7), (5,), tuple(range(10, 50)))


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Callable[..., Path]) -> assemble.LoadedModel:
    folder = tiny_checkpoint("llama", num_hidden_layers=2)
    return assemble.load(EngineConfig(model=str(folder), dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def alike(tiny_checkpoint: Callable[..., Path]) -> Model:
    """Right about as often as wrong."""
    folder = tiny_checkpoint("llama", num_hidden_layers=2, rms_norm_eps=0.01)
    return assemble.load(EngineConfig(model=str(folder), dtype="float32", device="cpu")).model


class Watched(ModelDrafter):
    """Notes what text its logits were held to follow: a member's own, and its drafts up to there."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, samples=False)
        self.seen: dict[tuple[int, ...], Tensor] = {}

    def draft(self, view: DraftView) -> Drafts:
        ready = (view.has_tree_M & (view.starts_M < 0)).tolist()
        texts = [
            self._text(view, slot) if is_ready else None for slot, is_ready in zip(view.slots_M.tolist(), ready, strict=True)
        ]

        def noted(logits_MV: Tensor, positions_M: Tensor, num: int) -> tuple[Tensor, Tensor]:
            found = view.rank(logits_MV, positions_M, num)
            for member, text in enumerate(texts):
                if text is not None and int(positions_M[member]) < self._room(view, member):
                    self.seen[tuple(text)] = logits_MV[member].clone()
                    text.append(int(found[0][member, 0]))
            return found

        drafts = super().draft(replace(view, rank=noted))
        assert (drafts.candidates.tokens_MC[view.starts_M >= 0] < 0).all(), "no guess before it has read the prompt"
        return drafts

    @staticmethod
    def _text(view: DraftView, slot: int) -> list[int]:
        tokens: list[int] = view.texts.tokens_SL[slot, : int(view.texts.lengths_S[slot])].tolist()
        return tokens

    @staticmethod
    def _room(view: DraftView, member: int) -> int:
        """Positions that its pages hold; drafts behind them are guesses."""
        held = view.texts.pages_SP[view.slots_M[member]] != view.spare_entry // view.page_size
        return int(held[: view.num_pages].sum()) * view.page_size


SAMPLED: tuple[Ways, ...] = ({"temperature": 0.0}, {"seed": 1}, {"temperature": 0.7, "seed": 2, "top_p": 0.9})
REQUESTS = [
    Request(request_id=f"{p}-{s}", prompt_ids=prompt, sampling=SamplingParams(max_tokens=28, ignore_eos=True, **sampling))
    for p, prompt in enumerate(PROMPTS)
    for s, sampling in enumerate(SAMPLED)
]


@pytest.fixture(scope="module")
def expected(loaded: assemble.LoadedModel) -> dict[str, Completion]:
    return {done.request_id: done for done in Stage(loaded).plain().generate(REQUESTS)}


def fresh(model: Model, text: tuple[int, ...]) -> Tensor:
    """The logits of a text's end, from nothing but the text."""
    with torch.inference_mode():
        tokens = torch.tensor(text)
        return model.logits(model.forward(tokens, PlainContext(model).at(0, len(text))))[-1]


def hold_to_texts(watched: Watched, model: Model, at_least: int) -> None:
    """Of a sample of all rounds, among them the last."""
    texts = list(watched.seen)
    assert len(texts) > at_least
    for text in [*texts[:: max(len(texts) // 40, 1)], *texts[-5:]]:
        torch.testing.assert_close(watched.seen[text], fresh(model, text), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("ways", "as_gpu"),
    [
        ({"chunk_tokens": 7, "max_batch": 3}, False),
        ({"chunk_tokens": 19, "depth": 1}, True),
        ({"max_tree_nodes": 3, "prefix_cache": False}, True),
        ({"pages": 8, "max_batch": 6}, False),
        ({"pages": 8, "max_batch": 6, "prefix_cache": False, "depth": 1}, True),
        ({"adaptive": True}, False),
    ],
    ids=["chunks", "ahead of the host", "small trees", "preempted", "preempted, no prefixes", "planned"],
)
def test_it_knows_the_text_however_rounds_went(
    loaded: assemble.LoadedModel,
    alike: Model,
    expected: dict[str, Completion],
    ways: Ways,
    as_gpu: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside a drafter whose right drafts lie off the spine, wrong ones beside them. The second time prefixes are cached."""
    monkeypatch.setattr(CostTable, "drafting", lambda *_: 0.0)  # beside so small a model drafters would rest
    watched = Watched(alike)
    oracle = {oracle_key(asked.prompt_ids, asked.sampling): expected[asked.request_id].token_ids for asked in REQUESTS}

    def adversarial(names: tuple[str, ...], resources: DrafterResources) -> Drafter:
        del names
        sizes = resources.num_slots, resources.max_model_len, resources.vocab_size, resources.device
        return AdversarialDrafter(*sizes, oracle=oracle)

    fields: Ways = {"max_batch": 6, "adaptive": False, "max_tree_nodes": 12, "cache_gb": 0.01} | ways
    if (pages := fields.pop("pages", None)) is not None:
        fields["cache_gb"] = Stage(loaded)._gigabytes(pages, with_draft_model=True)
    config = EngineConfig(
        model=loaded.name, dtype="float32", device="cpu", page_size=16, drafters=("watched", "theirs"), **fields
    )
    drafters = {"watched": lambda names, resources: watched, "theirs": adversarial}
    llm = LLM(assemble.build(config, loaded=loaded, fixed_shapes=as_gpu or None, drafters=drafters))
    first, again = llm.generate(REQUESTS), llm.generate(REQUESTS[::2])
    for found in (*first, *again):
        assert found.token_ids == expected[found.request_id].token_ids
    hold_to_texts(watched, alike, at_least=60)
    drafted, kept = total(first, "drafted_by_drafter"), total(first, "accepted_by_drafter")
    for name in ("draft-model", "adversarial"):
        assert 0 < kept[name] < drafted[name]
    assert any(found.num_cached_tokens for found in again) == ways.get("prefix_cache", True)
    assert bool(llm.engine.status().num_preemptions) == (pages is not None)


def total(done: Sequence[Completion], name: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for completion in done:
        found.update(getattr(completion.stats, name))
    return found


@pytest.mark.parametrize("acceptance", ["shared-noise", "rejection"])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_a_drafter_that_is_the_target_is_nearly_always_right(loaded: assemble.LoadedModel, name: str, acceptance: str) -> None:
    """So all of its five depths are kept; under the rejection rule what is drawn knows no filters, and is dropped by them."""
    llm = Stage(loaded).llm(
        drafters=("draft-model",), draft_model=loaded.name, adaptive=False, max_tree_nodes=12, acceptance=acceptance
    )
    sampling = replace(SAMPLINGS[name], max_tokens=61, ignore_eos=True)
    asked = [
        Request(request_id=str(seed), prompt_ids=PROMPTS[seed % 4], sampling=replace(sampling, seed=seed)) for seed in range(4)
    ]
    done = llm.generate(asked)
    whole = sum(sum(found.stats.accepted_histogram[5:]) for found in done)
    if acceptance == "rejection" and name == "filters":
        assert any(found.stats.num_accepted_tokens for found in done)
        assert whole < 18
    else:
        # the round that ends a prompt has no drafts, and trees of the last six tokens have no room for all that is offered
        assert whole >= 35, "of nine for each answer"


def test_a_drafter_that_is_another_model_is_mostly_wrong(
    loaded: assemble.LoadedModel, tiny_checkpoint: Callable[..., Path]
) -> None:
    other = str(tiny_checkpoint("llama", 9, num_hidden_layers=2))
    llm = Stage(loaded).llm(drafters=("draft-model",), draft_model=other, adaptive=False, max_tree_nodes=12)
    done = llm.generate(REQUESTS)
    assert sum(found.stats.num_accepted_tokens for found in done) / sum(found.stats.num_steps for found in done) < 1.0
