"""`specdec generate`: one prompt, its answer as it comes, and how it came."""

import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from specdec.cli.options import takes_engine
from specdec.cli.progress import RichProgress
from specdec.config import EngineConfig
from specdec.errors import ConfigError
from specdec.request import FinishReason, Request, RequestOutput, SamplingParams

if TYPE_CHECKING:
    from specdec.text.tokenizer import Tokenizer

_INTERRUPTED = 130  # what shells report for Ctrl-C


@takes_engine(max_batch=1, cache_gb=1.0)
def generate(
    config: EngineConfig,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The prompt; standard input if not given.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--raw", help="With the chat template, or the bare text. Chat where there is a template."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep this many tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the most likely tokens of this much probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the best one's probability.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes repetition less likely.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text; drawn if not given.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the model's stop token.")] = False,
    prediction: Annotated[str, typer.Option(help="Text that the answer is expected to resemble.")] = "",
) -> None:
    """Generate text from a prompt."""
    sampling = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=secrets.randbits(63) if seed is None else seed,
        stop=tuple(stop or ()),
        max_tokens=max_tokens,
        ignore_eos=ignore_eos,
    )
    text = read_stdin() if prompt is None else prompt
    _require_utf8(text, "The prompt")
    _require_utf8(prediction, "The prediction")
    if not text.strip():
        raise ConfigError("The prompt is empty; give one with -p or on standard input.")
    raise typer.Exit(_run(config, sampling, text, chat, prediction))


def _run(config: EngineConfig, sampling: SamplingParams, text: str, chat: bool | None, prediction: str) -> int:
    from specdec.llm import LLM  # brings torch, which --help should not wait for

    console = Console(stderr=True)
    llm = LLM.from_config(config, RichProgress(console))
    request = Request(
        request_id="generate",
        prompt_ids=tuple(_encode(llm.tokenizer, text, chat)),
        sampling=sampling,
        prediction_ids=tuple(llm.tokenizer.encode(prediction, add_special_tokens=False)) if prediction else (),
    )
    num_tokens, last = 0, None
    started = time.perf_counter()
    with ctrl_c_noted() as interrupted:
        for last in llm.stream(request):
            num_tokens += len(last.token_ids)
            print(last.text, end="", flush=True)
            if interrupted and last.finish_reason is None:
                llm.engine.abort(request.request_id)
    print(flush=True)
    assert last is not None, "a stream ends with an output"
    if last.finish_reason is FinishReason.ERROR:
        print(f"specdec: {last.error}", file=sys.stderr)
        return 1
    console.print(summary(num_tokens, time.perf_counter() - started, last), highlight=False, markup=False, soft_wrap=True)
    return _INTERRUPTED if interrupted else 0


def read_stdin() -> str:
    """All of standard input, which is UTF-8 whatever the terminal's language is.

    Raises:
        ConfigError: it is not.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"Standard input is not UTF-8 (byte {error.start}); convert it, with iconv for example.") from error


def _require_utf8(text: str, what: str) -> None:
    """Bytes of the command line that are no UTF-8 come as half characters, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{what} is not UTF-8 (character {error.start}); set a UTF-8 locale or use standard input."
        ) from error


def summary(num_tokens: int, seconds: float, last: RequestOutput) -> str:
    """How fast it was, and who guessed right."""
    speed = f"{num_tokens} tokens in {seconds:.2f} s: {num_tokens / max(seconds, 1e-9):.1f} tok/s"
    if last.stats is None:  # interrupted
        return f"[{speed}]"
    stats = last.stats
    accepted = {name: count for name, count in stats.accepted_by_drafter.items() if count}
    shares = ", ".join(f"{name} {count} ({count / num_tokens:.0%})" for name, count in accepted.items()) if num_tokens else ""
    return f"[{speed}, acceptance length {stats.mean_acceptance_length:.2f}, tokens from drafters: {shares or 'none'}]"


def _encode(tokenizer: "Tokenizer", text: str, chat: bool | None) -> list[int]:
    if tokenizer.has_chat_template if chat is None else chat:
        return tokenizer.chat([{"role": "user", "content": text}])
    return tokenizer.encode(text)


@contextmanager
def ctrl_c_noted() -> Iterator[list[int]]:
    """Yields a list that Ctrl-C adds to, so that a round is never torn apart; a second Ctrl-C does tear it."""
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
