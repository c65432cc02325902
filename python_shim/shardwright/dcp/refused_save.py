"""A save that one rank refuses before it talks to the others, which then have to hear of it."""

from __future__ import annotations

from typing import Any, NoReturn

from torch.distributed.checkpoint.storage import StorageWriter


class RefusedSave(StorageWriter):
    """Stands for a writer in ``dcp.save``: tells all ranks why this one does not save."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason
        self.report: Any = None

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise self.reason

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    def abandon(self) -> None:
        pass

    storage_meta = _refuse
    set_up_storage_writer = _refuse
    prepare_local_plan = _refuse
    prepare_global_plan = _refuse
    write_data = _refuse
    finish = _refuse

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True
