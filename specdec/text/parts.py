"""What the files of a model say about text, whatever their form."""

from dataclasses import dataclass, field

import tokenizers


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerParts:
    """What a tokenizer is made of.

    special_tokens: the content of those that have a role, by its name (`bos_token`, `eos_token`, ...). chat_templates: Jinja
    sources by name. unused_ids: that stand in the vocabulary to fill it up.
    """

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    chat_templates: dict[str, str] = field(default_factory=dict)
    unused_ids: frozenset[int] = frozenset()
