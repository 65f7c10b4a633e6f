"""Runs whole experiments: supervisor, ceiling, students, analyses and reports."""
