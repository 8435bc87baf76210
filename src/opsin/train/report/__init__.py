"""The report of a run: one HTML file that needs nothing else, neither files beside it nor a network."""

from opsin.train.report.callback import Report

__all__ = ["Report"]
