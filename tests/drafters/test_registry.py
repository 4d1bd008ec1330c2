"""Drafters by name."""

import pytest
import torch

from specdec.config import DRAFTERS, NO_DRAFTERS, EngineConfig
from specdec.draft.protocol import Drafter
from specdec.drafters.registry import DrafterFactory, DrafterResources, make_drafters, on_host
from specdec.errors import ConfigError

RESOURCES = DrafterResources(num_slots=2, max_model_len=64, max_drafts=7, vocab_size=10, device=torch.device("cpu"))


def made(*names: str, own: dict[str, DrafterFactory] | None = None) -> list[Drafter]:
    return make_drafters(EngineConfig(drafters=names), RESOURCES, own)


def test_names_that_one_drafter_serves_make_one_in_their_order() -> None:
    lookup, lookahead = made("suffix", "lookahead", "ngram")
    assert lookup.names == ("suffix", "ngram")
    assert lookahead.names == ("lookahead",)


def test_none_is_no_drafter() -> None:
    assert made(NO_DRAFTERS) == []


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=rf"'medium'.*{', '.join((*DRAFTERS, 'mine', NO_DRAFTERS))}"):
        made("medium", own={"mine": on_host(lambda tokens: [])})


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        made("ngram", "ngram")


@pytest.mark.parametrize("name", ["ngram", "adversarial", NO_DRAFTERS])
def test_a_drafter_of_ones_own_takes_no_name_that_is_there(name: str) -> None:
    with pytest.raises(ConfigError, match="another name"):
        made("ngram", own={name: on_host(lambda tokens: [])})
