"""Drafts by looking up what followed the last times that the present words stood somewhere: in the request's own text
(`ngram`), in the text that it expects (`prediction`), in earlier answers (`suffix`)."""

from specdec.drafters.lookup.drafter import LookupDrafter

__all__ = ["LookupDrafter"]
