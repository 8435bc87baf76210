"""Losses for pictures: `create_loss` makes one by name."""

from opsin.loss.classification import AsymmetricLoss, BinaryCrossEntropy, CrossEntropy, FocalLoss, JsdLoss, PolyLoss
from opsin.loss.distillation import FeatureDistillation, LogitDistillation, TokenDistillation
from opsin.loss.registry import create_loss, list_losses

__all__ = [
    "AsymmetricLoss",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "FeatureDistillation",
    "FocalLoss",
    "JsdLoss",
    "LogitDistillation",
    "PolyLoss",
    "TokenDistillation",
    "create_loss",
    "list_losses",
]
