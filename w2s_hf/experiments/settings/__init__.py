"""The settings of the paper: how rows are loaded, labelled and scored, and how models are trained on them."""
