"""Rows -> statistics -> table, files, figures, TensorBoard; one way. Rows on disk are the only source of truth."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stab.registry import StabError
from stab.reports import rows


def render(run: Path) -> dict[str, Any]:
    """Rebuild every rendering of a run folder from its rows; return the content of ``leaderboard.json``.

    Writes ``leaderboard.json``, ``.csv`` and ``.md``, ``report.html``, ``figures/`` and ``tensorboard/``, and where averages
    were chosen afterwards ``averages.json``, ``.csv`` and ``.md``. Trains nothing. Raises StabError when the folder is no
    run or cannot be written.
    """
    from stab.reports import averages, figures, page, statistics, table, tensorboard

    results = statistics.read(run)
    leaderboard = statistics.leaderboard(results)
    rows.write_json(run / "leaderboard.json", leaderboard, indent=1)
    rows.write_text(run / "leaderboard.csv", table.csv_text(leaderboard))
    rows.write_text(run / "leaderboard.md", table.markdown(leaderboard))
    drawn = figures.draw(results, leaderboard)
    if results.afterwards:
        chosen = averages.summary(results)
        rows.write_json(run / "averages.json", chosen, indent=1)
        rows.write_text(run / "averages.csv", averages.csv_text(chosen))
        rows.write_text(run / "averages.md", averages.markdown(chosen))
        drawn |= figures.draw_averages(chosen, leaderboard)
    _rebuild(run / "figures", lambda folder: figures.save(drawn, folder))
    _rebuild(run / "tensorboard", lambda folder: tensorboard.write(results, leaderboard, run / "figures", folder))
    page.write(results, leaderboard, run / "figures", run / "report.html")
    return leaderboard


def _rebuild(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder and put it in the place of ``folder``: nothing stale stays, nothing half-written shows."""
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            temporary.chmod(0o755)
            fill(temporary)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    except OSError as e:
        raise StabError(f"cannot write {folder}: {e.strerror or e}") from e
