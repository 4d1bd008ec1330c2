"""Counters of an engine, in Prometheus form: the names that dashboards of other engines use, under our prefix."""

import time
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from specdec.engine.sequence import Sequence
from specdec.engine.tally import Tally
from specdec.request import FinishReason

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series of each counter, which nobody reads


class Totals(NamedTuple):
    """Since an engine's start: tokens emitted, prompt tokens of requests that have started, and passes, one for each request in
    each round that gave it tokens."""

    tokens: int
    prompt_tokens: int
    passes: int


class EngineMetrics:
    """What an engine counts. Each engine has a registry of its own, so that several can live in one process.

    Args:
        model_name: the value of the label `model_name`.
    """

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._model = model_name
        self._drafts = self._counter("spec_decode_num_drafts", "Verifications of a tree with at least one draft")
        self._draft_tokens = self._counter("spec_decode_num_draft_tokens", "Drafted tokens that were verified")
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Drafted tokens that were accepted")
        self._accepted_at = Counter(
            "specdec:spec_decode_num_accepted_tokens_per_pos",
            "Accepted drafted tokens by their place in the path, from 0",
            ["model_name", "position"],
            registry=self.registry,
        )
        self._accepted_here: list[Counter] = []  # the same by place, since looking one up takes longer than counting
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests that started")
        self._looked_up = self._counter("prefix_cache_queries", "Prompt tokens looked for in the prefix cache")
        self._cached_tokens = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache")
        self._generated = self._counter("generation_tokens", "Tokens emitted")
        self._preemptions = self._counter("num_preemptions", "Sequences that gave their pages back for a while")
        self._finished = Counter(
            "specdec:request_success", "Requests by how they ended", ["model_name", "finished_reason"], registry=self.registry
        )
        self._running = self._gauge("num_requests_running", "Requests that decode or prefill")
        self._waiting = self._gauge("num_requests_waiting", "Requests in the queue")
        self._cache_usage = self._gauge("kv_cache_usage_perc", "Share of K/V pages that requests hold, 0 to 1")
        self._first_token = self._histogram("time_to_first_token_seconds", "From submission to the first token")
        between = "Time between tokens as they come; those that come together share it"
        self._between = Tally("specdec:inter_token_latency_seconds", between, model_name, _SECONDS, self.registry)
        self._per_token = self._histogram("request_time_per_output_token_seconds", "Mean time of a token behind the first one")
        self._queued = self._histogram("request_queue_time_seconds", "From submission to the first round")
        self._prefill = self._histogram("request_prefill_time_seconds", "From the first round to the first token")
        self._decode = self._histogram("request_decode_time_seconds", "From the first token to the last")
        self._prompt_sizes = self._histogram("request_prompt_tokens", "Prompt tokens of a request", _TOKENS)
        self._answer_sizes = self._histogram("request_generation_tokens", "Tokens emitted for a request", _TOKENS)
        self._whole = self._histogram("e2e_request_latency_seconds", "From submission to the end")
        self._num_preemptions = 0
        self._state: tuple[int, int, float, int] | None = None  # as it was told last
        self._num_tokens = self._num_prompt_tokens = self._num_passes = 0
        self._counted = 0  # of the tokens, by the counter
        self._uncounted_drafts = 0  # of this round
        self._uncounted_lengths: dict[int, int] = {}  # drafts accepted -> trees of this round

    def _counter(self, name: str, description: str) -> Counter:
        return Counter(f"specdec:{name}", description, ["model_name"], registry=self.registry).labels(self._model)

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(f"specdec:{name}", description, ["model_name"], registry=self.registry).labels(self._model)

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        histogram = Histogram(f"specdec:{name}", description, ["model_name"], buckets=buckets, registry=self.registry)
        return histogram.labels(self._model)

    @property
    def totals(self) -> Totals:
        """As of now."""
        return Totals(self._num_tokens, self._num_prompt_tokens, self._num_passes)

    def on_schedule(self, num_running: int, num_waiting: int, cache_usage: float, num_preemptions: int) -> None:
        """The state at the start of a round. `num_preemptions` counts from the engine's start."""
        state = (num_running, num_waiting, cache_usage, num_preemptions)
        if state == self._state:
            return
        self._state = state
        self._running.set(num_running)
        self._waiting.set(num_waiting)
        self._cache_usage.set(cache_usage)
        self._preemptions.inc(num_preemptions - self._num_preemptions)
        self._num_preemptions = num_preemptions

    def on_start(self, sequence: Sequence) -> None:
        """A request takes part in its first round."""
        self._num_prompt_tokens += sequence.num_prompt_tokens
        self._prompt_tokens.inc(sequence.num_prompt_tokens)
        self._looked_up.inc(sequence.num_prompt_tokens)
        self._cached_tokens.inc(sequence.num_prefix_hits)
        sequence.started_at = time.monotonic()
        self._queued.observe(sequence.started_at - sequence.arrival)

    def on_tokens(self, sequence: Sequence, num_tokens: int) -> None:
        """A round emitted so many tokens of a request."""
        if not num_tokens:
            return
        self._num_tokens += num_tokens
        self._num_passes += 1
        now = time.monotonic()
        if sequence.first_token_at is None:
            sequence.first_token_at = now
            self._first_token.observe(now - sequence.arrival)
            self._prefill.observe(now - sequence.started_at)
        else:
            self._between.add((now - sequence.last_token_at) / num_tokens, num_tokens)
        sequence.last_token_at = now

    def on_drafts(self, num_drafts: int, num_accepted: int) -> None:
        """A round verified drafts of a request; those accepted past its end do not count."""
        self._uncounted_drafts += num_drafts
        lengths = self._uncounted_lengths
        lengths[num_accepted] = lengths.get(num_accepted, 0) + 1

    def on_round(self) -> None:
        """Count what the round before gave, once for all requests: a counter takes longer than a sum."""
        self._generated.inc(self._num_tokens - self._counted)
        self._counted = self._num_tokens
        if self._uncounted_drafts:
            self._draft_tokens.inc(self._uncounted_drafts)
            for length, count in self._uncounted_lengths.items():
                self._count_trees(length, count)
            self._uncounted_drafts = 0
            self._uncounted_lengths.clear()

    def _count_trees(self, num_accepted: int, count: int) -> None:
        """So many trees had so many drafts accepted."""
        self._drafts.inc(count)
        self._accepted.inc(num_accepted * count)
        while len(self._accepted_here) < num_accepted:
            self._accepted_here.append(self._accepted_at.labels(self._model, str(len(self._accepted_here))))
        for counter in self._accepted_here[:num_accepted]:
            counter.inc(count)

    def on_finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """A request is over."""
        self.on_round()
        now = time.monotonic()
        self._finished.labels(self._model, reason.value).inc()
        self._whole.observe(now - sequence.arrival)
        self._prompt_sizes.observe(sequence.num_prompt_tokens)
        self._answer_sizes.observe(sequence.num_output_tokens)
        if sequence.first_token_at is not None:
            decoding = sequence.last_token_at - sequence.first_token_at
            self._decode.observe(decoding)
            if sequence.num_output_tokens > 1:
                self._per_token.observe(decoding / (sequence.num_output_tokens - 1))
