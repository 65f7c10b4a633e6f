"""The embedded demo: generated worlds, rows in the schema of each task, and tiny models that are pretrained first."""
