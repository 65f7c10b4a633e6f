"""Whole experiments, as plain functions that read top to bottom."""
