"""`python -m lawf_repl` is `lawf`."""

import sys

from lawf_repl.cli import main

if __name__ == "__main__":
    sys.exit(main())
