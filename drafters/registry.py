"""The drafters by name. To add one: its folder, one line in `_FACTORIES`, its test.

One from outside is a factory as well, given to `specdec.assemble.build` under its name; see `on_host` for plain functions.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import torch

from specdec.cache.kinds import has_state
from specdec.config import DRAFTERS, NO_DRAFTERS, EngineConfig
from specdec.draft.protocol import Drafter
from specdec.drafters.adversarial import AdversarialDrafter
from specdec.drafters.adversarial.drafter import OracleKey
from specdec.drafters.host import HostDrafter, Propose
from specdec.drafters.lookahead import LookaheadDrafter
from specdec.drafters.lookup import LookupDrafter
from specdec.drafters.model import ModelDrafter
from specdec.errors import ConfigError
from specdec.models.base import Model
from specdec.round.forward import Vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class DrafterResources:
    """What drafters may need of the engine.

    num_slots: sequences at once. max_model_len: tokens of one. max_drafts: of one chain that are worth
    looking for. vocab_size: of the target. target: for drafters that share its embedding, its head, its sizes. samples: whether
    the acceptance rule wants to know what sampled candidates were drawn from. load_draft_model: None where none is configured.
    draftable: tokens that a draft model may draft, since the target has them too; empty: all.
    oracle: see `AdversarialDrafter`.
    """

    num_slots: int
    max_model_len: int
    max_drafts: int
    vocab_size: int
    device: torch.device
    target: Model | None = None
    samples: bool = False
    load_draft_model: Callable[[], Model] | None = None
    draftable: Set[int] = frozenset()
    oracle: Mapping[OracleKey, Sequence[int]] | None = None


DrafterFactory = Callable[[tuple[str, ...], DrafterResources], Drafter]  # all names that one drafter is to serve


def make_drafters(
    config: EngineConfig, resources: DrafterResources, own: Mapping[str, DrafterFactory] | None = None
) -> list[Drafter]:
    """The drafters that `config.drafters` names, in its order; names that one drafter serves together make one.

    Args:
        config: the names.
        resources: what they may need.
        own: drafters from outside by name, beside those that are here.

    Raises:
        ConfigError: a name is unknown, taken or given twice, or its drafter cannot be made.
    """
    own = own or {}
    if taken := [name for name in own if name in (*_FACTORIES, NO_DRAFTERS)]:
        raise ConfigError(f"There is a drafter {taken[0]!r} already; give yours another name.")
    factories = {**_FACTORIES, **own}
    names = [name for name in config.drafters if name != NO_DRAFTERS]
    for name in names:
        if name not in factories:
            raise ConfigError(f"There is no drafter {name!r}; there are {', '.join((*DRAFTERS, *own, NO_DRAFTERS))}.")
        if names.count(name) > 1:
            raise ConfigError(f"The drafter {name} is named twice; name it once.")
    served = dict.fromkeys(factories[name] for name in names)
    return [make(tuple(name for name in names if factories[name] is make), resources) for make in served]


def on_host(propose: Propose) -> DrafterFactory:
    """A factory for a drafter in plain Python.

    Args:
        propose: see `HostDrafter`. It is called between two rounds, so every millisecond in it is lost to all sequences.
    """

    def make(names: tuple[str, ...], resources: DrafterResources) -> Drafter:
        return HostDrafter(
            names[0],
            propose,
            num_slots=resources.num_slots,
            max_drafts=resources.max_drafts,
            vocab_size=resources.vocab_size,
            device=resources.device,
        )

    return make


def _lookup(names: tuple[str, ...], resources: DrafterResources) -> Drafter:
    return LookupDrafter(names, resources.num_slots, resources.max_model_len, resources.max_drafts, resources.device)


def _lookahead(names: tuple[str, ...], resources: DrafterResources) -> Drafter:
    del names
    return LookaheadDrafter(resources.num_slots, resources.device)


def _adversarial(names: tuple[str, ...], resources: DrafterResources) -> Drafter:
    del names
    sizes = (resources.num_slots, resources.max_model_len, resources.vocab_size, resources.device)
    return AdversarialDrafter(*sizes, oracle=resources.oracle)


def _draft_model(names: tuple[str, ...], resources: DrafterResources) -> Drafter:
    del names
    if resources.load_draft_model is None:
        raise ConfigError("The drafter draft-model needs a model of its own; name it with --draft-model.")
    model = resources.load_draft_model()
    if has_state(model.cache_specs):
        raise ConfigError(
            "The draft model keeps states that no draft can take back; choose one with attention alone for --draft-model."
        )
    known = range(model.config.vocab_size) if resources.draftable else ()
    vocabulary = Vocabulary(resources.vocab_size, [token for token in known if token not in resources.draftable])
    return ModelDrafter(model, samples=resources.samples, vocabulary=vocabulary)


_FACTORIES: dict[str, DrafterFactory] = {
    "ngram": _lookup,
    "suffix": _lookup,
    "prediction": _lookup,
    "lookahead": _lookahead,
    "draft-model": _draft_model,
    "adversarial": _adversarial,  # for tests and benches; not in `config.DRAFTERS`
}
