"""The installed nemo-automodel, if it is one that this integration knows."""

from __future__ import annotations

from importlib import metadata

#: Releases whose Checkpointer has been read, and is tested with ours. Its hooks are no public interface.
KNOWN = ("0.7.0",)


def expect_known() -> None:
    """Raises ImportError where nemo-automodel is missing, or is a release that nobody has looked at."""
    try:
        found = metadata.version("nemo-automodel")
    except metadata.PackageNotFoundError:
        raise ImportError(
            f"shardwright.integrations.nemo_automodel: expected nemo-automodel {' or '.join(KNOWN)}, found none; "
            f"install it, such as with pip install nemo-automodel=={KNOWN[-1]}"
        ) from None
    if found not in KNOWN:
        raise ImportError(
            f"shardwright.integrations.nemo_automodel: expected nemo-automodel {' or '.join(KNOWN)}, found {found}, "
            f"whose Checkpointer may do otherwise; install nemo-automodel=={KNOWN[-1]}, or save and load with "
            "shardwright.save and shardwright.load, which need no integration"
        )
