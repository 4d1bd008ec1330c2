"""GET /metrics: what Prometheus scrapes."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from specdec.engine.tally import Tally
from specdec.text.tokenizer import Tokenizer
from tests.server.conftest import Client, Poll, Start
from tests.server.fake_engine import ANSWER, MODEL, NUM_CACHED, FakeEngine, Script

pytestmark = pytest.mark.timeout(60)
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


def openmetrics(text: str) -> list[Any]:
    return list(openmetrics_families(text))  # type: ignore[no-untyped-call]


async def scrape(client: Client, **labels: str) -> dict[str, float]:
    """All samples with these labels, by name."""
    text = await (await client.get("/metrics")).text()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    wanted = {"model_name": MODEL} | labels
    return {sample.name: sample.value for sample in samples if sample.labels == wanted}


async def chat(client: Client, **fields: Any) -> None:
    response = await client.post("/v1/chat/completions", json=HELLO | fields)
    assert response.status == 200
    await response.read()


async def test_the_text_is_prometheus_own(client: Client) -> None:
    response = await client.get("/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    found = await scrape(client)
    assert all(name.startswith("specdec:") for name in found)
    assert not [name for name in found if name.endswith("_created")]
    assert {
        "specdec:spec_decode_num_drafts_total",
        "specdec:spec_decode_num_draft_tokens_total",
        "specdec:spec_decode_num_accepted_tokens_total",
        "specdec:num_requests_running",
        "specdec:num_requests_waiting",
        "specdec:kv_cache_usage_perc",
    } <= found.keys()


async def test_a_request_is_counted(client: Client, tokenizer: Tokenizer) -> None:
    await chat(client)
    await chat(client, stream=True)
    found = await scrape(client)
    num_prompt, num_answer = len(tokenizer.chat(HELLO["messages"])), len(tokenizer.encode(ANSWER)) + 1  # type: ignore[arg-type]
    assert found["specdec:prompt_tokens_total"] == 2 * num_prompt
    assert found["specdec:generation_tokens_total"] == 2 * num_answer
    assert found["specdec:e2e_request_latency_seconds_count"] == 2
    assert found["specdec:prefix_cache_queries_total"] == 2 * num_prompt
    assert found["specdec:prefix_cache_hits_total"] == 2 * NUM_CACHED
    assert found["specdec:request_prompt_tokens_sum"] == 2 * num_prompt
    assert found["specdec:request_generation_tokens_sum"] == 2 * num_answer
    assert found["specdec:inter_token_latency_seconds_count"] == 2 * (num_answer - 3), "but the first three, which came at once"
    for name in ("queue", "prefill", "decode"):
        assert found[f"specdec:request_{name}_time_seconds_count"] == 2
    assert found["specdec:request_time_per_output_token_seconds_count"] == 2
    assert found["specdec:spec_decode_num_accepted_tokens_total"] > 0
    assert (await scrape(client, finished_reason="stop"))["specdec:request_success_total"] == 2
    assert (await scrape(client, position="0"))["specdec:spec_decode_num_accepted_tokens_per_pos_total"] > 0


async def test_what_runs_can_be_seen_while_it_runs(client: Client, engine: FakeEngine, poll: Poll) -> None:
    engine.scripts["hello"] = Script(pause_after=3)
    running = asyncio.create_task(chat(client))
    await poll.until(lambda: engine.requests)
    async with asyncio.timeout(5):
        while (await scrape(client))["specdec:num_requests_running"] != 1:
            await asyncio.sleep(0.01)
    engine.resume()
    await running
    async with asyncio.timeout(5):
        while (await scrape(client))["specdec:num_requests_running"] != 0:
            await asyncio.sleep(0.01)


async def test_refused_requests_do_not_count(client: Client) -> None:
    before = await scrape(client)
    assert (await client.post("/v1/chat/completions", json=HELLO | {"temperature": -9})).status == 400
    after = await scrape(client)
    for name in ("specdec:prompt_tokens_total", "specdec:e2e_request_latency_seconds_count"):
        assert after[name] == before[name]


async def test_the_process_is_told(client: Client) -> None:
    text = await (await client.get("/metrics")).text()
    found = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["process_open_fds"] > 0


async def test_openmetrics_for_those_who_ask(client: Client) -> None:
    await chat(client)
    plain, asked = await asyncio.gather(
        client.get("/metrics"), client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    )
    assert plain.headers["Content-Type"].startswith("text/plain")
    assert asked.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    found = {sample.name: sample.value for family in openmetrics(await asked.text()) for sample in family.samples}
    assert found["specdec:generation_tokens_total"] > 0


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
async def test_vllms_names_for_those_who_know_no_others(start: Start, accept: str) -> None:
    client = await start(vllm_metrics=True)
    await chat(client)
    text = await (await client.get("/metrics", headers={"Accept": accept})).text()
    families = openmetrics(text) if accept else text_string_to_metric_families(text)
    found = {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}
    again = {
        (f"vllm:{name.removeprefix('specdec:')}", *rest): value for (name, *rest), value in found.items() if "specdec" in name
    }
    assert again == {key: value for key, value in found.items() if key[0].startswith("vllm:")}
    assert again["vllm:spec_decode_num_drafts_total", MODEL] > 0


def test_a_tally_is_a_histogram() -> None:
    values, registry = [0.001, 0.02, 0.02, 0.05, 7.0], CollectorRegistry()
    tally = Tally("a", "as it is", "m", (0.01, 0.02, 0.1), registry)
    histogram = Histogram("b", "as it is", ["model_name"], buckets=(0.01, 0.02, 0.1), registry=registry).labels("m")
    for value in values:
        histogram.observe(value)
        histogram.observe(value)
        tally.add(value, 2)
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert [line[1:] for line in lines if line[0] == "a"] == [line[1:] for line in lines if line[0] == "b"]
