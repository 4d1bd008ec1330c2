"""A draft model on pages of its own: what the drafter `draft-model` runs on."""

import numpy as np
import torch
from torch import Tensor

from specdec.arrays import IntArray
from specdec.cache.attention import KVPool, cache_dtype
from specdec.cache.pages import PageAllocator
from specdec.models.base import Model
from specdec.round.batch import RowSpec, build_rows
from specdec.round.runner import Runner


class DraftRunner:
    """`specdec.drafters.draft_model.TreeModel` over a runner and a page allocator.

    Args:
        model: the draft model.
        num_pages: of its own pool.
        page_size: tokens per page.
        max_model_len: positions of one sequence.
        row_multiple: see `Runner`.
    """

    def __init__(self, model: Model, num_pages: int, page_size: int, max_model_len: int, row_multiple: int) -> None:
        self.vocab_size = model.config.vocab_size
        self.max_model_len = max_model_len
        pool = KVPool(model.cache_specs, num_pages, page_size, cache_dtype(model.dtype, model.device), model.device)
        self._runner = Runner(model, pool, row_multiple=row_multiple)
        self._allocator = PageAllocator(num_pages)
        self._pages: dict[str, list[int]] = {}

    def grow(self, request_id: str, num_tokens: int) -> IntArray | None:
        """See `TreeModel.grow`."""
        pages = self._pages.setdefault(request_id, [])
        missing = -(-num_tokens // self._runner.pool.page_size) - len(pages)
        if missing > 0:
            more = self._allocator.allocate(missing, after=pages[-1] if pages else None)
            if more is None:
                return None
            pages += more.tolist()
        return np.array(pages, np.int64)

    def free(self, request_id: str) -> None:
        """See `TreeModel.free`."""
        self._allocator.release(self._pages.pop(request_id, []))

    def forward(self, specs: list[RowSpec]) -> Tensor:
        """See `TreeModel.forward`."""
        logits = self._runner.forward(build_rows(specs, self._runner.pool.page_size, self._runner.device)).logits_TV
        return torch.empty(0, self.vocab_size, device=self._runner.device) if logits is None else logits
