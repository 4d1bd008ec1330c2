"""Rounds that serve nobody, recorded when a GPU starts: so that no request waits for the compiler or for a recording, and costs
are known."""

import numpy as np
import torch

from specdec.draft.planner import Planner
from specdec.progress import Progress
from specdec.request import SamplingParams
from specdec.round.plan import ROW_BUCKETS, RoundPlan, chunk_bucket
from specdec.round.round import GRAPH_CHUNK, Round
from specdec.round.slots import Occupant

_MOST_ROWS = 8  # of a lone sequence's tree; larger ones are recorded when they come
_MOST_PAGES = 128  # of a lone sequence; longer ones are recorded when they come
_TRAFFIC_ROWS = (1, 2, 4, 8)  # of each sequence's tree on average, where there are several; others are recorded when they come
_MATCH = 2  # tokens that end the text as it began, so that there is something to look up


def rehearse(round_: Round, planner: Planner, max_chunk: int, max_model_len: int, progress: Progress) -> None:
    """Compile and record rounds, those of one sequence and those that traffic brings most; time those of one sequence. The
    first of each kind is computed: what a launch makes once and keeps, a recording finds.

    Args:
        round_: nothing may be underway.
        planner: is told what rounds take.
        max_chunk: prompt rows of a round.
        max_model_len: positions of a sequence.
        progress: shows how far it is.
    """
    chunks = _chunks(min(max_chunk, max_model_len - 1))
    widths = [rows for rows in ROW_BUCKETS if rows <= min(_MOST_ROWS, planner.max_nodes)]
    if not round_.drafting.drafters:
        widths = [1]
    pages = _page_buckets(round_)
    samplings = (SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_p=0.9))
    with progress.task("Recording prompts", len(chunks)) as advance:
        _enter(round_, samplings[0], max_model_len)
        for chunk in chunks:
            with torch.inference_mode():
                round_.slots.texts.lengths_S[0] = chunk + 1  # whatever stands there
            plan = _plan(chunk=chunk, nodes=1, pages=-(-(chunk + 1) // round_.slots.page_size))
            round_.rehearse(plan, compute=chunk == chunks[0])
            advance(1)
    with progress.task("Recording rounds", len(samplings) * len(pages) * len(widths)) as advance:
        for sampling in samplings:
            _enter(round_, sampling, max_model_len)
            for count in pages:
                for nodes in widths:
                    first = count == pages[0]
                    _rehearse_tree(round_, planner, nodes, count, compute=first, time=first and sampling is samplings[0])
                    advance(1)
    rows = [0, *(count for count in _TRAFFIC_ROWS if count <= planner.max_nodes and round_.drafting.drafters)]
    with progress.task("Recording traffic", len(samplings) * len(rows)) as advance:
        for sampling in samplings:
            _enter(round_, sampling, max_model_len)
            for nodes in rows:
                alone = round_.shape_of(_plan(nodes=max(nodes, 1), pages=1, drafting=nodes > 0))
                with torch.inference_mode():
                    for shape in round_.stand_ins.usual(alone):
                        round_.graphs.record(shape)
                advance(1)
    torch.cuda.synchronize()


def _rehearse_tree(round_: Round, planner: Planner, nodes: int, pages: int, compute: bool, time: bool) -> None:
    """A round with drafts, and of one row also one without. Timed with no draft that is good enough, and with all there are."""
    drafts = bool(round_.drafting.drafters)
    plain = _plan(nodes=1, pages=pages)
    if nodes == 1:
        round_.rehearse(plain, compute)
        if not drafts:
            return
    alone = _plan(nodes=nodes, pages=pages, drafting=True, least=2.0)
    round_.rehearse(alone, compute)
    if not time:
        return
    context = _MOST_ROWS + _MATCH
    seconds = round_.seconds_of(alone)
    if nodes == 1:
        taken = round_.seconds_of(plain)
        planner.costs.shift(taken, context)
        planner.costs.observe_drafting(1, seconds - taken)
    else:
        planner.costs.observe(nodes, 1, context, seconds, drafted_for=1)


def _enter(round_: Round, sampling: SamplingParams, max_model_len: int) -> None:
    """A sequence of random tokens in the first slot and the first pages, whose text ends as it began."""
    room = min(_MOST_ROWS + 1, max_model_len - _MATCH - 1)
    text = np.random.default_rng(1).integers(0, round_.forward.model.config.vocab_size, room).tolist()
    tokens = [*text, *text[:_MATCH]]
    pages = range(min(round_.slots.max_pages, round_.caches.room.num_pages))
    occupant = Occupant(
        tokens=tokens, num_prompt_tokens=len(tokens), sampling=sampling, stop_ids=frozenset(), pages=list(pages)
    )
    round_.enter(0, occupant, (1 << len(round_.drafting.names.names)) - 1)


def _plan(*, nodes: int, pages: int, chunk: int = 0, drafting: bool = False, least: float = 0.0) -> RoundPlan:
    return RoundPlan(
        slots=np.zeros(1, np.int64),
        firsts=np.zeros(1, np.int64),
        chunks=np.array([chunk]),
        nodes=np.array([nodes]),
        pages=pages,
        odds=np.ones(1),
        least=least,
        drafting=drafting,
    )


def _chunks(most: int) -> list[int]:
    """Prompt rows of all rounds that are recorded, and of some that are not."""
    recorded = sorted({chunk_bucket(count) for count in range(1, GRAPH_CHUNK + 1)})
    return [count for count in (*recorded, *(GRAPH_CHUNK << power for power in (1, 2, 3))) if count <= most] or [most]


def _page_buckets(round_: Round) -> list[int]:
    """The numbers of pages that a lone sequence's rounds are recorded for."""
    most = min(round_.slots.max_pages, _MOST_PAGES)
    return sorted({round_.page_bucket(count, 1) for count in range(1, most + 1)})
