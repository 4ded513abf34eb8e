"""Items made one ahead: same items, same order, errors where they belong."""

import threading

import pytest

from hilum.train.ahead import ahead


def test_same_items_in_order_and_one_early():
    made = []

    def items():
        for i in range(5):
            made.append((i, threading.current_thread().name))
            yield i

    seen = []
    for item in ahead(items()):
        seen.append(item)
        if item == 2:
            break
    assert seen == [0, 1, 2]
    assert [i for i, _ in made] in ([0, 1, 2, 3], [0, 1, 2])
    assert all(name.startswith("ahead") for _, name in made)
    assert list(ahead(iter([]))) == [] and list(ahead(iter("abc"))) == ["a", "b", "c"]


def test_an_error_is_raised_after_the_items_before_it():
    def items():
        yield 1
        raise ValueError("the second")

    rest = ahead(items())
    assert next(rest) == 1
    with pytest.raises(ValueError, match="second"):
        next(rest)
