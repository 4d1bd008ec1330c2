"""A model in this process, without a server: several prompts at once, a conversation, a stream, a predicted text.

python examples/offline.py
"""

import argparse

from specdec import LLM, Request, SamplingParams

CODE = "def area(width, height):\n    return width * height\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="alias, folder, .gguf file or hub id")
    llm = LLM(parser.parse_args().model, cache_gb=0.5)
    sampling = SamplingParams(temperature=0.0, max_tokens=40)

    for answer in llm.generate(["The rivers of Europe are", "A prime number is"], sampling):
        print(f"{answer.prompt}\n  whole: {answer.text!r}")

    question = [{"role": "user", "content": "What is a prime number?"}]
    (answer,) = llm.chat(question, SamplingParams(temperature=0.8, seed=1, max_tokens=20, n=2))
    for choice in answer.outputs:
        print(f"one of two: {choice.text!r}")

    print("streamed: ", end="")
    for delta in llm.stream_chat(question, sampling):
        print(delta.text, end="", flush=True)

    request = Request(
        request_id="predicted",
        prompt_ids=tuple(llm.tokenizer.chat([{"role": "user", "content": f"Add a docstring:\n{CODE}"}])),
        sampling=sampling,
        prediction_ids=tuple(llm.tokenizer.encode(CODE, add_special_tokens=False)),
    )
    (answer,) = llm.generate(request)
    print(f"\nWith a prediction: {answer.stats.mean_acceptance_length:.2f} tokens a round\n{answer.text}")


if __name__ == "__main__":
    main()
