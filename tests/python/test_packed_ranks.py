"""Encoded weights that stay packed, on several ranks. The checks are in workers/packed.py."""

from pathlib import Path

import pytest
from outcomes import outcome_of
from packed_models import MODELS, gpt_oss

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with one checkpoint for each model, for all ranks and checks."""
    folder = tmp_path_factory.mktemp("models")
    for model in MODELS:
        model.write(folder / model.name)
    gpt_oss(folder / "gpt_oss")
    return folder


@pytest.fixture(scope="module", params=[1, 2, 4], ids=["1_rank", "2_ranks", "4_ranks"])
def outcome(request, models: Path, tmp_path_factory) -> dict[str, str]:
    """What each check of the worker found wrong, from one run for all tests."""
    return outcome_of("packed.py", request.param, models, tmp_path_factory.mktemp("packed"))


@pytest.mark.parametrize("check", ["alone", "together", "by_dcp", "exported", "resumed"])
def test_on_every_rank(outcome: dict[str, str], check: str):
    assert not outcome[check], outcome[check]
