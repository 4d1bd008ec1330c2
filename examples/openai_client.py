"""The official client (`pip install openai`): streaming, logprobs, and a text that the answer resembles.

specdec serve &
python examples/openai_client.py
"""

import argparse
import math
import os

from openai import OpenAI

CODE = "def area(width, height):\n    return width * height\n"


def stream(client: OpenAI, model: str) -> None:
    """Print an answer as it comes."""
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Name three rivers of Europe."}],
        max_tokens=40,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in chunks:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None:
            print(f"\n[{chunk.usage.completion_tokens} tokens]")


def logprobs(client: OpenAI, model: str) -> None:
    """Print how sure the model was of each token, and what it nearly said."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Yes or no?"}],
        max_tokens=5,
        seed=1,
        logprobs=True,
        top_logprobs=2,
    )
    found = answer.choices[0].logprobs
    assert found is not None, "they were asked for"
    for token in found.content or []:
        others = ", ".join(f"{other.token!r} {math.exp(other.logprob):.0%}" for other in token.top_logprobs)
        print(f"{token.token!r} {math.exp(token.logprob):.0%} (most likely: {others})")


def prediction(client: OpenAI, model: str) -> None:
    """Send the text that the answer will resemble, and print how much of it was right."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"Add a docstring:\n{CODE}"}],
        max_tokens=60,
        temperature=0,
        prediction={"type": "content", "content": CODE},
        extra_body={"speculative": {"max_nodes": 16}},  # specdec's own field: at most so many tokens a round; may be left out
    )
    assert answer.usage is not None, "whole answers have it"
    details = answer.usage.completion_tokens_details
    assert details is not None, "specdec fills it in"
    accepted, rejected = details.accepted_prediction_tokens, details.rejected_prediction_tokens
    print(f"{answer.choices[0].message.content}\n[accepted {accepted} predicted tokens, rejected {rejected}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where `specdec serve` listens")
    url = parser.parse_args().url
    with OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("SPECDEC_API_KEY", "none")) as client:
        model = client.models.list().data[0].id
        stream(client, model)
        logprobs(client, model)
        prediction(client, model)


if __name__ == "__main__":
    main()
