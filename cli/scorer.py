"""``stab scorer``: train the scorer models of datasets of texts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stab.cli.facts import facts
from stab.cli.stopping import INTERRUPTIONS, exit_code

app = typer.Typer(
    help="Train the scorer model of a dataset of texts (real text has no known likelihood).",
    no_args_is_help=True,
)


@app.command(
    epilog="Examples:\n\nstab scorer train text --dataset my/prose-v0\n\n"
    "stab scorer train text --dataset my/prose-v0 --policy huggingface:gpt2"
)
def train(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Task of text: text, wikipedia ...")],
    dataset: Annotated[
        str | None, typer.Option(help="The dataset (default: the task's own).")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Its size (gpt:width=128,depth=4), or huggingface:NAME.")
    ] = None,
    updates: Annotated[
        int | None, typer.Option(min=100, help="Updates at most (default 10,000).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Training seed.")] = 0,
) -> None:
    """Train a scorer model (needs: pip install 'stab-gva\\[text]') and put it beside its dataset.

    It is a larger GPT, trained until its validation loss no longer falls, or a causal language
    model of Hugging Face as it is. The same command resumes after an interruption.
    """
    from stab.cli.console import Console
    from stab.cli.progress import bars
    from stab.registry import StabError
    from stab.tasks import tasks
    from stab.tasks.catalog import is_text

    if not is_text(task):
        tasks.get(task)  # an unknown name is answered with the known ones
        raise StabError(
            f"task {task!r} needs no scorer model: expected a task of text, see: stab list tasks"
        )
    from stab.tasks.language import scorer_model, train_scorer

    dataset_id = tasks.get(task)(name=task, dataset_id=dataset).demonstrations_id
    path = scorer_model.folder(dataset_id) / scorer_model.CARD
    console = Console(stderr=True, highlight=False)
    card = scorer_model.read_card(dataset_id) if path.exists() else None
    if card and policy not in (None, card["judge"]):
        raise StabError(f"{path} exists already, of {card['judge']}: delete it to train another")
    if card and (card.get("converged", True) or (updates or 0) <= card["trained"]):
        console.print(
            f"{path} exists already; delete it to train another", markup=False, soft_wrap=True
        )
        _show(card, dataset_id)
        return
    try:
        with bars(console) as progress:
            bar = progress.add_task("Scorer model", total=1.0)

            def report(fraction: float, news: str) -> None:
                progress.update(bar, completed=fraction, description=f"Scorer model: {news}")

            card = train_scorer.train_scorer(
                dataset_id,
                policy or (card["judge"] if card else train_scorer.POLICY),
                updates or train_scorer.UPDATES,
                seed,
                report,
            )
    except INTERRUPTIONS as e:
        console.print("Interrupted; the same command resumes.")
        raise typer.Exit(exit_code(e)) from None
    _show(card, dataset_id)


def _show(card: dict[str, Any], dataset_id: str) -> None:
    lines = {"scorer model": str(card["judge"]), "beside": dataset_id}
    if "updates" in card:
        loss, more = card["validation_loss"], f"--updates above {card['trained']} resumes"
        lines["validation loss"] = (
            f"{loss:.3f} nats per token, lowest at update {card['updates']:,}"
        )
        lines["converged"] = "yes" if card["converged"] else f"no: {more}"
        lines["parameters"] = f"{card['parameters']:,}"
    for name, title in (("random", "uniform tokens"), ("expert", "held-out texts")):
        curve = card["references"][name]
        lines[title] = f"{curve['cumulative'][-1]:.1f} +- {curve['std']:.1f} nats"
    facts(lines)
