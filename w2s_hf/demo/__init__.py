"""The embedded default: generated worlds, their rows, and models pretrained on the spot."""
