"""The counters, as a scraper reads them."""

from prometheus_client import generate_latest

from specdec.engine.metrics import EngineMetrics
from specdec.engine.sequence import Sequence
from specdec.request import FinishReason, Request, SamplingParams


def test_counters_follow_a_request() -> None:
    metrics = EngineMetrics("tiny")
    sequence = Sequence(
        request=Request(request_id="a", prompt_ids=(1, 2, 3), sampling=SamplingParams(max_tokens=9)),
        sink=lambda _output: None,
        stop_ids=frozenset(),
        stream=None,  # type: ignore[arg-type]
        tokens=[1, 2, 3],
        arrival=0.0,
    )
    metrics.on_schedule(num_running=1, num_waiting=2, cache_usage=0.25, num_preemptions=3)
    metrics.on_schedule(num_running=1, num_waiting=2, cache_usage=0.25, num_preemptions=4)
    metrics.on_start(sequence)
    for num_tokens in (3, 1, 1):
        metrics.on_tokens(sequence, num_tokens)
    metrics.on_drafts(4, num_accepted=2)
    metrics.on_drafts(2, num_accepted=1)
    sequence.tokens += [4, 5, 6, 7, 8]
    metrics.on_finish(sequence, FinishReason.LENGTH)
    text = generate_latest(metrics.registry).decode()
    for line in (
        'specdec:spec_decode_num_drafts_total{model_name="tiny"} 2.0',
        'specdec:spec_decode_num_draft_tokens_total{model_name="tiny"} 6.0',
        'specdec:spec_decode_num_accepted_tokens_total{model_name="tiny"} 3.0',
        'specdec:spec_decode_num_accepted_tokens_per_pos_total{model_name="tiny",position="1"} 1.0',
        'specdec:prompt_tokens_total{model_name="tiny"} 3.0',
        'specdec:generation_tokens_total{model_name="tiny"} 5.0',
        'specdec:num_preemptions_total{model_name="tiny"} 4.0',
        'specdec:num_requests_waiting{model_name="tiny"} 2.0',
        'specdec:kv_cache_usage_perc{model_name="tiny"} 0.25',
        'specdec:request_success_total{finished_reason="length",model_name="tiny"} 1.0',
        'specdec:time_to_first_token_seconds_count{model_name="tiny"} 1.0',
        'specdec:inter_token_latency_seconds_count{model_name="tiny"} 2.0',
        'specdec:request_time_per_output_token_seconds_count{model_name="tiny"} 1.0',
        'specdec:request_prompt_tokens_sum{model_name="tiny"} 3.0',
        'specdec:request_generation_tokens_sum{model_name="tiny"} 5.0',
        'specdec:prefix_cache_queries_total{model_name="tiny"} 3.0',
    ):
        assert line in text, line
    assert 'position="2"' not in text
