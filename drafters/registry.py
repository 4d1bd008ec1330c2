"""The drafters by name. To add one: its file, one line in `_FACTORIES`, its test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdec.config import EngineConfig
from specdec.draft.protocol import Drafter
from specdec.drafters.adversarial import AdversarialDrafter
from specdec.drafters.ngram import NgramDrafter
from specdec.drafters.prediction import PredictionDrafter
from specdec.drafters.suffix import SuffixDrafter
from specdec.errors import ConfigError

if TYPE_CHECKING:
    from specdec.drafters.draft_model import TreeModel

NO_DRAFTERS = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class DrafterResources:
    """What drafters may need of the engine.

    vocab_size: of the target. samples: whether the acceptance rule wants `Proposal.q`. draft_model_factory: loads the
    draft model, None where none is configured. oracle: see `AdversarialDrafter`.
    """

    vocab_size: int
    samples: bool = False
    draft_model_factory: "Callable[[], TreeModel] | None" = None
    oracle: Mapping[str, Sequence[int]] | None = None


def make_drafters(config: EngineConfig, resources: DrafterResources) -> list[Drafter]:
    """The drafters that `config.drafters` names, in its order.

    Raises:
        ConfigError: a name is unknown or given twice, or its drafter cannot be made.
    """
    names = [name for name in config.drafters if name != NO_DRAFTERS]
    for name in names:
        if name not in _FACTORIES:
            raise ConfigError(f"There is no drafter {name!r}; there are {', '.join((*DRAFTER_NAMES, NO_DRAFTERS))}.")
        if names.count(name) > 1:
            raise ConfigError(f"The drafter {name} is named twice; name it once.")
    return [_FACTORIES[name](source, resources) for source, name in enumerate(names)]


def _adversarial(source: int, resources: DrafterResources) -> Drafter:
    return AdversarialDrafter(source, resources.vocab_size, oracle=resources.oracle)


def _draft_model(source: int, resources: DrafterResources) -> Drafter:
    from specdec.drafters.draft_model import DraftModelDrafter  # brings torch, which the names do without

    if resources.draft_model_factory is None:
        raise ConfigError("The drafter draft-model needs a model of its own; name it with --draft-model.")
    model = resources.draft_model_factory()
    if model.vocab_size != resources.vocab_size:
        raise ConfigError(
            f"The draft model has {model.vocab_size} tokens and the target {resources.vocab_size}; "
            "a draft model needs the target's tokenizer."
        )
    return DraftModelDrafter(source, model, samples=resources.samples)


_FACTORIES: dict[str, Callable[[int, DrafterResources], Drafter]] = {
    "ngram": lambda source, _: NgramDrafter(source),
    "suffix": lambda source, _: SuffixDrafter(source),
    "prediction": lambda source, _: PredictionDrafter(source),
    "draft-model": _draft_model,
    "adversarial": _adversarial,
}
_NOT_SERVED = ("adversarial",)  # for tests and benches
DRAFTER_NAMES = tuple(name for name in _FACTORIES if name not in _NOT_SERVED)
