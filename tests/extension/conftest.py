"""A family and a drafter that are not shipped, entered where a fork would enter them; and tiny engines that run them.

A stage is a model on a device: a CPU, a CPU with the shapes that rounds have on a GPU, a GPU.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from specdec import assemble
from specdec.cache.kinds import cache_dtype, page_bytes, slot_bytes
from specdec.config import EngineConfig
from specdec.drafters import registry as drafters
from specdec.drafters.adversarial.drafter import OracleKey, oracle_key
from specdec.kernels.linear import PackedWeight, pack
from specdec.kernels.moe import Experts
from specdec.llm import LLM, Completion
from specdec.models import registry as models
from specdec.request import Request, SamplingParams
from specdec.round.round import Round
from tests.extension import tiny_head, tiny_hybrid

TinyCheckpoint = Callable[..., Path]
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
LONG = tuple((i * 7) % 250 + 3 for i in range(70))  # more than a page, on a GPU too
PROMPTS = (LONG, (*LONG[:37], 9, 8, 7), (*LONG[:37], *range(30, 50)), (5,), tuple(range(10, 43)))
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 0.7, "seed": 1},
    {"temperature": 1.0, "seed": 3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "logprobs": 1},
)
HYBRID: dict[str, Any] = {
    "model_type": "tiny_hybrid",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "eos_token_id": 2,
}


class DrawnWeights:
    """See `specdec.models.base.Weights`: whatever is asked for is drawn, and kept by its name."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._draw = torch.Generator().manual_seed(5)

    def has(self, name: str) -> bool:
        return False

    def plain(self, name: str, *shape: int) -> Tensor:
        noise = torch.randn(shape, generator=self._draw)
        near_one = "norm" in name
        scale = 0.2 if near_one else 0.5 if len(shape) != 2 else 0.15
        self.tensors[name] = noise * scale + near_one
        return self.tensors[name]

    def packed(self, *parts: tuple[str, int, int]) -> PackedWeight:
        return pack(torch.cat([self.plain(name, *shape) for name, *shape in parts]))

    def router(self, name: str, *shape: int) -> PackedWeight:
        raise AssertionError("the family has no experts")

    def experts(self, num_experts: int, *parts: tuple[str, int, int]) -> Experts:
        raise AssertionError("the family has no experts")

    def shared(self, plain: Tensor) -> PackedWeight:
        return pack(plain, keep_plain=True)


def _write_hybrid(folder: Path, tokenizer_of: Path, **overrides: Any) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_of / name, folder / name)
    fields = HYBRID | {"vocab_size": json.loads((tokenizer_of / "config.json").read_text())["vocab_size"]} | overrides
    (folder / "config.json").write_text(json.dumps(fields))
    drawn = DrawnWeights()
    tiny_hybrid.build(tiny_hybrid.read_config(fields), drawn)
    save_file(drawn.tensors, folder / "model.safetensors")


@dataclass(frozen=True)
class Stage:
    """Where engines run. as_gpu: on a CPU, with a GPU's shapes."""

    loaded: assemble.LoadedModel
    as_gpu: bool = False

    @property
    def device(self) -> str:
        return self.loaded.model.device.type

    @property
    def page_size(self) -> int:
        return 16 if self.device == "cpu" else 64

    def llm(self, oracle: Mapping[OracleKey, Sequence[int]] | None = None, pages: int | None = None, **fields: Any) -> LLM:
        """An engine; `pages` makes its cache tight."""
        base: dict[str, Any] = {"page_size": self.page_size, "cache_gb": 0.02, "drafters": (), "max_tree_nodes": 8}
        most = {} if pages is not None else {"max_model_len": 320}  # a GPU records rounds of all lengths
        fields = base | {"max_batch": 8, "adaptive": False} | most | fields
        if pages is not None:
            fields["cache_gb"] = self._gigabytes(pages, fields)
        dtype = "float32" if self.device == "cpu" else "bfloat16"
        config = EngineConfig(model=self.loaded.name, dtype=dtype, device=self.device, **fields)
        with pytest.MonkeyPatch.context() as patch:
            if self.as_gpu:
                given = Round.__init__
                patch.setattr(Round, "__init__", lambda self, **told: given(self, **told | {"fixed_shapes": True}))
            return LLM(assemble.build(config, loaded=self.loaded, oracle=oracle))

    def plain(self) -> LLM:
        """The engine that the others are held to."""
        return self.llm(max_batch=1, prefix_cache=False, chunk_tokens=1000, depth=0)

    def _gigabytes(self, pages: int, fields: dict[str, Any]) -> float:
        model = self.loaded.model
        stored = cache_dtype(model.dtype, model.device)
        head = tiny_head.TinyHead((), model).cache_specs if "tiny-head" in fields["drafters"] else ()
        each = page_bytes((*model.cache_specs, *head), self.page_size, stored)
        slots, marks = fields["max_batch"] + 1, (fields["max_batch"] if fields.get("prefix_cache", True) else 0) + 1
        path = fields["max_tree_nodes"] if fields["drafters"] else 1
        states = slots * slot_bytes(model.cache_specs, path, stored) + marks * slot_bytes(model.cache_specs, 0, stored)
        return float(each * (pages + 0.01) + states) / 1e9


class Pool:
    """Requests and their plain answers."""

    def __init__(
        self, plain: LLM, max_tokens: int = 20, prompts: Sequence[int] = range(len(PROMPTS)), samplings: int = len(SAMPLINGS)
    ) -> None:
        self.requests = [
            Request(
                request_id=f"{p}-{s}",
                prompt_ids=PROMPTS[p],
                sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=True, **sampling),
            )
            for p in prompts
            for s, sampling in enumerate(SAMPLINGS[:samplings])
        ]
        self.expected = {request.request_id: plain.generate([request])[0] for request in self.requests}
        self.oracle: dict[OracleKey, Sequence[int]] = {
            oracle_key(r.prompt_ids, r.sampling): self.expected[r.request_id].token_ids for r in self.requests
        }
        assert len({tuple(done.token_ids) for done in self.expected.values()}) > len(self.expected) // 2, "requests differ"

    def hold(self, found: Completion) -> None:
        """The same bits as plain decoding."""
        wanted = self.expected[found.request_id]
        assert found.token_ids == wanted.token_ids, found.request_id
        assert (found.text, found.logprobs) == (wanted.text, wanted.logprobs), found.request_id


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """A family's line and a drafter's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._FAMILIES, "tiny_hybrid", "tests.extension.tiny_hybrid")
        patch.setitem(drafters._FACTORIES, "tiny-head", tiny_head.make)
        yield


_LAYERS = {"hybrid": ["linear_attention", "full_attention"] * 2, "recurrent": ["linear_attention"] * 4}
_STAGES = [
    pytest.param((device, as_gpu), id=f"{device}{' as a GPU' if as_gpu else ''}", marks=marks)
    for device, as_gpu, marks in (("cpu", False, []), ("cpu", True, []), ("cuda", False, ON_GPU))
]


@pytest.fixture(scope="module")
def _made() -> dict[tuple[str, str], tuple[assemble.LoadedModel, Pool]]:
    return {}


@pytest.fixture(params=_STAGES)
def stages(
    request: pytest.FixtureRequest,
    registered: None,
    tiny_checkpoint: TinyCheckpoint,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    _made: dict[tuple[str, str], tuple[assemble.LoadedModel, Pool]],
) -> Callable[[str], tuple[Stage, Pool]]:
    """Of a family, `hybrid`, `recurrent` or one that is shipped: where it runs, and its requests with plain answers."""
    device, as_gpu = request.param
    if as_gpu:  # the steps that a recording has, too
        monkeypatch.setattr("specdec.cache.recurrent.uses_triton", lambda _device: True)

    def get(family: str) -> tuple[Stage, Pool]:
        if (family, device) not in _made:
            folder = tmp_path_factory.mktemp(family) if family in _LAYERS else tiny_checkpoint(family)
            if family in _LAYERS:
                _write_hybrid(folder, tiny_checkpoint("llama"), layer_types=_LAYERS[family])
            dtype = "float32" if device == "cpu" else "bfloat16"
            loaded = assemble.load(EngineConfig(model=str(folder), dtype=dtype, device=device))
            _made[family, device] = loaded, Pool(Stage(loaded).plain())
        loaded, pool = _made[family, device]
        return Stage(loaded, as_gpu), pool

    return get
