"""What a request must satisfy before it may queue."""

from collections.abc import Iterable
from dataclasses import dataclass

from specdec.errors import RequestError
from specdec.request import Request


@dataclass(frozen=True, slots=True)
class Admission:
    """The limits that requests are checked against.

    vocab_size: token ids lie below it.
    max_model_len: prompt and output together, in tokens; never more than the K/V pages hold.
    drafters: names a request may choose from.
    """

    vocab_size: int
    max_model_len: int
    drafters: tuple[str, ...]

    def check(self, request: Request) -> None:
        """Raise RequestError where the request could never be served."""
        self._check_length(request)
        self._check_ids("prompt", request.prompt_ids)
        self._check_ids("logit_bias", request.sampling.logit_bias)
        self._check_ids("stop_token_ids", request.sampling.stop_token_ids)
        self._check_ids("suppress_tokens", request.sampling.suppress_tokens)
        self._check_ids("prediction", request.prediction_ids)
        wanted = request.speculation.drafter
        if wanted is not None and wanted not in self.drafters:
            known = ", ".join(self.drafters) or "none"
            raise RequestError(
                f"speculative.drafter {wanted!r} does not run here; this server runs: {known}.",
                param="speculative.drafter",
                code="invalid_value",
            )

    def _check_length(self, request: Request) -> None:
        prompt, output = len(request.prompt_ids), request.sampling.max_tokens
        if prompt + output <= self.max_model_len:
            return
        found = f"This server's context holds {self.max_model_len} tokens, but the prompt has {prompt}"
        if prompt >= self.max_model_len:
            message, param = f"{found}. Shorten the prompt.", "prompt"
        else:
            more = f" and max_tokens asks for {output} more ({prompt + output} in all)"
            message, param = f"{found}{more}. Shorten the prompt or lower max_tokens.", "max_tokens"
        raise RequestError(message, param=param, code="context_length_exceeded")

    def _check_ids(self, field: str, ids: Iterable[int]) -> None:
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise RequestError(
                    f"{field} names token {token}, but token ids lie between 0 and {self.vocab_size - 1}.",
                    param=field,
                    code="invalid_value",
                )
