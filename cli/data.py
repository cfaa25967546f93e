"""``stab data``: the demonstrations of a task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stab.cli.facts import facts

if TYPE_CHECKING:
    import minari

app = typer.Typer(
    help="Collect, inspect, check and delete demonstrations (ordinary Minari datasets).",
    no_args_is_help=True,
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="TASK|DATASET", help="A task (its own dataset), or a Minari dataset id."
    ),
]


@app.command(
    epilog="Examples:\n\nstab data prepare hopper\n\nstab data prepare hopper --episodes 105\n\n"
    "stab data prepare hopper --expert experts/hopper.safetensors --dataset my/hopper-v0\n\n"
    "stab data prepare text --folder prose --dataset my/prose-v0"
)
def prepare(
    task: Annotated[str, typer.Argument(help="Task; see: stab list tasks")],
    episodes: Annotated[
        int | None,
        typer.Option(min=2, help="Episodes to collect (default: as many as the task uses, 25)."),
    ] = None,
    expert: Annotated[
        Path | None, typer.Option(help="Expert to collect from instead of the shipped one.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of .txt or .parquet files, or a copy of the hub's repository (text tasks)."
        ),
    ] = None,
    vocabulary: Annotated[
        int | None,
        typer.Option(help="Entries of the tokenizer trained on the texts (default 2048)."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="With --expert or --folder: Minari id of the dataset to write."),
    ] = None,
) -> None:
    """Collect a task's dataset from its expert or texts, if it is missing or too small."""
    from stab.cli.console import Console
    from stab.cli.progress import bars
    from stab.registry import StabError
    from stab.tasks import datasets, tasks
    from stab.tasks.catalog import is_text

    text = is_text(task)
    if (folder is not None or vocabulary is not None) and not text:
        raise StabError(
            f"--folder and --vocabulary are for tasks of text, which {task!r} is not; see: stab"
            " list tasks"
        )
    if (expert is None) != (dataset is None) and not text:
        raise StabError(
            "--expert and --dataset go together: the expert to collect from, and the id of the"
            " dataset to write"
        )
    settings: dict[str, Any] = {"name": task, "dataset_id": dataset}
    if expert:
        from stab.tasks.control.record import RECORDS

        if task not in RECORDS:
            raise StabError(f"--expert: task {task!r} has none. Known: {', '.join(RECORDS)}")
        settings["expert"] = expert
    if text:
        given = {"folder": folder, "vocabulary": vocabulary}
        settings |= {key: value for key, value in given.items() if value is not None}
    instance = tasks.get(task)(**settings)
    console = Console(stderr=True, highlight=False)
    present = (
        datasets.load(instance.demonstrations_id).total_episodes
        if datasets.exists(instance.demonstrations_id)
        else 0
    )
    asked = folder is not None or vocabulary is not None
    if present and not asked and (present >= episodes if episodes else instance.has_data()):
        console.print(
            f"{instance.demonstrations_id} is there already, {present} episodes: stab data show"
            f" {dataset or task}"
        )
        return
    with bars(console) as progress:
        bar = progress.add_task(f"Collecting {instance.demonstrations_id}", total=1.0)
        instance.collect(
            lambda fraction: progress.update(bar, completed=fraction), episodes=episodes
        )
    show(dataset or task)
    if text:
        console.print(
            f"Next, a scorer model: stab scorer train {task} --dataset"
            f" {instance.demonstrations_id}",
            soft_wrap=True,
        )


@app.command("list", epilog="Example:\n\nstab data list")
def list_() -> None:
    """List the datasets on this machine, and the tasks' own that are not collected yet."""
    from rich.table import Table
    from rich.text import Text

    from stab.cli.console import Console
    from stab.registry import StabError
    from stab.tasks import datasets, tasks
    from stab.tasks.catalog import task_for

    table = Table(
        title=Text(f"Datasets in {datasets.root()}"),
        box=None,
        title_justify="left",
        padding=(0, 2, 0, 0),
    )
    for column in ("dataset", "environment", "episodes", "steps", "MB", "task"):
        numbers = column in ("episodes", "steps", "MB")
        table.add_column(
            column, justify="right" if numbers else "left", no_wrap=column == "dataset"
        )
    local = datasets.local()
    for dataset_id in local:
        try:
            dataset = datasets.load(dataset_id)
        except StabError as e:
            table.add_row(dataset_id, Text(str(e)))
            continue
        environment = dataset.env_spec.id if dataset.env_spec else "–"
        task = task_for(dataset_id)
        size = (
            sum(p.stat().st_size for p in (datasets.root() / dataset_id).rglob("*") if p.is_file())
            / 1e6
        )
        table.add_row(
            dataset_id,
            environment,
            str(dataset.total_episodes),
            str(dataset.total_steps),
            f"{size:.1f}",
            task,
        )
    for entry in tasks.listing(load=True):
        try:
            instance = tasks.get(entry.name)(name=entry.name)
            own = instance.demonstrations_id
        except Exception:  # a broken plug-in (see stab list -v), or no dataset of its own
            continue
        if own not in local:
            environment = getattr(instance, "environment", "–")
            table.add_row(own, environment, "–", "–", "–", entry.name)
            table.caption = Text(
                "–: collected on first use, or by stab data prepare TASK (texts by that alone)"
            )
    table.caption_justify = "left"
    Console().print(table)


@app.command(epilog="Examples:\n\nstab data show hopper\n\nstab data show my/pendulum-v0")
def show(name: Name) -> None:
    """Show what a dataset holds: episodes, returns, references, where it came from."""
    from stab.cli.console import Console
    from stab.cli.progress import bars
    from stab.tasks import datasets

    dataset = _find(name)
    about = datasets.stab_metadata(dataset)
    metadata = dataset.storage.metadata
    with bars(Console(stderr=True)) as progress:
        bar = progress.add_task(f"Reading {dataset.id}", total=1.0)
        episodes = datasets.endings(
            dataset, lambda fraction: progress.update(bar, completed=fraction)
        )
    returns = [float(episode.rewards.sum()) for episode in episodes]
    lines = {
        "folder": str(datasets.root() / dataset.id),
        "environment": dataset.env_spec.id if dataset.env_spec else "none recorded",
        "episodes, steps": f"{dataset.total_episodes}, {dataset.total_steps}",
        "returns": f"{sum(returns) / len(returns):.1f} (from {min(returns):.1f} to"
        f" {max(returns):.1f})",
        "observations": str(dataset.observation_space),
        "actions": str(dataset.action_space),
        "algorithm": str(metadata.get("algorithm_name", "not said")),
    }
    if references := datasets.stated_references(dataset):
        for policy, curve in (("random", references.random), ("expert", references.expert)):
            lines[f"{policy} reference"] = (
                f"{curve.cumulative[-1]:.1f} +- {curve.std:.1f} over {curve.episodes} episodes of"
                f" {curve.length:.0f} steps,"
                f" reset seeds {curve.first_seed} to {curve.first_seed + curve.episodes - 1}"
            )
    elif metadata.get("ref_max_score") is not None:
        lines["references"] = (
            f"random {metadata.get('ref_min_score')}, expert {metadata['ref_max_score']} (metadata)"
        )
    if "tokenizer" in about:
        lines |= _of_texts(dataset.id)
    if "expert_sha256" in about:
        lines["expert"] = f"sha256 {about['expert_sha256'][:16]}"
        lines["made with"] = ", ".join(
            f"{package} {version}" for package, version in about["versions"].items()
        )
    facts(lines, dataset.id)


@app.command(epilog="Examples:\n\nstab data verify hopper\n\nstab data verify my/pendulum-v0")
def verify(name: Name) -> None:
    """Replay every stored action in the recovered environment and report the largest differences.

    Exit code 0 if everything is equal bit for bit, 1 if it is not (another machine or version
    can differ in the last bits, which a chaotic simulation amplifies).
    """
    from stab.cli.console import Console
    from stab.cli.progress import bars
    from stab.tasks import datasets

    dataset = _find(name)
    with bars(Console(stderr=True)) as progress:
        bar = progress.add_task(f"Replaying {dataset.id}", total=1.0)
        replay = datasets.replay(dataset, lambda fraction: progress.update(bar, completed=fraction))
    verdict = "equal bit for bit" if replay.exact else "not equal"
    console = Console(highlight=False)
    console.print(
        f"{dataset.id}: {verdict}; {replay.episodes} episodes, {replay.steps} steps replayed",
        soft_wrap=True,
    )
    console.print(
        f"  largest difference of observations {replay.observations:.3g}, of rewards"
        f" {replay.rewards:.3g}"
    )
    if replay.ends:
        console.print(f"  {replay.ends} episodes end differently")
    if replay.unseeded:
        console.print(f"  {replay.unseeded} episodes have no reset seed and were not replayed")
    if not replay.exact:
        raise typer.Exit(1)


@app.command(epilog="Examples:\n\nstab data remove hopper\n\nstab data remove my/pendulum-v0 --yes")
def remove(
    name: Name, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """Delete a dataset from this machine, after asking."""
    from stab.cli.console import Console
    from stab.registry import StabError
    from stab.tasks import datasets

    dataset_id = _id(name)
    if not datasets.exists(dataset_id):
        datasets.remove(dataset_id)  # says what there is
    if not yes:
        if not sys.stdin.isatty():
            raise StabError(f"deleting {dataset_id} needs a yes: add --yes")
        if not typer.confirm(f"Delete {datasets.root() / dataset_id}?", err=True):
            raise typer.Exit(1)
    datasets.remove(dataset_id)
    Console(stderr=True, highlight=False).print(f"{dataset_id} is deleted")


def _of_texts(dataset_id: str) -> dict[str, str]:
    """Describe the tokenizer and the scorer model of a dataset of texts."""
    from stab.registry import StabError
    from stab.tasks.language import scorer_model
    from stab.tasks.language.text import tokenizer_of

    lines = {"tokenizer": f"byte-level BPE, {tokenizer_of(dataset_id).get_vocab_size()} entries"}
    try:
        card = scorer_model.read_card(dataset_id)
    except StabError:
        return lines | {"scorer model": "none yet"}
    low, high = (card["references"][name]["cumulative"][-1] for name in ("random", "expert"))
    return lines | {
        "scorer model": str(card["judge"]),
        "references": f"uniform tokens {low:.1f}, held-out texts {high:.1f} nats",
    }


def _id(name: str) -> str:
    """Return the id of a dataset given itself or by the task whose own it is."""
    from stab.tasks import tasks

    # What cannot be an id is a task: an unknown one is answered with the known ones.
    return name if "/" in name or "-v" in name else tasks.get(name)(name=name).demonstrations_id


def _find(name: str) -> minari.MinariDataset:
    from stab.registry import StabError
    from stab.tasks import datasets

    dataset_id = _id(name)
    if dataset_id != name and not datasets.exists(dataset_id):
        raise StabError(
            f"{dataset_id} is not in {datasets.root()}; collect it: stab data prepare {name}"
        )
    return datasets.load(dataset_id)
