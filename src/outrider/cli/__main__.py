"""`python -m outrider.cli`: how the command line starts workers of its own, whatever is on the PATH."""

import sys

from outrider.cli import main

if __name__ == "__main__":
    sys.exit(main())
