import os
import shutil
import signal
import uuid
from pathlib import Path

import pytest
import reference
import shardwright as sw
import torch
from checkpoints import write_m3
from hypothesis import HealthCheck, Phase, settings
from object_server import ObjectServer, serving

# A shell's background jobs ignore it, and so would the tests of being interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Of several processes, each has a core: torch's threads would spin while they wait for each other, which took most of
# the time. Processes that tests start are told the same.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# `make test` runs the same examples each time, and `make check` the first of them. SHARDWRIGHT_PROPERTY_EXAMPLES=2000
# looks at new ones.
examples = int(os.environ.get("SHARDWRIGHT_PROPERTY_EXAMPLES", "100"))
settings.register_profile(
    "shardwright",
    max_examples=examples,
    derandomize=examples <= 100,
    database=None,
    deadline=None,
    print_blob=True,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)
settings.load_profile("shardwright")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests of ranks come first: they take long, and short ones fill what is left of several processes."""
    with_ranks = {item.path for item in items if item.get_closest_marker("ranks")}
    items.sort(key=lambda item: item.path not in with_ranks)


def generated(tmp_path_factory: pytest.TempPathFactory, preset: str) -> Path:
    path = tmp_path_factory.mktemp("generated") / preset
    sw.generate(path, preset=preset, seed=0, values="any")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return generated(tmp_path_factory, "tiny")


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    return generated(tmp_path_factory, "small")


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The native tensors of the made-up model as it is by default."""
    return reference.native(write_m3(tmp_path_factory.mktemp("made_up")))


@pytest.fixture
def bucket() -> str:
    """A name that no other test has: open stores are kept while the process runs."""
    return f"bucket-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def server(tmp_path: Path, bucket: str, tiny: Path, monkeypatch) -> ObjectServer:
    """Serves the tiny checkpoint as BUCKET/tiny."""
    shutil.copytree(tiny, tmp_path / "served" / bucket / "tiny")
    with serving(tmp_path / "served") as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SHARDWRIGHT_REMOTE_PATIENCE", "1")
        yield found
