"""A drafter of your own in plain Python. It may be wrong or silent at will: the answer stays the same, only the speed changes.

python examples/own_drafter.py
"""

import argparse
from collections.abc import Sequence

from specdec.config import EngineConfig
from specdec.drafters.registry import on_host
from specdec.llm import LLM
from specdec.request import Request, SamplingParams, SpeculationParams

ENDING, MOST = 2, 8


def repeat(tokens: Sequence[int]) -> Sequence[int]:
    """What followed the last tokens where they stood before. Called before each round with the prompt and the answer so far.

    A branching proposal is a `specdec.draft.tree.DraftTree`.
    """
    for start in range(len(tokens) - ENDING - 1, -1, -1):
        if tokens[start : start + ENDING] == tokens[-ENDING:]:
            return tokens[start + ENDING : start + ENDING + MOST]
    return ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="alias, folder, .gguf file or hub id")
    config = EngineConfig(model=parser.parse_args().model, cache_gb=0.5, drafters=("repeat",), adaptive=False)
    llm = LLM.from_config(config, drafters={"repeat": on_host(repeat)})

    question = "Repeat after me: The rivers of Europe are the Danube, the Rhine and the Volga."
    prompt = tuple(llm.tokenizer.chat([{"role": "user", "content": question}]))
    sampling = SamplingParams(temperature=0.0, max_tokens=60)
    plain = Request(request_id="plain", prompt_ids=prompt, sampling=sampling, speculation=SpeculationParams(enabled=False))
    without, drafted = llm.generate([plain, Request(request_id="drafted", prompt_ids=prompt, sampling=sampling)])
    print(drafted.text)
    print(f"the same as without drafts: {drafted.token_ids == without.token_ids}")
    stats = drafted.stats
    print(f"accepted {stats.num_accepted_tokens} of {stats.num_draft_tokens} drafts in {stats.num_steps} rounds")


if __name__ == "__main__":
    main()
