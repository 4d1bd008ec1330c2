"""GET /metrics: what Prometheus scrapes."""

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from specdec.text.tokenizer import Tokenizer
from tests.server.conftest import Client, Poll
from tests.server.fake_engine import ANSWER, MODEL, FakeEngine, Script

pytestmark = pytest.mark.timeout(60)
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


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
