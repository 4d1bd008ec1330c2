"""The prefix index finds whole pages of the same history, and nothing else."""

import pytest

from specdec.cache.prefix import PrefixIndex, salted_root


def test_whole_pages_of_the_same_history_only() -> None:
    index = PrefixIndex(page_size=4)
    tokens = list(range(12))
    digest, digests = b"", []
    for number, page in enumerate((5, 9, 7)):
        digest = index.add(digest, tokens[number * 4 : number * 4 + 4], page)
        digests.append(digest)
    assert index.match(tokens) == [5, 9, 7]
    assert index.match(tokens[:11]) == [5, 9]
    assert index.match(tokens[:3]) == []
    assert index.match([99, *tokens[1:]]) == []
    assert index.match(tokens[4:8]) == [], "the same tokens elsewhere have another history"
    assert [index.digest(page) for page in (5, 9, 7)] == digests
    index.forget(9)
    assert index.match(tokens) == [5]
    assert 7 in index
    assert 9 not in index
    assert len(index) == 2


def test_a_second_page_of_the_same_tokens_does_not_replace_the_first() -> None:
    index = PrefixIndex(page_size=2)
    assert index.add(b"", [1, 2], 0) == index.add(b"", [1, 2], 1)
    index.forget(1)
    assert index.match([1, 2]) == [0]


def test_forgetting_what_is_not_known_changes_nothing() -> None:
    index = PrefixIndex(page_size=1)
    index.add(b"", [3], 4)
    index.forget(8)
    assert index.match([3, 5]) == [4]
    with pytest.raises(KeyError):
        index.digest(8)


def test_salts_keep_histories_apart() -> None:
    index = PrefixIndex(2)
    for page, salt in enumerate(("", "a", "b")):
        index.add(salted_root(salt), [1, 2], page)
    assert [index.match([1, 2, 3], salted_root(salt)) for salt in ("", "a", "b", "c")] == [[0], [1], [2], []]
    assert index.match([1, 2]) == [0]
