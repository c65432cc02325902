"""nemo-automodel's command, with Shardwright installed: torchrun -m shardwright.integrations.nemo_automodel CONFIG"""

from __future__ import annotations

import os
import sys

from nemo_automodel.cli.app import main

from shardwright.integrations.nemo_automodel import install

#: What torchrun tells the processes that it starts; nemo-automodel asks for the same.
_TOLD_BY_TORCHRUN = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID")

if __name__ == "__main__":
    if not all(name in os.environ for name in _TOLD_BY_TORCHRUN):
        # nemo-automodel would start torchrun by itself, with processes that know nothing of Shardwright.
        sys.exit(
            "shardwright.integrations.nemo_automodel: expected to be started by torchrun; run\n"
            f"  torchrun --nproc-per-node N -m shardwright.integrations.nemo_automodel {' '.join(sys.argv[1:])}"
        )
    install()
    sys.exit(main())
