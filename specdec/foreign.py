"""Names that other engines (vLLM, SGLang, llama.cpp) have for options: those with a counterpart here, those that change
nothing, and those that cannot be honoured, with the reason. As flags; Python's keyword arguments are the same without dashes.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from specdec.errors import ConfigError

_log = logging.getLogger(__name__)

Values = dict[str, object]  # by parameter of a command, or by field of EngineConfig


@dataclass(frozen=True, slots=True)
class Foreign:
    """A flag that has no counterpart.

    why: what makes it void, or impossible and how to get there otherwise.
    takes_value: whether a value follows it.
    neutral: values that ask for nothing; they make an impossible flag a void one.
    """

    why: str
    takes_value: bool = False
    neutral: tuple[str, ...] = ()


def _all(flags: str, why: str, takes_value: bool = False, neutral: tuple[str, ...] = ()) -> dict[str, Foreign]:
    return dict.fromkeys(flags.split(), Foreign(why, takes_value, neutral))


_ONE_DEVICE = "specdec runs on one device; choose it with --device or CUDA_VISIBLE_DEVICES, and start a server for each"
_UNPACKED = "weights are computed in --dtype, and GGUF files are unpacked to it; leave it out"
_TEXT_ONLY = "answers are the model's text as it is"
_EXACT_CACHE = "keys and values are kept as they were computed, which is what makes drafts lossless; leave it out"
_PROXY = "put a proxy such as nginx or Caddy in front of the server"
_STAYS = "weights and caches stay where --device is; choose a smaller model or a lower --cache-gb"
_NO_GRAMMAR = "answers are not constrained by a grammar; leave it out"
_OWN_CONFIG = "the checkpoint's config is taken as it is; change a copy of its config.json"
_ON_DISK = "specdec reads GGUF files from disk; fetch the file first and name its path"

ENGINE_ALIASES: Mapping[str, tuple[str, ...]] = {  # by field of EngineConfig, what others call it
    "model": ("--model", "--model-path", "-m", "-hf", "-hfr", "--hf-repo"),
    "tokenizer": ("--tokenizer-path",),
    "chat_template": ("--chat-template-file",),
    "device": ("-dev",),
    "num_threads": ("-t", "--num-threads"),
    "max_model_len": ("--context-length", "-c", "--ctx-size", "--max-seq-len"),
    "max_batch": ("--max-num-seqs", "--max-running-requests", "-np", "--parallel"),
    "gpu_memory_utilization": ("--mem-fraction-static",),
    "page_size": ("--block-size",),
    "chunk_tokens": ("--max-num-batched-tokens", "--chunked-prefill-size", "-b", "--batch-size"),
    "draft_model": (
        "--speculative-draft-model-path",
        "--speculative-draft-model",
        "--speculative-model",
        "-md",
        "--model-draft",
    ),
    "max_tree_nodes": ("--speculative-num-draft-tokens",),
    "max_tree_depth": ("--num-speculative-tokens", "--speculative-num-steps", "--spec-draft-n-max", "--draft-max", "--draft"),
}

VOID: Mapping[str, Foreign] = {
    **_all("--trust-remote-code -trc", "specdec runs no code of a checkpoint"),
    **_all("--seed --random-seed -s", "a request's own seed decides; without one each gets a fresh seed", True),
    **_all(
        "--enforce-eager --disable-cuda-graph --enable-torch-compile --disable-cascade-attn",
        "rounds are recorded as CUDA graphs on a GPU, and nothing is compiled by torch.compile",
    ),
    **_all(
        "--compilation-config -O --cuda-graph-sizes --cuda-graph-max-bs --cuda-graph-bs",
        "some rounds are recorded as CUDA graphs at start-up, the others as they come",
        True,
    ),
    **_all("--enable-chunked-prefill --no-enable-chunked-prefill", "prompts are always read in chunks, of --chunk-tokens"),
    **_all("--async-scheduling --disable-overlap-schedule", "--depth says how far rounds run ahead"),
    **_all("--load-format --config-format --tokenizer-mode --model-impl", "the form of the files is found out", True),
    **_all("--task --runner --convert", "specdec generates text", True),
    **_all(
        "--disable-log-requests --no-enable-log-requests --disable-log-stats --disable-uvicorn-access-log --log-disable",
        "--log-level warning silences the log",
    ),
    **_all("--enable-log-requests --log-requests -v --verbose", "--log-level debug says more"),
    **_all("--max-log-len --log-requests-level --stream-interval", "lines of the log and events have what there is", True),
    **_all("--enable-metrics --metrics --props --slots --no-slots", "GET /metrics is always there"),
    **_all("--enable-prompt-tokens-details --enable-cache-report", "usage always tells the tokens that were known"),
    **_all("--attention-backend --sampling-backend -fa --flash-attn", "the kernels are specdec's own", True),
    **_all("--grammar-backend", "no grammar is compiled", True),
    **_all(
        "--disable-custom-all-reduce --enable-p2p-check --disable-frontend-multiprocessing --skip-server-warmup --no-warmup",
        "there is nothing of that kind to switch",
    ),
    **_all("--distributed-executor-backend --base-gpu-id --main-gpu -mg", "there is one device, that of --device", True),
    **_all(
        "-ngl --n-gpu-layers --gpu-layers -ngld --gpu-layers-draft --spec-draft-ngl", "--device places all of a model", True
    ),
    **_all(
        "--schedule-conservativeness --schedule-policy --scheduling-policy --preemption-mode",
        "requests come in order; those that run out of pages give way and come back",
        True,
    ),
    **_all("--watchdog-timeout --timeout -to", "a dead engine ends the server at once, and slow clients are given up", True),
    **_all("--max-logprobs", "20 at most, as OpenAI's API has it", True),
    **_all(
        "--speculative-eagle-topk --spec-draft-p-min --spec-draft-n-min --draft-p-min --draft-min --num-lookahead-slots",
        "the planner weighs every draft and shapes every tree",
        True,
    ),
    **_all("--jinja", "chat templates are always Jinja"),
    **_all("-cb --cont-batching", "requests join and leave between any two rounds"),
    **_all("--mlock --no-mmap --check-tensors", "weights are read into memory, each tensor checked"),
    **_all("--no-webui", "the server has no chat page"),
    **_all("-ub --ubatch-size --max-prefill-tokens", "--chunk-tokens says how much of a prompt a round reads", True),
    **_all("-tb --threads-batch --threads-http --numa --prio --poll", "--threads sets the CPU's threads", True),
    **_all("-cd --ctx-size-draft", "the draft model takes --max-model-len", True),
    **_all("--max-parallel-loading-workers --num-gpu-blocks-override", "--cache-gb sizes the cache", True),
}

IMPOSSIBLE: Mapping[str, Foreign] = {
    **_all(
        "--tensor-parallel-size -tp --tp --tp-size --pipeline-parallel-size -pp --pp-size"
        " --data-parallel-size -dp --dp --dp-size --nnodes --ep-size",
        _ONE_DEVICE,
        True,
        ("1",),
    ),
    **_all("--enable-expert-parallel --enable-dp-attention", _ONE_DEVICE),
    **_all("--dist-init-addr --node-rank --tensor-split -ts", _ONE_DEVICE, True),
    **_all("--split-mode -sm", _ONE_DEVICE, True, ("none",)),
    **_all("--api-server-count", f"one process answers HTTP; start several servers and {_PROXY}", True, ("1",)),
    **_all("--quantization -q", _UNPACKED, True, ("none", "auto", "gguf")),
    **_all("--kv-cache-dtype", _EXACT_CACHE, True, ("auto",)),
    **_all("-ctk -ctv --cache-type-k --cache-type-v", _EXACT_CACHE, True),
    **_all("--cpu-offload-gb", _STAYS, True, ("0",)),
    **_all("--swap-space", _STAYS, True, ("0", "4")),
    **_all("--enable-lora", "specdec serves whole models; merge the adapter into the weights first"),
    **_all("--lora-modules --lora-paths --lora", "specdec serves whole models; merge the adapter into the weights first", True),
    **_all("--mmproj --limit-mm-per-prompt --mm-processor-kwargs", "specdec reads text alone; leave it out", True),
    **_all("--rope-scaling", f"positions are the checkpoint's own, and {_OWN_CONFIG}", True, ("none",)),
    **_all("--rope-theta --rope-freq-base --rope-freq-scale", f"positions are the checkpoint's own, and {_OWN_CONFIG}", True),
    **_all("--hf-overrides --json-model-override-args --override-kv", _OWN_CONFIG, True, ("{}",)),
    **_all("--hf-config-path", _OWN_CONFIG, True),
    **_all("--tokenizer-revision --code-revision", "--revision is of the model; name a --tokenizer on disk", True),
    **_all("--skip-tokenizer-init", "answers are text; leave it out"),
    **_all("--hf-token -hft", "set HF_TOKEN in the environment", True),
    **_all("-hff --hf-file -mu --model-url", _ON_DISK, True),
    **_all("--enable-auto-tool-choice --enable-reasoning", f"{_TEXT_ONLY}: parse calls and reasoning in the client"),
    **_all(
        "--tool-call-parser --reasoning-parser --reasoning-format --reasoning-budget",
        f"{_TEXT_ONLY}: parse calls and reasoning in the client",
        True,
        ("none",),
    ),
    **_all("--guided-decoding-backend", _NO_GRAMMAR, True, ("auto",)),
    **_all("--structured-outputs-config --grammar --grammar-file --json-schema", _NO_GRAMMAR, True),
    **_all(
        "--override-generation-config --preferred-sampling-params --samplers",
        "requests say how they are sampled; change a copy of generation_config.json",
        True,
    ),
    **_all("--embedding --embeddings --is-embedding --reranking", "specdec generates text; leave it out"),
    **_all(
        "--ssl-keyfile --ssl-certfile --ssl-key-file --ssl-cert-file --ssl-ca-certs",
        f"the server speaks plain HTTP; {_PROXY}",
        True,
    ),
    **_all("--root-path --api-prefix", f"the API lies at /v1; {_PROXY} to move it", True, ("",)),
    **_all("--middleware", f"the server takes no code of yours; {_PROXY}", True),
    **_all("--uds", "the server listens on --host and --port; forward the socket with a proxy", True),
    **_all("--log-config-file --otlp-traces-endpoint", "the log is text or JSON (--log-format), for a collector to read", True),
    **_all("--download-dir", "models lie in the hub's cache; set HF_HOME, or fetch with `specdec download`", True),
    **_all("--slot-save-path", "the prefix cache lives as long as the server; leave it out", True),
    **_all("--enable-sleep-mode", "end the server and start it again; later starts take seconds"),
    **_all("--kv-transfer-config", "one server reads the prompt and answers; leave it out", True),
    **_all("--disaggregation-mode", "one server reads the prompt and answers; leave it out", True, ("null",)),
    **_all("--context-shift", "what does not fit the context is refused; shorten the prompt"),
    **_all("--grp-attn-n", "attention is the model's own; leave it out", True, ("1",)),
}

_METHODS = {"ngram": "ngram", "suffix": "suffix", "draft_model": "none", "none": "none"}  # vLLM's, as drafters
_ALGORITHMS = {"NGRAM": "ngram", "STANDALONE": "none", "NONE": "none"}  # SGLang's; a draft model has a flag of its own
_TYPES = {"none": "none", "draft": "none", "draft-simple": "none"}  # llama.cpp's
_SPECULATIVE_KEYS = {"method", "model", "num_speculative_tokens"}


def _no_method(given: object) -> ConfigError:
    return ConfigError(
        f"specdec has no drafter for {given}; it drafts from the text itself (--drafter ngram,suffix,prediction) and with a "
        "smaller model (--draft-model NAME)."
    )


def _speculative_config(value: object) -> Values:
    """vLLM's --speculative-config: JSON, or a mapping in a config file."""
    try:
        given: Any = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ConfigError(f"--speculative-config is not JSON: {error}.") from error
    if not isinstance(given, dict):
        raise ConfigError('--speculative-config must be a JSON object such as \'{"method": "ngram"}\'.')
    method = given.get("method") or ("draft_model" if given.get("model") else "ngram")
    if method not in _METHODS or (method == "draft_model" and not given.get("model")):
        raise _no_method(f"the method {method!r}" + (" without a model" if method == "draft_model" else ""))
    found: Values = {"drafters": _METHODS[method]}
    if method == "draft_model":
        found["draft_model"] = given["model"]
    if (depth := given.get("num_speculative_tokens")) is not None:
        found["max_tree_depth"] = depth
    return found


def _speculative_algorithm(value: object) -> Values:
    """SGLang's."""
    if str(value).upper() not in _ALGORITHMS:
        raise _no_method(f"--speculative-algorithm {value}")
    return {"drafters": _ALGORITHMS[str(value).upper()]}


def _spec_type(value: object) -> Values:
    """llama.cpp's."""
    kind = str(value)
    if kind not in _TYPES and not kind.startswith("ngram"):
        raise _no_method(f"--spec-type {kind}")
    return {"drafters": _TYPES.get(kind, "ngram")}


CONVERTED: Mapping[str, Callable[[object], Values]] = {
    "--speculative-config": _speculative_config,
    "-sc": _speculative_config,
    "--speculative-algorithm": _speculative_algorithm,
    "--speculative-algo": _speculative_algorithm,
    "--spec-type": _spec_type,
}

FIXED: Mapping[str, tuple[str, bool]] = {  # flags without a value, and what they set
    "--enable-prefix-caching": ("prefix_cache", True),
    "--no-enable-prefix-caching": ("prefix_cache", False),
    "--disable-radix-cache": ("prefix_cache", False),
    "--cache-prompt": ("prefix_cache", True),
    "--no-cache-prompt": ("prefix_cache", False),
}


def told(flag: str, value: object) -> str | None:
    """Why a flag without a counterpart has no effect; None where its value asks for nothing.

    Raises:
        ConfigError: it cannot be honoured.
    """
    if value is False:
        return None
    if flag in VOID:
        return f"{flag} has no effect: {VOID[flag].why}."
    foreign = IMPOSSIBLE[flag]
    if str(value).lower() not in foreign.neutral:
        raise ConfigError(f"{flag} is not supported: {foreign.why}.")
    return None


def engine_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments under the names that people know, as fields of EngineConfig; unknown ones are left as they are.

    Raises:
        ConfigError: one of them cannot be honoured.
    """
    fields = {alias: name for name, aliases in ENGINE_ALIASES.items() for alias in aliases}
    found: dict[str, Any] = {}
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if flag in fields:
            found[fields[flag]] = value
        elif flag in FIXED:
            field, meant = FIXED[flag]
            found[field] = meant == bool(value)
        elif flag in CONVERTED:
            found |= CONVERTED[flag](value) if value is not None else {}
        elif flag in VOID or flag in IMPOSSIBLE:
            if value is not None and (why := told(flag, value)):
                _log.warning("%s", why)
        else:
            found[name] = value
    return found
