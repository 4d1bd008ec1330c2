"""The tokenizer in a folder as Hugging Face lays it out: tokenizer.json, or the files that came before it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from specdec.errors import ConfigError
from specdec.models.damage import damaged, read_json
from specdec.models.source import Source
from specdec.text.parts import TokenizerParts
from specdec.text.sentencepiece import Spaces, build_sentencepiece, read_sentencepiece

_FORMS = "tokenizer.json, tokenizer.model, or vocab.json with merges.txt"
_ROLES_BY_ID = ("bos_token", "eos_token", "pad_token")


def read_folder_tokenizer(source: Source) -> TokenizerParts:
    """Raises ConfigError where there is none, or one that is damaged or not supported; the message names the file."""
    fields = source.json("tokenizer_config.json")
    backend = _read_backend(source.path, fields)
    special = _special_tokens(source, fields, backend)
    return TokenizerParts(backend=backend, special_tokens=special, chat_templates=_read_templates(source.path, fields))


def _read_backend(folder: Path, fields: Mapping[str, Any]) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise damaged(path, f"it is no tokenizer ({error})") from error
    if (folder / "tokenizer.model").is_file():
        return _from_sentencepiece(folder / "tokenizer.model", fields)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _from_vocabulary(folder)
    raise ConfigError(f"{folder} has no tokenizer ({_FORMS}).")


def _from_sentencepiece(path: Path, fields: Mapping[str, Any]) -> tokenizers.Tokenizer:
    found = read_sentencepiece(path)
    prefix = fields.get("add_prefix_space")
    spaces = Spaces(
        prefix=found.spaces.prefix if prefix is None else bool(prefix),
        always=bool(fields.get("legacy", False)),  # transformers' word for a space behind control tokens, too
        squeezed=found.spaces.squeezed,
    )
    backend = build_sentencepiece(found.pieces, spaces, charsmap=found.charsmap)
    for token in _added_tokens(path.parent, fields):
        backend.add_tokens([token])
    bos = _content(fields.get("bos_token")) or "<s>"
    bos_id = backend.token_to_id(bos)
    if bos_id is not None and fields.get("add_bos_token", True):
        backend.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, bos_id)])
    return backend


def _added_tokens(folder: Path, fields: Mapping[str, Any]) -> list[AddedToken]:
    """Those beside the vocabulary, in the order of their ids."""
    listed = fields.get("added_tokens_decoder")
    if isinstance(listed, Mapping):
        entries = sorted((int(i), entry) for i, entry in listed.items())
        return [AddedToken(entry["content"], special=bool(entry.get("special")), normalized=False) for _, entry in entries]
    path = folder / "added_tokens.json"
    names = read_json(path) if path.is_file() else {}
    return [AddedToken(name, special=False, normalized=False) for name in sorted(names, key=names.__getitem__)]


def _from_vocabulary(folder: Path) -> tokenizers.Tokenizer:
    from transformers import AutoTokenizer  # it knows each class's rules; takes seconds to import, and few checkpoints need it

    try:
        backend: tokenizers.Tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    except Exception as error:  # whatever a damaged file makes it raise
        raise damaged(folder / "vocab.json", f"with merges.txt it makes no tokenizer ({error})") from error
    return backend


def _special_tokens(source: Source, fields: Mapping[str, Any], backend: tokenizers.Tokenizer) -> dict[str, str]:
    """By role. The file of the tokenizer comes first, then the older special_tokens_map.json, then ids in the model's configs
    where neither says a word, not even null."""
    older = source.json("special_tokens_map.json")
    found = {}
    for role in dict.fromkeys((*fields, *older)):
        content = _content(fields.get(role)) or _content(older.get(role))
        if role.endswith("_token") and content:
            found[role] = content
    config = {**source.json("generation_config.json"), **source.json("config.json")}
    for role in _ROLES_BY_ID:
        token = config.get(f"{role}_id")
        if role not in fields and role not in older and isinstance(token, int) and token >= 0:
            content = backend.id_to_token(token)
            found |= {role: content} if content is not None else {}
    return found


def _content(token: object) -> str | None:
    """A special token as files write it: its text, or an object that holds it."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _read_templates(folder: Path, fields: Mapping[str, Any]) -> dict[str, str]:
    """By name; files of their own come before what tokenizer_config.json holds."""
    older = read_json(folder / "chat_template.json") if (folder / "chat_template.json").is_file() else {}
    templates = _named(fields.get("chat_template") or older.get("chat_template"), folder)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = _text(path)
    path = folder / "chat_template.jinja"
    return templates | ({"default": _text(path)} if path.is_file() else {})


def _named(template: object, folder: Path) -> dict[str, str]:
    if template is None:
        return {}
    if isinstance(template, str):
        return {"default": template}
    if isinstance(template, list) and all(isinstance(entry, Mapping) for entry in template):
        template = {entry.get("name"): entry.get("template") for entry in template}
    if isinstance(template, Mapping) and all(isinstance(text, str) for pair in template.items() for text in pair):
        return dict(template)
    raise ConfigError(f"chat_template in {folder / 'tokenizer_config.json'} is neither a text nor texts by name.")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, error) from error
