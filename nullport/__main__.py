"""``python -m nullport``."""

import sys

from nullport.lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
