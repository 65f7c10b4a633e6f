"""Runs sweeps: grids of experiments, on one machine or a Ray cluster, with one table, figures and a report."""
