"""Fields that this server has no use for: accepted where they cannot change the answer, refused by name where they would.

What is accepted is told, in the log and in the response's header `x-specdec-ignored`. A field is accepted where its value asks
for nothing, or where it is a hint: about who asks, about caches, about the form in which others give what this server gives
anyway. The names are those of OpenAI's API, vLLM, SGLang, llama.cpp, TabbyAPI, LM Studio, Ollama, OpenRouter and LiteLLM.
"""

import difflib
import logging
import re
from collections.abc import Collection, Iterable

_HINTS = frozenset({
    "api_base", "cache_control", "cache_prompt", "chat_id", "custom_llm_provider", "data_parallel_rank", "drop_params", "extra",
    "extra_headers", "extra_query", "features", "id", "id_slot", "include_obfuscation", "include_reasoning", "keep_alive",
    "litellm_params", "metadata", "models", "n_discard", "n_keep", "name", "num_ctx", "parallel_tool_calls", "parse_tool_calls",
    "post_sampling_probs", "priority", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "provider",
    "reasoning_format", "return_progress", "rid", "route", "safety_identifier", "separate_reasoning", "service_tier", "session",
    "store", "stream_reasoning", "timeout", "timings_per_token", "trace", "transforms", "usage", "user",
})  # fmt: skip
# what clients keep in their history beside the words of it
_ECHOES = frozenset({
    "additional_kwargs", "annotations", "audio_transcript", "cache_control", "citations", "created", "created_at", "date",
    "extra_content", "finish_reason", "id", "index", "logprobs", "metadata", "model", "phase", "provider",
    "provider_specific_fields", "reasoning_details", "refusal", "response_metadata", "sender", "status", "stop_reason",
    "system_fingerprint", "thinking", "thinking_blocks", "timestamp", "token_ids", "tool_name", "type", "usage", "weight",
})  # fmt: skip
# parts of a method that is off unless another field, which is refused by itself, turns it on
_DEPENDENT = re.compile(
    r"dry_(base|allowed_length|penalty_last_n|range|sequence_breakers)|xtc_threshold|mirostat_(tau|eta)|dynatemp_exponent"
    r"|smoothing_curve|guided_(decoding_backend|whitespace_pattern)|repeat_last_n|penalty_range|(min|max)_temp"
)
# beside what is empty, the values that ask for nothing; where a field stands here, no others do
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "add_bos_token": (True,), "audio": (), "best_of": (1,), "cfg_scale": (1,), "detokenize": (True,), "do_sample": (True,),
    "dry_multiplier": (0,), "dynatemp_range": (0,), "echo": (False,), "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,), "eta_cutoff": (0,), "function_call": ("auto", "none", {}), "guidance_scale": (1,),
    "length_penalty": (0, 1), "min_length": (0,), "mirostat": (0,), "mirostat_mode": (0,), "modalities": (["text"], []),
    "n_indent": (0,), "n_predict": (-1,), "n_probs": (0,), "no_repeat_ngram_size": (0,), "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,), "reasoning_budget": (-1,), "repeat_penalty": (1,), "response_format": ({"type": "text"}, {}),
    "skew": (0,), "skip_special_tokens": (True,), "smoothing_factor": (0,), "spaces_between_special_tokens": (True, False),
    "t_max_predict_ms": (0, -1), "temperature_last": (True, False), "tfs": (1,), "tfs_z": (1,), "token_healing": (False,),
    "tool_choice": ("auto", "none"), "top_a": (0,), "top_n_sigma": (0, -1), "typ_p": (0, 1), "typical": (0, 1),
    "typical_p": (0, 1), "verbosity": ("medium",), "web_search_options": (), "xtc_probability": (0,),
}  # fmt: skip
_FIXES = {
    "best_of": "all choices are returned; ask for them with n",
    "chat_template": "the model's own template is used",
    "do_sample": "ask for the most likely tokens with temperature 0",
    "extra_body": "its fields belong beside the others",
    "function_call": "this server calls no functions",
    "functions": "this server calls no functions",
    "max_new_tokens": "use max_tokens",
    "max_output_tokens": "use max_tokens",
    "n_predict": "use max_tokens",
    "num_predict": "use max_tokens",
    "num_return_sequences": "use n",
    "options": "give each of them as a field of its own",
    "prefix": "use continue_final_message",
    "partial": "use continue_final_message",
    "repeat_penalty": "use repetition_penalty",
    "reasoning": "use reasoning_effort or chat_template_kwargs",
    "response_format": "only text is supported by this server",
    "thinking": "use reasoning_effort or chat_template_kwargs",
    "tool_choice": "this server calls no tools",
    "tools": "tools are not supported by this server",
    "truncate_prompt_tokens": "shorten the prompt before it is sent",
}
_IDENTIFIES = re.compile(r"(user|session|conversation|thread|request|trace|span|parent|message|correlation|client|agent)_?ids?")
_TOLD = re.compile(r"[A-Za-z_][\w.$-]{0,63}", re.ASCII)  # names that may stand in a header
_MOST_TOLD = 32  # names of one call

_log = logging.getLogger(__name__)


def asks_nothing(name: str, value: object, in_message: bool = False) -> bool:
    """Whether a field that this server does not know may be left out without a change of the answer."""
    if value is None:
        return True
    if name in _NEUTRAL:
        # in Python, False is 0 and True is 1
        return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in _NEUTRAL[name])
    if name in (_ECHOES if in_message else _HINTS) or _IDENTIFIES.fullmatch(name) or _DEPENDENT.fullmatch(name):
        return True
    return value is False or value in ("", [], {})


def refusal(name: str, param: str, known: Collection[str]) -> str:
    """Why an unknown field is refused, and what to do.

    Args:
        name: as it is written.
        param: with the way to it.
        known: names that stand there.
    """
    if name in _FIXES:
        return f"{param} is not supported: {_FIXES[name]}."
    if name in _NEUTRAL:
        return f"{param} is not supported by this server and would change the answer; leave it out."
    close = difflib.get_close_matches(name, known, 1, 0.8)
    fix = f"did you mean {close[0]}?" if close else "leave it out or check its spelling."
    return f"{param} is not a field that this server supports, and its value may change the answer; {fix}"


class Told:
    """The names of what was accepted without being used; the log hears of each once."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def header(self, names: Iterable[str]) -> str:
        """The value of `x-specdec-ignored`; empty where there is nothing to tell."""
        fit = [name if _TOLD.fullmatch(name) else "?" for name in dict.fromkeys(names)]
        told = list(dict.fromkeys(fit))[:_MOST_TOLD]
        if (new := set(told) - self._logged) and len(self._logged) < 1000:
            self._logged |= new
            _log.info("Accepted without effect: %s; the header x-specdec-ignored says so.", ", ".join(sorted(new)))
        return ", ".join(told)
