"""``python -m splitinfer`` is the command ``splitinfer``."""

import sys

from splitinfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
