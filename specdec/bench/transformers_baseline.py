"""The baseline: Hugging Face transformers on the same files, plain and with its own prompt-lookup decoding."""

import contextlib
import io
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers

from specdec.bench.cases import Case
from specdec.bench.contenders import Sample, SamplingOf
from specdec.errors import ConfigError
from specdec.models.source import Source
from specdec.request import SamplingParams

_WARM_UP_TOKENS = 16
PROMPT_LOOKUP_TOKENS = 10  # as in the examples of transformers' documentation


def load(source: Source, dtype: torch.dtype, device: str) -> Any:
    """transformers' own model from the files that specdec reads; a GGUF file is unpacked to `dtype`."""
    options: dict[str, Any] = {"dtype": dtype}
    folder = source.path
    if source.is_gguf:
        folder, options["gguf_file"] = source.path.parent, source.path.name
        if hasattr(transformers, "GgufConfig"):  # without it, every version unpacks
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):  # unpacking has a bar of its own that no setting turns off
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **options).to(device).eval()


class TransformersContender:
    """`model.generate`, greedy, one request at a time.

    Args:
        name: for the tables.
        model: from `load`.
        eos_token_ids: the stop tokens, as specdec uses them.
        prompt_lookup: whether it speculates by prompt lookup.
    """

    def __init__(self, name: str, model: Any, eos_token_ids: frozenset[int], prompt_lookup: bool) -> None:
        self.name = name
        self._model = model
        self._options: dict[str, Any] = {"prompt_lookup_num_tokens": PROMPT_LOOKUP_TOKENS} if prompt_lookup else {}
        self._eos = sorted(eos_token_ids)
        self._cold = True

    def start_repeat(self, warm_up: Sequence[Case], sampling_of: SamplingOf) -> None:
        """It remembers nothing, and one short answer warms it."""
        if self._cold:
            self.answer(warm_up[0], replace(sampling_of(warm_up[0]), max_tokens=_WARM_UP_TOKENS, min_tokens=0), -1)
            self._cold = False

    def answer(self, case: Case, sampling: SamplingParams, repeat: int) -> Sample:
        if not sampling.greedy:
            raise ConfigError("transformers is only compared greedily.")
        config = transformers.GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_tokens,
            min_new_tokens=sampling.min_tokens or None,
            eos_token_id=self._eos or None,
            pad_token_id=self._eos[0] if self._eos else 0,
            **self._options,
        )
        clock = _FirstStep(len(case.prompt_ids))
        ids = torch.tensor([case.prompt_ids], device=self._model.device)
        started = time.perf_counter()
        out = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=config, stopping_criteria=[clock]
        )
        tokens = tuple(out[0, len(case.prompt_ids) :].tolist())
        ended = time.perf_counter()
        return Sample(
            contender=self.name,
            repeat=repeat,
            case_id=case.id,
            content_type=case.content_type,
            token_ids=tokens,
            seconds=ended - started,
            first_token_seconds=clock.moment - started,
            num_first_tokens=clock.num_tokens,
        )


class _FirstStep:
    """A stopping criterion that never stops; it notes when the first tokens were there, and how many."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self.moment = 0.0
        self.num_tokens = 0

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        if self.num_tokens == 0:
            self.moment = time.perf_counter()
            self.num_tokens = input_ids.shape[1] - self._num_prompt_tokens
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
