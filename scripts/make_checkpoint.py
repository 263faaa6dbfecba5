#!/usr/bin/env python3
"""Write a safetensors checkpoint with seeded random weights, in one of the layouts that the engine loads.

    scripts/make_checkpoint.py model.safetensors                       # SD 1.5 layout, F16, 2.1 GB
    scripts/make_checkpoint.py --family zimage --tiny zimage.safetensors

Needs numpy and nothing else, so that it can run before anything is installed. The layouts are the tests':
tests/support/checkpoints/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.checkpoints.command import main

if __name__ == "__main__":
    sys.exit(main())
