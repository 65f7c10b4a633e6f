"""The settings of the paper: how rows are loaded, labelled, learned and scored."""
