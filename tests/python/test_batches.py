"""Batches are neighbours in their order, within bounds, and none is smaller than it has to be."""

from hypothesis import given
from hypothesis import strategies as st
from shardwright.batches import in_batches


@given(st.lists(st.integers(0, 12)), st.integers(1, 20))
def test_batches_are_all_items_in_order_within_bounds_and_as_large_as_they_may_be(sizes, most):
    batches = list(in_batches(enumerate(sizes), lambda item: item[1], most))
    assert [item for batch in batches for item in batch] == list(enumerate(sizes))
    totals = [sum(size for _, size in batch) for batch in batches]
    for batch, total in zip(batches, totals, strict=True):
        assert total <= most or [size for _, size in batch if size] == [total]
    for total, (first, *_) in zip(totals, batches[1:], strict=False):
        assert first[1] > 0 and total + first[1] > most


def test_no_item_is_asked_for_before_the_batch_that_it_is_not_in_has_been_taken():
    asked = []

    def items():
        for number in range(4):
            asked.append(number)
            yield number

    batches = in_batches(items(), lambda item: 1, 2)
    assert next(batches) == [0, 1] and asked == [0, 1, 2]
