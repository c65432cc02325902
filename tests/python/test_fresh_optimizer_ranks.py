"""FSDP2 training that resumes into optimizers that have taken no step, on 1 and 2 Gloo ranks; see the worker."""

import pytest
from outcomes import outcome_of

pytestmark = pytest.mark.ranks

CHECKS = ("ours", "torchs", "an_object_on_one_rank_is_refused_on_all")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[int, dict[str, str]]:
    """By number of ranks."""
    unused = tmp_path_factory.mktemp("unused")
    return {
        ranks: outcome_of("fresh_optimizer.py", ranks, unused, tmp_path_factory.mktemp(f"fresh_{ranks}"))
        for ranks in (1, 2)
    }


@pytest.mark.parametrize("check", CHECKS)
def test_fresh_optimizers(outcomes: dict[int, dict[str, str]], check: str):
    found = {ranks: outcome[check] for ranks, outcome in outcomes.items() if outcome[check]}
    assert not found, "\n".join(f"{ranks} ranks: {text}" for ranks, text in found.items())


def test_every_check_of_the_worker_is_looked_at(outcomes: dict[int, dict[str, str]]):
    assert all(set(outcome) == set(CHECKS) for outcome in outcomes.values())
