"""Trees meant to break a verifier. For tests and `bench lossless` only."""

from specdec.drafters.adversarial.drafter import AdversarialDrafter

__all__ = ["AdversarialDrafter"]
