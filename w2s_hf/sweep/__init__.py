"""Sweeps: a grid of experiments, here or on a Ray cluster, that ends in one table, figures and a report."""
