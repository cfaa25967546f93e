"""Renderings of a run folder. Its rows are the only source of truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stab import files


def render(run: Path) -> dict[str, Any]:
    """Rebuild every rendering of a run folder; return the content of ``leaderboard.json``.

    Writes ``leaderboard.json``, ``.csv`` and ``.md``, ``report.html``, ``figures/``,
    ``tensorboard/`` and, if there are post-hoc averages, ``averages.json``, ``.csv`` and ``.md``.
    Trains nothing. Raises StabError if the folder is not a run or cannot be written.
    """
    from stab.reports import averages, figures, page, table, tensorboard
    from stab.reports.leaderboard import leaderboard as score
    from stab.reports.results import read
    from stab.reports.sheets import markdown

    results = read(run)
    leaderboard = score(results)
    files.write_json(run / "leaderboard.json", leaderboard, indent=1)
    files.write_text(run / "leaderboard.csv", table.to_csv(leaderboard))
    files.write_text(run / "leaderboard.md", markdown(table.sheets(leaderboard, place="page")))
    drawn = figures.draw(results, leaderboard)
    if results.post_hoc:
        content = averages.summary(results)
        files.write_json(run / "averages.json", content, indent=1)
        files.write_text(run / "averages.csv", averages.to_csv(content))
        files.write_text(run / "averages.md", markdown(averages.sheets(content)))
        drawn |= figures.draw_averages(content, leaderboard)
    with files.replacing_folder(run / "figures") as folder:
        figures.save(drawn, folder)
    with files.replacing_folder(run / "tensorboard") as folder:
        tensorboard.write(results, leaderboard, run / "figures", folder)
    page.write(results, leaderboard, run / "figures", run / "report.html")
    return leaderboard
