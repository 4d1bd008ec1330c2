"""What the device knows of a sequence is what its request said, and nothing is left of who had the slot before."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from specdec.kernels.logit_edits import IN_PROMPT
from specdec.request import SamplingParams
from specdec.round.slots import Needs, Occupant, Slots

VOCAB, PAGE, SPARE_PAGE = 50, 16, 77
CPU = torch.device("cpu")


def slots() -> Slots:
    return Slots(3, 60, PAGE, SPARE_PAGE, VOCAB, CPU)


def occupant(sampling: SamplingParams, **changed: Any) -> Occupant:
    known: dict[str, Any] = {
        "tokens": [5, 6, 7, 7, 9],
        "num_prompt_tokens": 3,
        "stop_ids": frozenset({2, 4}),
        "pages": [8, 3],
    }
    return Occupant(sampling=sampling, **known | changed)


def entered(sampling: SamplingParams, **changed: Any) -> Slots:
    found = slots()
    found.enter(1, occupant(sampling, **changed), 0b101, restricted=False)
    return found


def bias_list(found: Slots, slot: int = 1) -> list[tuple[int, float, int]]:
    edits = found.sampling.edits
    size = int(edits.sizes_S[slot])
    columns = (values[slot, :size].tolist() for values in (edits.tokens_SB, edits.values_SB, edits.untils_SB))
    return list(zip(*columns, strict=True))


def test_text_and_pages_are_there_and_a_page_that_is_not_held_is_the_spare_one() -> None:
    found = entered(SamplingParams())
    assert found.texts.tokens_SL[1, :5].tolist() == [5, 6, 7, 7, 9]
    assert found.texts.lengths_S.tolist() == [1, 5, 1, 1]
    assert found.texts.pages_SP[1].tolist() == [8, 3, SPARE_PAGE, SPARE_PAGE]
    assert found.allowed_S[1] == 0b101
    found.set_pages([1, 2, 1], [2, 0, 3], [11, 12, 13])
    assert found.texts.pages_SP[1].tolist() == [8, 3, 11, 13]
    assert found.texts.pages_SP[2].tolist() == [12, *[SPARE_PAGE] * 3]
    found.set_pages([], [], [])
    assert found.texts.tokens_SL.shape[1] >= found.max_pages * PAGE + 64, "room for a tree behind the last position"


def test_sampling_parameters_reach_the_device() -> None:
    sampling = entered(SamplingParams(temperature=0.5, top_k=7, top_p=0.75, min_p=0.25, seed=2**62 + 1)).sampling
    assert int(sampling.keys.seeds_S[1]) == 2**62 + 1
    assert sampling.keys.temperatures_S[1] == 0.5
    assert bool(sampling.keys.noisy_S[1])
    assert bool(sampling.truncated_S[1])
    one = sampling.truncation.of(torch.tensor([1]))
    assert (one.top_k_N.item(), one.top_p_N.item(), one.min_p_N.item()) == (7, 0.75, 0.25)
    assert one.top_p_N.dtype == torch.float64


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-39, 9e-6])
@pytest.mark.parametrize("params", [{}, {"top_k": 3, "top_p": 0.5, "min_p": 0.1}])
def test_a_greedy_sequence_has_temperature_one_no_noise_and_no_filter(temperature: float, params: dict[str, Any]) -> None:
    sampling = entered(SamplingParams(temperature=temperature, seed=5, **params)).sampling
    assert sampling.keys.temperatures_S[1] == 1.0
    assert not sampling.keys.noisy_S[1]
    assert not sampling.truncated_S[1]
    one = sampling.truncation.of(torch.tensor([1]))
    assert (one.top_k_N.item(), one.top_p_N.item(), one.min_p_N.item()) == (VOCAB, 1.0, 0.0)


def test_top_k_is_at_most_the_vocabulary() -> None:
    assert entered(SamplingParams(top_k=10_000)).sampling.truncation.top_k_N[1] == VOCAB


def test_biases_and_bans_become_entries_and_unknown_tokens_none() -> None:
    found = entered(SamplingParams(logit_bias={3: 2.5, 60: 1.0, 2: -1.0}, min_tokens=4))
    always = bias_list(found)[0][2]
    assert bias_list(found) == [
        (3, 2.5, always),
        (2, -1.0, always),
        (2, -torch.inf, 3 + 4),
        (4, -torch.inf, 3 + 4),
    ]
    assert always > 1 << 40


def test_lists_grow_and_keep_what_others_have() -> None:
    found = entered(SamplingParams(logit_bias={3: 2.5}))
    wide = Slots(2, 60, PAGE, SPARE_PAGE, 4000, CPU)
    wide.enter(0, occupant(SamplingParams(logit_bias={9: 1.5})), 1, restricted=False)
    room = wide.list_room
    wide.enter(1, occupant(SamplingParams(logit_bias=dict.fromkeys(range(room + 1), 0.5))), 1, restricted=False)
    assert wide.list_room > room
    assert [entry[:2] for entry in bias_list(wide, 0)] == [(9, 1.5)]
    assert [entry[:2] for entry in bias_list(wide, 1)] == [(token, 0.5) for token in range(room + 1)]
    assert found.list_room == room


def test_counts_tell_output_from_prompt() -> None:
    edits = entered(SamplingParams(frequency_penalty=0.5), tokens=[5, 6, 5, 7, 7, 6]).sampling.edits
    counts = edits.counts_SV[1]
    assert counts[[5, 6, 7, 8]].tolist() == [IN_PROMPT, IN_PROMPT + 1, 2, 0]
    assert [float(values[1]) for values in (edits.presence_S, edits.frequency_S, edits.repetition_S)] == [0.0, 0.5, 1.0]
    assert bool(edits.penalised_S[1])


NEEDS: list[tuple[dict[str, Any], Needs]] = [
    ({}, Needs(0)),
    ({"top_p": 0.9}, Needs.TRUNCATED),
    ({"temperature": 0.0, "top_p": 0.9}, Needs(0)),
    ({"logit_bias": {1: 1.0}}, Needs.EDITED),
    ({"logit_bias": {VOCAB: 1.0}}, Needs(0)),
    ({"presence_penalty": 1.0, "logprobs": 0}, Needs.EDITED | Needs.SCORED),
    ({"min_tokens": 1}, Needs.EDITED),
]


@pytest.mark.parametrize(("params", "needs"), NEEDS)
@pytest.mark.parametrize("restricted", [False, True])
def test_the_host_knows_which_steps_a_slot_needs(params: dict[str, Any], needs: Needs, restricted: bool) -> None:
    found = slots()
    found.needs[2] = -1
    found.enter(2, occupant(SamplingParams(**params)), 1, restricted)
    assert Needs(int(found.needs[2])) == needs | (Needs.RESTRICTED if restricted else Needs(0))


def test_nothing_is_left_of_who_had_the_slot_before() -> None:
    odd = SamplingParams(
        temperature=0.7, top_k=5, top_p=0.5, min_p=0.1, seed=9, repetition_penalty=1.5, logit_bias={1: 2.0}, min_tokens=3
    )
    used, fresh = slots(), slots()
    used.enter(1, occupant(odd, tokens=[1] * 40, pages=[4, 5, 6]), 1, restricted=True)
    for found in (used, fresh):
        found.enter(1, occupant(SamplingParams(seed=3)), 1, restricted=False)
    assert used.needs.tolist() == fresh.needs.tolist()
    assert torch.equal(used.texts.pages_SP, fresh.texts.pages_SP)
    assert torch.equal(used.texts.lengths_S, fresh.texts.lengths_S)
    assert bias_list(used) == bias_list(fresh) == []
    for part in ("keys", "truncation"):
        mine, theirs = getattr(used.sampling, part), getattr(fresh.sampling, part)
        for field in fields(mine):
            assert torch.equal(getattr(mine, field.name), getattr(theirs, field.name)), field.name
    assert not used.sampling.edits.penalised_S.any()


def test_the_spare_slot_draws_like_any_other() -> None:
    sampling = slots().sampling
    assert sampling.keys.temperatures_S.tolist() == [1.0] * 4
    assert sampling.truncation.top_k_N.tolist() == [VOCAB] * 4
    assert sampling.edits.repetition_S.tolist() == [1.0] * 4
    assert slots().spare == 3
