"""Drafts from a smaller model with the same tokenizer, inside the round."""

from specdec.drafters.model.drafter import ModelDrafter

__all__ = ["ModelDrafter"]
