"""Experiments with torch: the models, the training loop and the entry point of the laboratory."""
