"""`python -m npd_core` is `npd`."""

import sys

from npd_core.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
