"""Ranks that read together, 2 and 4 over Gloo. The checks are in workers/cooperative.py."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from outcomes import outcome_of

pytestmark = pytest.mark.ranks


@pytest.fixture(
    scope="module",
    params=list(product([2, 4], ["memory", "c10d"])),
    ids=lambda ways: f"{ways[0]}_by_{ways[1]}",
)
def outcome(request, tiny: Path, tmp_path_factory) -> Iterator[dict[str, str]]:
    """What each check of the worker found wrong, from one run for all tests."""
    ranks, way = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COOPERATIVE_WAY", way)
        yield outcome_of("cooperative.py", ranks, tiny, tmp_path_factory.mktemp("cooperative"))


def test_replicas_are_read_once_on_a_node_and_the_work_is_shared(outcome: dict[str, str]):
    assert not outcome["replicas"], outcome["replicas"]


def test_rows_whose_columns_lie_on_several_ranks_are_read_once(outcome: dict[str, str]):
    assert not outcome["columns"], outcome["columns"]


def test_rows_of_one_rank_stay_with_it(outcome: dict[str, str]):
    assert not outcome["disjoint_rows"], outcome["disjoint_rows"]


def test_tensors_of_devices_are_loaded_together_too(outcome: dict[str, str]):
    assert not outcome["into_devices"], outcome["into_devices"]


def test_files_are_read_past_the_page_cache_within_the_staging_and_traced(outcome: dict[str, str]):
    assert not outcome["past_the_page_cache"], outcome["past_the_page_cache"]


def test_what_lies_in_the_page_cache_is_read_apart_and_nothing_is_left_behind(outcome: dict[str, str]):
    check = "what_is_cached_is_read_apart_and_nothing_is_left"
    assert not outcome[check], outcome[check]


def test_ranks_without_memory_to_share_hand_on_over_c10d_and_say_so(outcome: dict[str, str]):
    for check in ("memory_that_is_refused", "address_space_that_is_refused"):
        assert not outcome[check], outcome[check]


def test_a_rank_that_cannot_read_is_named_on_all(outcome: dict[str, str]):
    assert not outcome["a_rank_that_cannot_read"], outcome["a_rank_that_cannot_read"]


def test_a_rank_that_cannot_plan_is_named_on_all(outcome: dict[str, str]):
    assert not outcome["a_rank_that_cannot_plan"], outcome["a_rank_that_cannot_plan"]


def test_damage_that_one_rank_finds_is_heard_of_by_all(outcome: dict[str, str]):
    found = outcome["a_rank_whose_bytes_are_damaged"]
    assert not found, found


def test_scaled_weights_resume_as_they_are_stored(outcome: dict[str, str]):
    check = "scaled_weights_resume_as_they_are_stored"
    assert not outcome[check], outcome[check]
