"""Training saved and resumed on 2, 1 and 4 Gloo ranks. The checks are in workers/resume.py."""

from pathlib import Path

import pytest
from outcomes import outcome_of

pytestmark = pytest.mark.ranks

CHECKS = (
    "two_ranks_go_on_as_if_nothing_had_been",
    "other_numbers_of_ranks_as_torchs_own",
    "expert_parallel_and_fsdp",
    "expert_parallel_and_fsdp_on_other_ranks",
    "replicated_tensors_once_and_balanced",
    "torchs_hf_reader_reads_the_tensors",
    "what_torchs_hf_writer_wrote",
    "saving_while_training_goes_on",
    "a_failure_in_the_background",
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[int, dict[str, str]]:
    """By number of ranks; the first saves what the others resume from."""
    shared: Path = tmp_path_factory.mktemp("checkpoints")
    return {
        ranks: outcome_of("resume.py", ranks, shared, tmp_path_factory.mktemp(f"resume_{ranks}"))
        for ranks in (2, 1, 4)
    }


@pytest.mark.parametrize("check", CHECKS)
def test_resume(outcomes: dict[int, dict[str, str]], check: str):
    found = {ranks: outcome[check] for ranks, outcome in outcomes.items() if outcome[check]}
    assert not found, "\n".join(f"{ranks} ranks: {text}" for ranks, text in found.items())


def test_every_check_of_the_worker_is_looked_at(outcomes: dict[int, dict[str, str]]):
    assert all(set(outcome) == set(CHECKS) for outcome in outcomes.values())
