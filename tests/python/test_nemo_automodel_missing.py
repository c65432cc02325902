"""The integration of nemo-automodel where that is not installed. Where it is, tests/peers tests it."""

import sys
from importlib import import_module, metadata

import pytest


def test_without_nemo_automodel_its_integration_says_what_to_install(monkeypatch):
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    name = "shardwright.integrations.nemo_automodel"
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match="expected nemo-automodel 0.7.0, found none; install it"):
        import_module(name)
