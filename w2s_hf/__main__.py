"""Runs the command `w2s` as `python -m w2s_hf`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
