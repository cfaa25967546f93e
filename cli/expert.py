"""``stab expert``: train the experts that demonstrations come from, and measure them again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stab.cli.facts import facts
from stab.cli.stopping import INTERRUPTIONS, exit_code

if TYPE_CHECKING:
    from stab.tasks.control.record import Record
    from stab.tasks.references import Curve, References

app = typer.Typer(
    help="Train the expert of a task; measure it again.",
    no_args_is_help=True,
)

OUT = Path("experts")
Name = Annotated[
    str, typer.Argument(metavar="TASK", help="Task with an expert: hopper, walker2d, ...")
]


@app.command(
    epilog="Examples:\n\nstab expert train hopper\n\n"
    "stab expert train ant --out my/experts --seed 1\n\n"
    "stab expert train hopper --steps 500000  (resumes a training of fewer steps)"
)
def train(
    task: Name,
    out: Annotated[Path, typer.Option(help="Folder of weights, card and checkpoint.")] = OUT,
    steps: Annotated[
        int | None,
        typer.Option(min=100, help="Environment steps (default: the task's)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Training seed.")] = 0,
    dataset: Annotated[
        str | None, typer.Option(hidden=True, help="Of a task of text: as in stab scorer train.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(hidden=True, help="Of a task of text: as in stab scorer train."),
    ] = None,
) -> None:
    """Train an expert (needs: pip install 'stab-gva\\[experts]'). Repeat the command to resume.

    Hours for the larger tasks. The best actor so far and its card can be used at any time. For a
    task of text this is stab scorer train.
    """
    from stab.cli import scorer
    from stab.cli.console import Console
    from stab.cli.progress import bars
    from stab.registry import StabError
    from stab.tasks.catalog import is_text

    if is_text(task):
        if out != OUT:
            raise StabError(f"--out {out}: a scorer model stands beside its dataset; omit --out")
        scorer.train(task, dataset, policy, steps, seed)
        return
    if dataset is not None or policy is not None:
        raise StabError(
            f"--dataset and --policy are for scorer models, {task!r} is not a task of text"
        )
    if steps is not None and steps < 1000:
        raise StabError(f"--steps {steps}: an expert takes 1000 environment steps at least")
    from stab.tasks.control.experts import training
    from stab.tasks.control.experts.folder import finished

    record = _record(task)
    console = Console(stderr=True, highlight=False)
    weights = out / f"{record.name}.safetensors"
    card = finished(record, out, steps or record.steps, seed)
    if card:
        console.print(
            f"{weights} is finished already, at {card['trained_steps']:,} steps; more with --steps",
            markup=False,
            soft_wrap=True,
        )
        _show(card, weights)
        return
    try:
        with bars(console) as progress:
            running: dict[str, Any] = {}

            def report(stage: str, fraction: float, latest: str) -> None:
                line = f"{stage} {record.name}" + (f": {latest}" if latest else "")
                if stage not in running:
                    running[stage] = progress.add_task(line, total=1.0)
                progress.update(running[stage], completed=fraction, description=line)

            card = training.train(record, out, steps=steps, seed=seed, report=report)
    except INTERRUPTIONS as e:
        again = shlex.join(
            ["stab", "expert", "train", task, "--out", str(out), "--seed", str(seed)]
        )
        again += f" --steps {steps}" if steps else ""
        state = (
            f"the best expert so far is {weights}" if weights.exists() else "nothing is saved yet"
        )
        console.print(f"Interrupted; {state}. Resume with: {again}", markup=False, soft_wrap=True)
        raise typer.Exit(exit_code(e)) from None
    _show(card, weights)
    console.print(
        f"Collect demonstrations: stab data prepare {record.name} --expert {weights} --dataset"
        f" my/{record.name}-v0\n"
        f"{record.name}.checkpoint.npz beside it is for more steps; otherwise delete it",
        markup=False,
        soft_wrap=True,
    )


@app.command(
    epilog="Examples:\n\nstab expert evaluate hopper\n\n"
    "stab expert evaluate hopper --expert experts/hopper.safetensors"
)
def evaluate(
    task: Name,
    expert: Annotated[
        Path | None,
        typer.Option(help="Weights of another expert than the shipped one (card beside them)."),
    ] = None,
) -> None:
    """Measure an expert again over 100 episodes, and compare with its card.

    Exit code 1 if the returns differ by more than three standard errors.
    """
    from rich.table import Table

    from stab.cli.console import Console
    from stab.cli.progress import bars
    from stab.tasks.control import experts

    record = _record(task)
    loaded = experts.load(record, expert)
    with bars(Console(stderr=True)) as progress:
        bar = progress.add_task(f"Measuring {record.name}", total=1.0)
        measured = experts.measure(
            record, loaded.actor, lambda fraction: progress.update(bar, completed=fraction)
        )
    title = str(expert or f"{record.name} expert")
    table = Table(title=title, box=None, title_justify="left", padding=(0, 2, 0, 0))
    for column in ("", "card", "measured"):
        table.add_column(column, justify="right" if column else "left")
    for policy in ("expert", "random"):
        stated, got = getattr(loaded.references, policy), getattr(measured, policy)
        table.add_row(f"{policy} return", _return(stated), _return(got))
        table.add_row(f"{policy} length", f"{stated.length:.1f}", f"{got.length:.1f}")
        table.add_row(f"{policy} episodes", str(stated.episodes), str(got.episodes))
    console = Console(highlight=False)
    console.print(table)
    verdict, agrees = compare(loaded.references, measured)
    console.print(verdict, soft_wrap=True)
    if not agrees:
        raise typer.Exit(1)


def compare(card: References, measured: References) -> tuple[str, bool]:
    """Say how well a card's returns are met, and whether well enough.

    |a - b| <= 3 sqrt(var_a / n_a + var_b / n_b), for the expert and for the random policy; the two
    measurements count as independent, which they are if chaos has amplified another machine's
    last bits.
    """
    if card == measured:
        return "equal to the last bit", True
    differing = []
    for policy in ("expert", "random"):
        stated, got = getattr(card, policy), getattr(measured, policy)
        error = (stated.std**2 / stated.episodes + got.std**2 / got.episodes) ** 0.5
        gap = abs(got.cumulative[-1] - stated.cumulative[-1])
        if not gap <= 3 * error:  # not a number agrees with nothing
            differing.append(
                f"the {policy} policy's return by {gap:.1f}, three standard errors are"
                f" {3 * error:.1f}"
            )
    if differing:
        return f"differs: {'; '.join(differing)}", False
    return "agrees with the card: returns within three standard errors", True


def _record(task: str) -> Record:
    from stab.registry import StabError, suggest
    from stab.tasks import tasks
    from stab.tasks.control.record import RECORDS

    if task in RECORDS:
        return RECORDS[task]
    what = f"task {task!r} has no expert." if task in tasks.names() else f"unknown task {task!r}."
    raise StabError(f"{what}{suggest(task, RECORDS)} Experts: {', '.join(RECORDS)}")


def _return(curve: Curve) -> str:
    return f"{curve.cumulative[-1]:.1f} +- {curve.std:.1f}"


def _show(card: dict[str, Any], weights: Path) -> None:
    goal = f"{card['goal']:.0f}" + (" (not reached)" if "falls_short" in card else "")
    arguments = ", ".join(f"{name}={value}" for name, value in card["algorithm_args"].items())
    random = card["references"]["random"]
    lines = {
        "weights": str(weights),
        "environment": card["environment"],
        "algorithm": card["algorithm"] + (f" ({arguments})" if arguments else ""),
        "environment steps": f"{card['environment_steps']:,} of {card['trained_steps']:,},"
        f" seed {card['training_seed']}",
        "exported": card["exported"],
        "return": f"{card['return_mean']:.1f} +- {card['return_std']:.1f}"
        f" in {card['length_mean']:.1f} steps",
        "random policy": f"{random['cumulative'][-1]:.1f} +- {random['std']:.1f}"
        f" in {random['length']:.1f} steps",
        "measured over": card["evaluation"],
        "goal": goal,
        "command": card["command"],
    }
    facts(lines, f"{card['task']} expert")
