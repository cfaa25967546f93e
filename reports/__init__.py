"""Rows -> statistics -> table, files, figures, TensorBoard; one way. Rows on disk are the only source of truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stab import files


def render(run: Path) -> dict[str, Any]:
    """Rebuild every rendering of a run folder from its rows; return the content of ``leaderboard.json``.

    Writes ``leaderboard.json``, ``.csv`` and ``.md``, ``report.html``, ``figures/`` and ``tensorboard/``, and where averages
    were chosen afterwards ``averages.json``, ``.csv`` and ``.md``. Trains nothing. Raises StabError when the folder is no
    run or cannot be written.
    """
    from stab.reports import averages, figures, page, statistics, table, tensorboard

    results = statistics.read(run)
    leaderboard = statistics.leaderboard(results)
    files.write_json(run / "leaderboard.json", leaderboard, indent=1)
    files.write_text(run / "leaderboard.csv", table.csv_text(leaderboard))
    files.write_text(run / "leaderboard.md", table.markdown(leaderboard))
    drawn = figures.draw(results, leaderboard)
    if results.afterwards:
        chosen = averages.summary(results)
        files.write_json(run / "averages.json", chosen, indent=1)
        files.write_text(run / "averages.csv", averages.csv_text(chosen))
        files.write_text(run / "averages.md", averages.markdown(chosen))
        drawn |= figures.draw_averages(chosen, leaderboard)
    with files.replacing_folder(run / "figures") as folder:
        figures.save(drawn, folder)
    with files.replacing_folder(run / "tensorboard") as folder:
        tensorboard.write(results, leaderboard, run / "figures", folder)
    page.write(results, leaderboard, run / "figures", run / "report.html")
    return leaderboard
