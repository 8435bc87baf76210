"""Weights: locate, fetch, verify, read, adapt, assign, save. Knows tensors and files, not families."""
