"""``stab data``: the demonstrations of a task."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Collect and inspect demonstrations (ordinary Minari datasets).", no_args_is_help=True)

TaskName = Annotated[str, typer.Argument(help="Task; see: stab list tasks")]
DatasetId = Annotated[str | None, typer.Option("--dataset", help="Minari dataset to use instead of the task's own.")]


@app.command(epilog="Example:\n\nstab data prepare hopper")
def prepare(
    task: TaskName,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Episodes to collect (default: as many as the task uses).")
    ] = None,
) -> None:
    """Collect a task's own dataset from its shipped expert, if it is not there yet."""
    from rich.console import Console

    from stab.cli.progress import bars
    from stab.tasks import tasks

    made = tasks.get(task)(name=task)
    talk = Console(stderr=True, highlight=False)
    if made.ready():
        talk.print(f"{made.demonstrations_id} is there already: stab data show {task}")
        return
    with bars(talk) as progress:
        bar = progress.add_task(f"Collecting {made.demonstrations_id}", total=1.0)
        made.collect(lambda fraction: progress.update(bar, completed=fraction), episodes=episodes)
    show(task)


@app.command(epilog="Example:\n\nstab data show hopper")
def show(task: TaskName, dataset: DatasetId = None) -> None:
    """Show what a task's dataset holds: episodes, returns, references, where it came from."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from stab.registry import StabError
    from stab.tasks import datasets, tasks

    made = tasks.get(task)(name=task, dataset_id=dataset)
    if dataset is None and not made.ready():
        raise StabError(f"{made.demonstrations_id} is not in {datasets.root()}; collect it: stab data prepare {task}")
    found = datasets.load(made.demonstrations_id)
    about = datasets.stab_metadata(found)
    metadata = found.storage.metadata
    returns = datasets.returns(found)
    table = Table(title=found.id, show_header=False, box=None, title_justify="left", padding=(0, 2, 0, 0))
    lines = {
        "folder": str(datasets.root() / found.id),
        "environment": found.env_spec.id if found.env_spec else "none recorded",
        "episodes, steps": f"{found.total_episodes}, {found.total_steps}",
        "returns": f"{sum(returns) / len(returns):.1f} (from {min(returns):.1f} to {max(returns):.1f})",
        "observations": str(found.observation_space),
        "actions": str(found.action_space),
        "algorithm": str(metadata.get("algorithm_name", "not said")),
    }
    if "references" in about:
        for name, curve in vars(datasets.references_from(about["references"])).items():
            lines[f"{name} reference"] = (
                f"{curve.cumulative[-1]:.1f} +- {curve.std:.1f} over {curve.episodes} episodes of {curve.length:.0f} steps,"
                f" reset seeds {curve.first_seed} to {curve.first_seed + curve.episodes - 1}"
            )
    if "expert_sha256" in about:
        lines["expert"] = f"sha256 {about['expert_sha256'][:16]}"
        lines["made with"] = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    for name, value in lines.items():
        table.add_row(name, Text(value))
    Console().print(table)
