"""Drafts that are made on the host, by a function in plain Python."""

from specdec.drafters.host.drafter import HostDrafter, Propose

__all__ = ["HostDrafter", "Propose"]
