"""PrefixIndex: finds the pages that already hold a prompt's beginning."""

import hashlib
from collections.abc import Sequence

import numpy as np

_ROOT = b""


def salted_root(salt: str) -> bytes:
    """What stands for the digest before a sequence's first page: only sequences of one salt find each other's pages."""
    return hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=16).digest() if salt else _ROOT


class PrefixIndex:
    """Full pages of committed tokens, by a digest of every token from the start of the sequence to the page's end.

    A row's K and V depend on its own history alone, bit for bit, so a page found here is the page that computing would give.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._page_of)

    def __contains__(self, page: int) -> bool:
        return page in self._digest_of

    def match(self, tokens: Sequence[int], root: bytes = _ROOT) -> list[int]:
        """The pages that hold the longest known beginning of `tokens`, among sequences of that root."""
        pages: list[int] = []
        digest = root
        for start in range(0, len(tokens) - self._page_size + 1, self._page_size):
            digest = _extend(digest, tokens[start : start + self._page_size])
            page = self._page_of.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def add(self, parent: bytes, tokens: Sequence[int], page: int) -> bytes:
        """Enter a full page whose predecessor has the digest `parent` (the root for the first); returns the page's digest.

        Where another page holds the same tokens already, that one stays.
        """
        digest = _extend(parent, tokens)
        if digest not in self._page_of:
            self._page_of[digest] = page
            self._digest_of[page] = digest
        return digest

    def digest(self, page: int) -> bytes:
        """The digest of a page that `match` gave."""
        return self._digest_of[page]

    def forget(self, page: int) -> bytes | None:
        """The page's content is no longer there; returns its digest, if it had one."""
        digest = self._digest_of.pop(page, None)
        if digest is not None:
            del self._page_of[digest]
        return digest


def _extend(parent: bytes, tokens: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(tokens, np.int64).tobytes(), digest_size=16, key=parent).digest()
