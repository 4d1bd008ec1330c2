"""Prompts made ready to run: one case per turn, so that every contender gets the same tokens."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from specdec.bench.suite import Prompt
from specdec.errors import ConfigError
from specdec.llm import Completion, complete
from specdec.progress import Progress
from specdec.request import Request, SamplingParams

Answer = Callable[[str, tuple[int, ...]], str]  # (case id, prompt tokens) -> text


class TextTools(Protocol):
    """The part of a tokenizer that prompts need; see `specdec.text.tokenizer.Tokenizer`."""

    @property
    def has_chat_template(self) -> bool: ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def chat(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None = None) -> list[int]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One answer to generate."""

    id: str
    content_type: str
    prompt_ids: tuple[int, ...]
    prediction_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cases:
    """What can run, and the ids of the cases whose prompts are too long for the model."""

    fitting: tuple[Case, ...]
    skipped: tuple[str, ...]

    @property
    def content_types(self) -> tuple[str, ...]:
        """In the order of the cases."""
        return tuple(self.counts)

    @property
    def counts(self) -> dict[str, int]:
        """Cases per content type."""
        return dict(Counter(case.content_type for case in self.fitting))


class Generator(Protocol):
    """See `specdec.llm.LLM`."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]: ...


def greedy_answers(llm: Generator, max_tokens: int) -> Answer:
    """The model's own answers, for the turns that follow them."""

    def answer(case_id: str, prompt_ids: tuple[int, ...]) -> str:
        sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        request = Request(request_id=f"prepare {case_id}", prompt_ids=prompt_ids, sampling=sampling)
        return complete(llm.generate([request]))[0].text

    return answer


def prepare(
    prompts: Sequence[Prompt], tokenizer: TextTools, answer: Answer, max_prompt_tokens: int, progress: Progress
) -> Cases:
    """Tokenize every turn; `answer` is asked for the answers that a later turn follows, and for no others.

    A model without a chat template gets the first turn of each prompt as plain text.

    Raises:
        ConfigError: not a single case fits.
    """
    fitting: list[Case] = []
    skipped: list[str] = []
    with progress.task("Preparing prompts", len(prompts)) as advance:
        for prompt in prompts:
            for case in _turns(prompt, tokenizer, answer, max_prompt_tokens):
                if len(case.prompt_ids) <= max_prompt_tokens:
                    fitting.append(case)
                else:
                    skipped.append(case.id)
            advance(1)
    if not fitting:
        raise ConfigError(f"No prompt has at most {max_prompt_tokens} tokens; raise max_model_len or lower max_tokens.")
    return Cases(fitting=tuple(fitting), skipped=tuple(skipped))


def _turns(prompt: Prompt, tokenizer: TextTools, answer: Answer, max_prompt_tokens: int) -> list[Case]:
    turns = prompt.turns if tokenizer.has_chat_template else prompt.turns[:1]
    prediction = tuple(tokenizer.encode(prompt.prediction, add_special_tokens=False)) if prompt.prediction else ()
    messages: list[dict[str, Any]] = []
    cases: list[Case] = []
    for index, turn in enumerate(turns):
        messages.append({"role": "user", "content": turn})
        last = index == len(turns) - 1
        case = Case(
            id=prompt.id if len(turns) == 1 else f"{prompt.id}/{index + 1}",
            content_type=prompt.content_type,
            prompt_ids=tuple(
                tokenizer.chat(messages, list(prompt.tools) or None) if tokenizer.has_chat_template else tokenizer.encode(turn)
            ),
            prediction_ids=prediction if last else (),
        )
        cases.append(case)
        if len(case.prompt_ids) > max_prompt_tokens:
            break
        if not last:
            messages.append({"role": "assistant", "content": answer(case.id, case.prompt_ids)})
    return cases
