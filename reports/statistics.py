"""The documented names of ``reports.results`` and ``reports.leaderboard``, in one place."""

from stab.reports.leaderboard import leaderboard, plain
from stab.reports.results import Results, Series, read

__all__ = ["Results", "Series", "leaderboard", "plain", "read"]
