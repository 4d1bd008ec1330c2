"""A model in this process, without a server: several prompts at once, one streamed, one with a text that its answer resembles.

python examples/offline.py
"""

import argparse

from specdec.config import EngineConfig
from specdec.llm import LLM
from specdec.request import Request, SamplingParams

CODE = "def area(width, height):\n    return width * height\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="alias, folder, .gguf file or hub id")
    llm = LLM.from_config(EngineConfig(model=parser.parse_args().model, cache_gb=0.5))

    def request(name: str, question: str, prediction: str = "") -> Request:
        return Request(
            request_id=name,
            prompt_ids=tuple(llm.tokenizer.chat([{"role": "user", "content": question}])),
            sampling=SamplingParams(temperature=0.0, max_tokens=40),
            prediction_ids=tuple(llm.tokenizer.encode(prediction, add_special_tokens=False)),
        )

    questions = ["Name three rivers of Europe.", "What is a prime number?"]
    for answer in llm.generate([request(question, question) for question in questions]):
        print(f"{answer.request_id}\n  whole: {answer.text!r}")

    print("  streamed: ", end="")
    for delta in llm.stream(request("streamed", questions[1])):
        print(delta.text, end="", flush=True)

    (answer,) = llm.generate([request("predicted", f"Add a docstring:\n{CODE}", prediction=CODE)])
    print(f"\nWith a prediction: {answer.stats.mean_acceptance_length:.2f} tokens a round\n{answer.text}")


if __name__ == "__main__":
    main()
