"""nemo-automodel: its recipes save, resume, load and export through Shardwright.

One line, before a recipe is set up::

    import shardwright.integrations.nemo_automodel as automodel

    automodel.install()

``automodel.uninstall()`` takes it back. Code that makes its Checkpointer itself needs no patch: it imports ours, which
is nemo-automodel's with other ways to the disk::

    from shardwright.integrations.nemo_automodel import Checkpointer

What it saves, nemo-automodel without Shardwright reads, and the other way round. Importing this module registers
Shardwright's state-dict adapters with nemo-automodel's ``StateDictAdapter``, so that a model may have either.
"""

from shardwright.integrations.known_versions import expect_version

#: Its Checkpointer has been read, and is tested with ours. Its hooks are no public interface.
expect_version("nemo-automodel", ("0.7.0",))

from shardwright.integrations.nemo_automodel.checkpointer import Checkpointer  # noqa: E402
from shardwright.integrations.nemo_automodel.installing import install, installed, uninstall  # noqa: E402

__all__ = ["Checkpointer", "install", "installed", "uninstall"]
