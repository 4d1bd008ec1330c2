"""`specdec chat`: a conversation in the terminal. What drafters guessed right is shown in colour as it comes."""

import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from specdec.cli.generate import ctrl_c_noted, summary
from specdec.cli.options import takes_engine
from specdec.cli.progress import RichProgress
from specdec.config import EngineConfig
from specdec.errors import RequestError
from specdec.request import FinishReason, RequestOutput, SamplingParams

if TYPE_CHECKING:
    from specdec.llm import LLM
    from specdec.text.tokenizer import Tokenizer

_ACCEPTED = "green"
_HELP = (
    "Type a message and Enter. /new begins anew, /quit or Ctrl-D ends, Ctrl-C ends an answer. "
    f"[{_ACCEPTED}]This colour[/{_ACCEPTED}] marks tokens that a drafter guessed right."
)


@takes_engine(max_batch=1, cache_gb=1.0)
def chat(
    config: EngineConfig,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer; if not given, what the context holds.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the most likely token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Keep the most likely tokens of this much probability.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed and words give the same answers.")] = None,
) -> None:
    """Talk to a model in the terminal and watch it speculate."""
    from specdec.llm import LLM  # brings torch, which --help should not wait for

    drawn = secrets.randbits(63) if seed is None else seed
    sampling = SamplingParams(temperature=temperature, top_p=top_p, seed=drawn, max_tokens=max_tokens or 1)
    console, notes = Console(highlight=False), Console(stderr=True, highlight=False)
    llm = LLM.from_config(config, RichProgress(notes))
    notes.print(_HELP)
    first = [{"role": "system", "content": system}] if system else []
    messages = list(first)
    for line in _lines(console):
        if line == "/new":
            messages = list(first)
            continue
        messages.append({"role": "user", "content": line})
        try:
            answer = _answer(llm, messages, sampling, max_tokens, console, notes)
        except RequestError as error:
            notes.print(f"specdec: {error}", markup=False)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": answer})


def pieces(output: RequestOutput, num_accepted: int, tokenizer: "Tokenizer") -> tuple[str, str]:
    """The text of a delta in two: what its accepted drafts brought, and what the target added itself.

    A drafted token comes with the round that verified it, ahead of the target's own. Text that is held back moves a character
    or two over the border.
    """
    if not num_accepted:
        return "", output.text
    own = tokenizer.decode(output.token_ids[num_accepted:])
    drafted = output.text.removesuffix(own) if output.text.endswith(own) else output.text
    return drafted, output.text[len(drafted) :]


def _answer(
    llm: "LLM",
    messages: list[dict[str, str]],
    sampling: SamplingParams,
    max_tokens: int | None,
    console: Console,
    notes: Console,
) -> str:

    prompt = llm.tokenizer.chat(messages)
    room = max(1, llm.engine.max_model_len - len(prompt))
    said, num_tokens, told, last = "", 0, 0, None
    started = time.perf_counter()
    stream = llm.stream(prompt, replace(sampling, max_tokens=min(max_tokens or room, room)))
    with ctrl_c_noted() as interrupted:
        for last in stream:
            accepted = _accepted(last, told)
            told += accepted
            num_tokens += len(last.token_ids)
            drafted, own = pieces(last, accepted, llm.tokenizer)
            console.print(Text(drafted, style=_ACCEPTED) + Text(own), end="", soft_wrap=True)
            said += last.text
            if interrupted:
                break
        stream.close()
    console.print()
    if last is not None and last.finish_reason is FinishReason.ERROR:
        raise RequestError(last.error or "The answer failed.")
    if last is not None:
        seconds = time.perf_counter() - started
        notes.print(summary(num_tokens, seconds, last), style="dim", markup=False, soft_wrap=True)
    return said


def _accepted(output: RequestOutput, told: int) -> int:
    """Drafts among a delta's tokens. A round emits what it accepted and one token more; where an answer ends in the midst of
    that, its statistics know."""
    if output.stats is not None:
        return min(output.stats.num_accepted_tokens - told, len(output.token_ids))
    return max(len(output.token_ids) - 1, 0)


def _lines(console: Console) -> Iterator[str]:
    """What is typed, until the end; with the line editing that Python has, where it has some."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 (input() uses it once it is there)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in ("/quit", "/exit", "/bye"):
            return
        if line:
            yield line
