"""Which versions of other people's packages the integrations have been tried with."""

from __future__ import annotations

from importlib import metadata


def expect_version(package: str, known: tuple[str, ...]) -> None:
    """Raises ImportError unless the installed package is of a known version; a local suffix such as +cpu is none."""
    expected = f"expected {package} {' or '.join(known)}"
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ImportError(
            f"{expected}, found none; install it, such as with pip install {package}=={known[-1]}"
        ) from None
    if found.partition("+")[0] not in known:
        raise ImportError(
            f"{expected}, found {found}, which may do otherwise what this integration builds on; install "
            f"{package}=={known[-1]}, or save and load with shardwright.save and shardwright.load, which need no "
            "integration"
        )
