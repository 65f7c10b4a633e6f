"""`python -m w2s_hf`, the same as `w2s`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
