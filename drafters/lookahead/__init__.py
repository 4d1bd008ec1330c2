"""Lookahead decoding: n-grams that the target makes by itself, in rows of a Jacobi window beside its answer."""

from specdec.drafters.lookahead.drafter import LookaheadDrafter

__all__ = ["LookaheadDrafter"]
