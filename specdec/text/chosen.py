"""The tokenizer that the settings choose: the model's own, another model's, with the chat template that is named."""

from pathlib import Path

from specdec.config import EngineConfig
from specdec.errors import ConfigError
from specdec.models.source import Source, resolve
from specdec.progress import Progress
from specdec.text.tokenizer import Tokenizer


def chosen_tokenizer(config: EngineConfig, source: Source, vocab_size: int, progress: Progress | None = None) -> Tokenizer:
    """The tokenizer for a model of `vocab_size` tokens whose files are `source`.

    Raises:
        ConfigError: it cannot be found or used, or knows more tokens than the model.
    """
    if config.tokenizer is not None:
        source = resolve(config.tokenizer, progress, weights=False)
    found = Tokenizer.load(source, config.parse_special)
    if config.tokenizer is not None and found.vocab_size > vocab_size:
        raise ConfigError(
            f"The tokenizer of {config.tokenizer} has {found.vocab_size} tokens, but {config.model} knows {vocab_size}; "
            "choose one that was made for it."
        )
    if config.chat_template is not None:
        found.use_chat_template(_template(config.chat_template))
    return found


def _template(given: str) -> str:
    """Jinja source: what is given, where it has a tag, else what is in the file of that name."""
    if "{" in given:
        return given
    try:
        return Path(given).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The chat template {given} cannot be read: {error}.") from error
