"""Which versions of other people's packages the integrations have been tried with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def expect_version(package: str, known: tuple[str, ...]) -> None:
    """Raises ImportError unless the installed package is of a known version; a local suffix such as +cpu is none."""
    try:
        installed = version(package)
    except PackageNotFoundError:
        raise ImportError(f"{package} is not installed; expected version {' or '.join(known)}") from None
    if installed.partition("+")[0] not in known:
        raise ImportError(
            f"{package} {installed} is not known to this integration, which builds on parts of {package} that may "
            f"change with any version; expected {' or '.join(known)}"
        )
