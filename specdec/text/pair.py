"""Whether a draft model speaks the target's language: their tokenizers are compared, token by token, not their sizes."""

from specdec.errors import ConfigError
from specdec.text.tokenizer import Tokenizer


def draftable(target: Tokenizer, draft: Tokenizer) -> frozenset[int]:
    """The ids that a draft model may draft: those that are a token of both.

    Embeddings may be padded to different sizes, and one tokenizer may have a few more tokens than the other.

    Raises:
        ConfigError: an id is one token there and another here.
    """
    ours, theirs = target.names(), draft.names()
    shared = frozenset(ours.keys() & theirs.keys())
    other = min((token for token in shared if ours[token] != theirs[token]), default=None)
    if other is not None:
        raise ConfigError(
            f"The draft model has another tokenizer: token {other} is {theirs[other]!r} there and {ours[other]!r} in the "
            "target. A draft model needs the target's tokenizer."
        )
    return shared
