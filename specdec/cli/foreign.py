"""Flags of other servers (vLLM, SGLang, llama.cpp): those that change nothing here, and those that cannot be honoured.

What has a counterpart here is declared with it, see `specdec.cli.options.EngineOption.aliases`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from specdec.errors import ConfigError

Values = dict[str, object]  # by parameter of a command


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


_ONE_DEVICE = "specdec runs on one device; choose it with --device or CUDA_VISIBLE_DEVICES, and start a server for each"
_UNPACKED = "weights are computed in --dtype, and GGUF files are unpacked to it; leave it out"
_TEXT_ONLY = "answers are the model's text as it is"
_NO_ADAPTERS = "specdec serves whole models; merge the adapter into the weights first"
_PROXY = "put a proxy such as nginx or Caddy in front of the server"
_ONE_PROCESS = "one process answers HTTP and another decodes; start several servers behind a proxy for more"
_KEEPS_MEMORY = "weights and caches stay where --device is; choose a smaller model or a lower --cache-gb"
_BY_ITSELF = "specdec does this by itself"
_ALWAYS = "this is how specdec always works"

VOID: Mapping[str, Foreign] = {
    "--trust-remote-code": Foreign("specdec runs no code of a checkpoint"),
    "--seed": Foreign("a request's own seed decides; without one each gets a fresh seed", True),
    "--enforce-eager": Foreign("rounds are recorded as CUDA graphs on a GPU whatever is asked"),
    "--disable-cuda-graph": Foreign("rounds are recorded as CUDA graphs on a GPU whatever is asked"),
    "--enable-chunked-prefill": Foreign(_ALWAYS),
    "--no-enable-chunked-prefill": Foreign("prompts are always read in chunks; --chunk-tokens sets their size"),
    "--async-scheduling": Foreign("--depth says how far rounds run ahead"),
    "--load-format": Foreign("the form of the files is found out", True),
    "--tokenizer-mode": Foreign(_BY_ITSELF, True),
    "--task": Foreign("specdec generates text", True),
    "--runner": Foreign("specdec generates text", True),
    "--disable-log-requests": Foreign("--log-level warning silences them"),
    "--enable-log-requests": Foreign("a finished request is a line of the log at --log-level info"),
    "--disable-log-stats": Foreign("--log-level warning silences them"),
    "--enable-metrics": Foreign("GET /metrics is always there"),
    "--metrics": Foreign("GET /metrics is always there"),
    "--attention-backend": Foreign("its kernels are specdec's own", True),
    "--sampling-backend": Foreign("its kernels are specdec's own", True),
    "--grammar-backend": Foreign("no grammar is compiled", True),
    "--compilation-config": Foreign("nothing is compiled by torch.compile", True),
    "-O": Foreign("nothing is compiled by torch.compile", True),
    "--disable-custom-all-reduce": Foreign("there is one device"),
    "--distributed-executor-backend": Foreign("there is one device", True),
    "--schedule-conservativeness": Foreign("requests that run out of pages give way and come back", True),
    "--watchdog-timeout": Foreign("a dead engine ends the server at once", True),
    "--max-logprobs": Foreign("20 at most, as OpenAI's API has it", True),
    "--speculative-eagle-topk": Foreign("the planner shapes every tree", True),
    "--spec-draft-p-min": Foreign("the planner weighs every draft", True),
    "--spec-draft-n-min": Foreign("the planner weighs every draft", True),
    "--draft-p-min": Foreign("the planner weighs every draft", True),
    "--draft-min": Foreign("the planner weighs every draft", True),
    "--spec-draft-ngl": Foreign("--device places the model, all of it", True),
    "-ngl": Foreign("--device places the model, all of it", True),
    "--n-gpu-layers": Foreign("--device places the model, all of it", True),
    "--gpu-layers": Foreign("--device places the model, all of it", True),
    "-ngld": Foreign("--device places the model, all of it", True),
    "-fa": Foreign("its kernels are specdec's own", True),
    "--flash-attn": Foreign("its kernels are specdec's own", True),
    "--jinja": Foreign("chat templates are always Jinja"),
    "-cb": Foreign(_ALWAYS),
    "--cont-batching": Foreign(_ALWAYS),
    "--mlock": Foreign("weights are in memory, not mapped"),
    "--no-mmap": Foreign("weights are in memory, not mapped"),
    "--no-webui": Foreign("the page at / is small and harmless"),
    "-ub": Foreign("--chunk-tokens says how much of a prompt a round reads", True),
    "--ubatch-size": Foreign("--chunk-tokens says how much of a prompt a round reads", True),
    "--slots": Foreign("GET /metrics tells what runs"),
}

IMPOSSIBLE: Mapping[str, Foreign] = {
    "--tensor-parallel-size": Foreign(_ONE_DEVICE, True, ("1",)),
    "-tp": Foreign(_ONE_DEVICE, True, ("1",)),
    "--tp": Foreign(_ONE_DEVICE, True, ("1",)),
    "--tp-size": Foreign(_ONE_DEVICE, True, ("1",)),
    "--pipeline-parallel-size": Foreign(_ONE_DEVICE, True, ("1",)),
    "-pp": Foreign(_ONE_DEVICE, True, ("1",)),
    "--pp-size": Foreign(_ONE_DEVICE, True, ("1",)),
    "--data-parallel-size": Foreign(_ONE_DEVICE, True, ("1",)),
    "-dp": Foreign(_ONE_DEVICE, True, ("1",)),
    "--dp-size": Foreign(_ONE_DEVICE, True, ("1",)),
    "--enable-expert-parallel": Foreign(_ONE_DEVICE),
    "--nnodes": Foreign(_ONE_DEVICE, True, ("1",)),
    "--split-mode": Foreign(_ONE_DEVICE, True, ("none",)),
    "--tensor-split": Foreign(_ONE_DEVICE, True),
    "--api-server-count": Foreign(_ONE_PROCESS, True, ("1",)),
    "--quantization": Foreign(_UNPACKED, True, ("none", "auto", "gguf")),
    "-q": Foreign(_UNPACKED, True, ("none", "auto", "gguf")),
    "--kv-cache-dtype": Foreign("keys and values are kept in --dtype, which is what makes drafts lossless", True, ("auto",)),
    "-ctk": Foreign("keys and values are kept in --dtype, which is what makes drafts lossless", True),
    "-ctv": Foreign("keys and values are kept in --dtype, which is what makes drafts lossless", True),
    "--cache-type-k": Foreign("keys and values are kept in --dtype, which is what makes drafts lossless", True),
    "--cache-type-v": Foreign("keys and values are kept in --dtype, which is what makes drafts lossless", True),
    "--cpu-offload-gb": Foreign(_KEEPS_MEMORY, True, ("0",)),
    "--swap-space": Foreign(_KEEPS_MEMORY, True, ("0", "4")),
    "--enable-lora": Foreign(_NO_ADAPTERS),
    "--lora-modules": Foreign(_NO_ADAPTERS, True),
    "--lora-paths": Foreign(_NO_ADAPTERS, True),
    "--lora": Foreign(_NO_ADAPTERS, True),
    "--mmproj": Foreign("specdec reads text, no images or sound; serve a text model", True),
    "--limit-mm-per-prompt": Foreign("specdec reads text, no images or sound; leave it out", True),
    "--rope-scaling": Foreign("positions are scaled as the checkpoint's config says; change its rope_scaling", True, ("none",)),
    "--rope-theta": Foreign("positions are as the checkpoint's config says; change its rope_theta", True),
    "--hf-overrides": Foreign("the checkpoint's config is taken as it is; change a copy of its config.json", True, ("{}",)),
    "--json-model-override-args": Foreign("the config is taken as it is; change a copy of config.json", True, ("{}",)),
    "--enable-auto-tool-choice": Foreign(f"{_TEXT_ONLY}: parse tool calls in the client"),
    "--tool-call-parser": Foreign(f"{_TEXT_ONLY}: parse tool calls in the client", True),
    "--reasoning-parser": Foreign(f"{_TEXT_ONLY}: split the reasoning in the client", True),
    "--guided-decoding-backend": Foreign("answers are not constrained by a grammar; leave it out", True, ("auto",)),
    "--structured-outputs-config": Foreign("answers are not constrained by a grammar; leave it out", True),
    "--embedding": Foreign("specdec generates text; serve embeddings with another program"),
    "--embeddings": Foreign("specdec generates text; serve embeddings with another program"),
    "--is-embedding": Foreign("specdec generates text; serve embeddings with another program"),
    "--reranking": Foreign("specdec generates text; serve rankings with another program"),
    "--ssl-keyfile": Foreign(f"the server speaks plain HTTP; {_PROXY}", True),
    "--ssl-certfile": Foreign(f"the server speaks plain HTTP; {_PROXY}", True),
    "--ssl-key-file": Foreign(f"the server speaks plain HTTP; {_PROXY}", True),
    "--ssl-cert-file": Foreign(f"the server speaks plain HTTP; {_PROXY}", True),
    "--root-path": Foreign(f"the API lies at /v1; {_PROXY} to move it", True, ("",)),
    "--middleware": Foreign(f"the server takes no code of yours; {_PROXY}", True),
    "--uds": Foreign("the server listens on --host and --port; forward the socket with a proxy", True),
    "--download-dir": Foreign("models lie in the hub's cache; set HF_HOME, or fetch with `specdec download`", True),
    "--enable-sleep-mode": Foreign("end the server and start it again; later starts take seconds"),
    "--kv-transfer-config": Foreign("one server reads the prompt and answers; leave it out", True),
    "--disaggregation-mode": Foreign("one server reads the prompt and answers; leave it out", True, ("null",)),
    "--grp-attn-n": Foreign("attention is the model's own; leave it out", True, ("1",)),
    "--override-kv": Foreign("a GGUF file's fields are taken as they are; write a changed copy", True),
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
