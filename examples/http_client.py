"""Plain HTTP, with nothing but Python's own library: a whole answer, a streamed one, and what a refusal looks like.

specdec serve &
python examples/http_client.py
"""

import argparse
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any


def ask(url: str, body: dict[str, Any] | None = None) -> HTTPResponse:
    """POST with a body, GET without one."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('SPECDEC_API_KEY', 'none')}"}
    data = None if body is None else json.dumps(body).encode()
    response: HTTPResponse = urllib.request.urlopen(urllib.request.Request(url, data, headers))
    return response


def events(response: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream: lines that begin with `data: `, the last of them `[DONE]`."""
    for line in response:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line.removeprefix(b"data: "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where `specdec serve` listens")
    url = f"{parser.parse_args().url}/v1"
    with ask(f"{url}/models") as response:
        model = json.load(response)["data"][0]["id"]

    body = {"model": model, "prompt": "The rivers of Europe are", "max_tokens": 24, "temperature": 0}
    with ask(f"{url}/completions", body) as response:
        answer = json.load(response)
    print(f"whole: {answer['choices'][0]['text']!r}")
    print(
        f"  {answer['usage']['completion_tokens']} tokens, {answer['metrics']['speculative_decoding']['num_spec_steps']} rounds"
    )

    with ask(f"{url}/completions", body | {"stream": True}) as response:
        pieces = [choice["text"] for event in events(response) for choice in event["choices"]]
    print(f"streamed: {''.join(pieces)!r}")

    try:
        ask(f"{url}/completions", body | {"temperature": "hot"})
    except urllib.error.HTTPError as refusal:
        print(f"refused with {refusal.code}: {json.load(refusal)['error']}")


if __name__ == "__main__":
    main()
