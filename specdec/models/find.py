"""From the names that settings have to files on disk: `resolve`, and what settings may say beside a name."""

import hashlib
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from specdec.errors import ConfigError, ModelNotFoundError
from specdec.models.source import ALIASES, Source, resolve
from specdec.progress import NoProgress, Progress

_HUB_TIMEOUT_S = 5.0  # a hub that answers at all does so within a second
_PART = re.compile(r"-\d{5}-of-\d{5}$")  # how the names of a GGUF file's parts end
_SMALL, _WEIGHTS = ["*.json", "*.jinja", "*.txt", "tokenizer.model"], ["*.safetensors"]


def find(name: str, progress: Progress | None = None, *, weights: bool = True, revision: str | None = None) -> Source:
    """Find a model, see `specdec.models.source.resolve`; of the hub, a revision where one is named.

    Raises:
        ConfigError: the name leads nowhere, or what is fetched cannot be kept.
    """
    try:
        if revision is None or Path(name).expanduser().exists():
            return resolve(name, progress, weights=weights)
        return Source(name=name, path=_at_revision(name, revision, progress or NoProgress(), weights))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        place = getattr(error, "filename", None) or "the cache folder"
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{name} cannot be read or kept at {place}: {reason}. HF_HOME and SPECDEC_CACHE name folders that can be written."
        ) from error


def identity(source: Source) -> str:
    """A digest of which files a model's are: places, sizes and times of change; what is in them is not read."""
    if source.is_gguf:
        whole = _PART.sub("", source.path.stem)
        files = [path for path in source.path.parent.glob("*.gguf") if _PART.sub("", path.stem) == whole]
    else:
        files = [path for path in source.path.iterdir() if path.is_file()]
    found = sorted((str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _at_revision(name: str, revision: str, progress: Progress, weights: bool) -> Path:
    hub_id = ALIASES[name].hub_id if name in ALIASES else name
    try:
        with progress.task(f"Fetching {hub_id} at {revision}", None):
            patterns = _SMALL + _WEIGHTS * weights
            found = huggingface_hub.snapshot_download(
                hub_id, revision=revision, allow_patterns=patterns, etag_timeout=_HUB_TIMEOUT_S
            )
    except LocalEntryNotFoundError as error:
        raise ModelNotFoundError(f"{hub_id} at {revision} is not in the hub's cache, and the hub does not answer.") from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"The hub's {hub_id} has no revision {revision}.") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(f"The hub has no model {hub_id}, or it needs a token (HF_TOKEN).") from error
    except (HfHubHTTPError, ValueError) as error:  # ValueError: no name of the hub's
        raise ModelNotFoundError(f"The hub refused {hub_id} at {revision}: {error}") from error
    return Path(found)
