"""Experiments with jax: the models, the training loop and the entry point of the laboratory."""
