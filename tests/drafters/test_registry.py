"""Drafters by name."""

import pytest

from specdec.config import EngineConfig
from specdec.drafters.registry import DrafterResources, make_drafters
from specdec.errors import ConfigError

RESOURCES = DrafterResources(vocab_size=10)


def test_drafters_come_in_the_configured_order() -> None:
    made = make_drafters(EngineConfig(drafters=("suffix", "ngram")), RESOURCES)
    assert [drafter.name for drafter in made] == ["suffix", "ngram"]


def test_none_is_no_drafter() -> None:
    assert make_drafters(EngineConfig(drafters=("none",)), RESOURCES) == []


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'medium'.*ngram, suffix, prediction, draft-model, none"):
        make_drafters(EngineConfig(drafters=("medium",)), RESOURCES)


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        make_drafters(EngineConfig(drafters=("ngram", "ngram")), RESOURCES)
