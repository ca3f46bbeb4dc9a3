"""``python -m soatfast``: the command `soatfast`."""

import sys

from soatfast.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
