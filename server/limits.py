"""Bounds of what a server takes, for those who must not wait for aiohttp to know them."""

MOST_WAITING = 4096  # requests, unless told; each holds its prompt, some 100 kB where that is long
