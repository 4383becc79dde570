"""Work by several threads, taken in order, a few pieces ahead."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.ordered import map_ahead


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_results_come_in_the_order_of_the_items(pool, ahead):
    assert list(map_ahead(pool, lambda x: x * x, range(20), ahead=ahead)) == [x * x for x in range(20)]
    assert list(map_ahead(pool, str, [], ahead=ahead)) == []


def test_no_more_are_taken_than_so_many_ahead(pool):
    taken = []

    def items():
        for i in range(10):
            taken.append(i)
            yield i

    results = map_ahead(pool, lambda x: x, items(), ahead=3)
    assert next(results) == 0
    assert taken == [0, 1, 2, 3]
    assert next(results) == 1
    assert taken == [0, 1, 2, 3, 4]


def test_an_error_comes_where_its_result_would_have_come(pool):
    results = map_ahead(pool, lambda x: 1 // x, [1, 0, 1], ahead=3)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []
