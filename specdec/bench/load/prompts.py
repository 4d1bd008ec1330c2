"""Prompts of steady traffic, each of them new to the engine: a suite's, with a tag where one is used again, or random ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from specdec.bench.cases import TextTools
from specdec.bench.suite import Prompt
from specdec.errors import ConfigError

_LONGEST_TAG = "(9999.9999.9999) "


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as tokens, and the user's message that the chat template makes them of; None where there is no template."""

    prompt_ids: tuple[int, ...]
    message: str | None = None


class Questions(Protocol):
    """A supply of prompts without end."""

    @property
    def longest(self) -> tuple[int, ...]:
        """Tokens of the different prompts, the longest first."""
        ...

    @property
    def note(self) -> str:
        """What they are, for those who read the figures."""
        ...

    def question(self, run: int, number: int) -> Question:
        """Prompt `number` of a run; no two are alike, of all runs."""
        ...


class SuiteQuestions:
    """The first turns of a suite's prompts, without their tools.

    Args:
        room: tokens that a prompt may have; longer ones are left out.
        nonce: set where an earlier bench may have asked the same server.

    Raises:
        ConfigError: none fits.
    """

    def __init__(self, prompts: Sequence[Prompt], tokenizer: TextTools, room: int, nonce: str = "") -> None:
        self._tokenizer = tokenizer
        self._nonce = nonce
        sizes = {prompt.turns[0]: len(self._question(_LONGEST_TAG + prompt.turns[0]).prompt_ids) for prompt in prompts}
        self._turns = [turn for turn, size in sizes.items() if size <= room]
        if not self._turns:
            raise ConfigError(f"No prompt has at most {room} tokens; raise max_model_len or lower max_tokens.")
        self._left_out = len(sizes) - len(self._turns)
        self._longest = tuple(sorted((sizes[turn] for turn in self._turns), reverse=True))

    @property
    def longest(self) -> tuple[int, ...]:
        return self._longest

    @property
    def note(self) -> str:
        left_out = f", {self._left_out} left out as too long" if self._left_out else ""
        tagged = "every" if self._nonce else "from its second use on, each"
        return f"first turns of {len(self._turns)} prompts{left_out}; {tagged} begins with a tag of its own, as in (2.1)"

    def question(self, run: int, number: int) -> Question:
        use, index = divmod(number, len(self._turns))
        tag = f"({self._nonce}{run}.{use}) " if run or use or self._nonce else ""
        return self._question(tag + self._turns[index])

    def _question(self, text: str) -> Question:
        if self._tokenizer.has_chat_template:
            return Question(tuple(self._tokenizer.chat([{"role": "user", "content": text}])), text)
        return Question(tuple(self._tokenizer.encode(text)))


class RandomQuestions:
    """`size` random tokens each."""

    def __init__(self, size: int, vocab_size: int, seed: int) -> None:
        self._size = size
        self._vocab_size = vocab_size
        self._seed = seed

    @property
    def longest(self) -> tuple[int, ...]:
        return (self._size,)

    @property
    def note(self) -> str:
        return f"{self._size} random tokens, no two prompts alike"

    def question(self, run: int, number: int) -> Question:
        drawn = np.random.default_rng((self._seed, run, number)).integers(0, self._vocab_size, self._size)
        return Question(tuple(drawn.tolist()))
