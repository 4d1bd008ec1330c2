"""Benches: how fast, how often a draft is right, and whether speculation changes anything."""
