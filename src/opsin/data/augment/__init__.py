"""Augmentation: operations, policies, erasing, mixing."""
