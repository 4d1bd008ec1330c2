"""Requests on their way: queues, rounds, outputs."""
