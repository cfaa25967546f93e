"""The columns of the leaderboard, one record each: meaning, computation, how tables show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stab import gva
from stab.reports import inference
from stab.reports.results import Series

Entry = Mapping[str, Any]
Train = Mapping[str, Any]  # the settings of the base recipe
Text = Callable[[Entry, Train], str]
SCHEMA = 2  # of leaderboard.json; another one if a key goes or changes its meaning
STATUSES = ["ranked", "static", "unsound", "failed", "skipped"]
UNFINISHED = STATUSES[3:]
EMPTY = "–"


@dataclass(frozen=True)
class Scored:
    """What the figures of a finished entry are computed from.

    Attributes:
        series: its own.
        raw: that of its trajectory's raw iterates.
        base: that of ``none``, or None if it has not finished.
        timings: of its cells.
    """

    series: Series
    raw: Series
    base: Series | None
    timings: Sequence[Mapping[str, Any]]

    @cached_property
    def mean(self) -> gva.Interval:
        """Return, over seeds."""
        return gva.interval(self.series.scored.mean((1, 2)))

    @property
    def difference(self) -> float:
        """Return minus that of ``none``: the same seeds, checkpoints and starts."""
        if self.base is None:
            return math.nan
        return float((self.series.scored - self.base.scored).mean())

    def of(self, function: Callable[..., float], *more: Any) -> float:
        """A figure of the returns in the window, (seeds, checkpoints, starts)."""
        return function(self.series.scored, *more)

    def of_raw(self, function: Callable[..., float]) -> float:
        """The mean over seeds of a function of the raw iterates' returns and losses."""
        losses = self.raw.val_loss[:, self.raw.window]
        pairs = zip(self.raw.scored, losses, strict=True)
        return float(np.mean([function(*pair) for pair in pairs]))

    def gradient(self, name: str) -> float:
        """The mean over seeds and the window of what was measured at the raw iterates."""
        values = [
            [point[name] for point in cell["trajectory"] if point["update"] in cell["window"]]
            for cell in self.series.cells
        ]
        return float(np.mean(values))

    def by_lag(self) -> dict[str, Any]:
        """GVA by lag."""
        return {str(lag): value for lag, value in gva.gva_by_lag(self.series.scored).items()}

    def by_horizon(self) -> dict[str, Any]:
        """GVA by horizon."""
        values = gva.gva_by_horizon(self.series.by_horizon[:, self.series.window])
        return dict(zip(map(str, self.series.horizons), values, strict=True))

    def updates_saved(self) -> int | None:
        """How many updates before the end it is worth, and stays worth, what ``none`` is."""
        if self.base is None:
            return None
        place = gva.reached(self.series.returns, float(self.base.scored.mean()))
        if place is None:
            return None
        return self.series.recipe.updates - int(self.series.updates[place])

    def measures(self) -> dict[str, float]:
        """The mean over seeds, checkpoints of the window and starts of each metric, NaN aside."""
        means = {}
        for name, values in self.series.measures.items():
            finite = values[:, self.series.window]
            finite = finite[~np.isnan(finite)]
            means[name] = float(finite.mean()) if finite.size else math.nan
        return means

    def notes(self) -> list[str]:
        """What its cells say of the entry, and whether it had no effect."""
        notes = list(self.series.rider["notes"])
        base = self.base
        if base and base is not self.series and base.digests == self.series.digests:
            notes.append("it had no effect: its weights are those of none, bit for bit")
        return notes

    def timing(self, name: str, average: str | None = None) -> float:
        """The mean over cells of a timing, or of an average's; NaN if a cell has none."""
        if average is not None:
            return float(np.mean([times.get(name, {}).get(average, 0) for times in self.timings]))
        values = [times.get(name, math.nan) for times in self.timings]
        return float(np.mean(values))


@dataclass(frozen=True)
class Column:
    """A column: a key of the entries in ``leaderboard.json``, and how tables show it.

    Attributes:
        key: in an entry, and the heading in the CSV.
        about: what it is, for the schema.
        kind: the JSON schema of its values, null aside.
        figure: computes it for a finished entry; None if the leaderboard itself knows it.
        null: when it is null: "never", "unfinished" (in entries that failed or were skipped), or
            "maybe" (there, and wherever it does not exist).
        heading: in tables.
        places: the tables that show it: ``terminal``, ``page``, ``runs`` (several runs on one
            leaderboard), ``averages`` (post-hoc ones).
        text: how a table shows the entry, given the settings of the base recipe.
    """

    key: str
    about: str
    kind: Mapping[str, Any]
    figure: Callable[[Scored], Any] | None = None
    null: str = "maybe"
    heading: str = ""
    places: tuple[str, ...] = ()
    text: Text | None = None

    @property
    def scalar(self) -> bool:
        """Whether its values fit a cell of a CSV."""
        return self.kind.get("type") not in ("array", "object")

    def show(self, entry: Entry, train: Mapping[str, Any]) -> str:
        """Return the text of an entry's cell."""
        return str(entry[self.key] or EMPTY) if self.text is None else self.text(entry, train)


def shown(place: str) -> list[Column]:
    """Return the columns of a table, from left to right."""
    return [column for column in COLUMNS if place in column.places]


def _fixed(key: str, digits: int) -> Text:
    return lambda entry, _: EMPTY if entry[key] is None else f"{entry[key]:.{digits}f}"


def _name(entry: Entry, _: Train) -> str:
    status = "" if entry["status"] == "ranked" else f" ({entry['status']})"
    return f"{entry['stabilizer']}{status}"


def _ranks(entry: Entry, _: Train) -> str:
    return EMPTY if entry["rank_low"] is None else f"{entry['rank_low']}–{entry['rank_high']}"


def _score(entry: Entry, _: Train) -> str:
    if entry["gva"] is None:
        return EMPTY
    if entry["gva_high"] is None:
        return f"{entry['gva']:.3f}"
    # Rounded outwards; without zeros it fits 80 columns.
    hundredths = [round(100 * entry[key], 6) for key in ("gva_low", "gva_high")]
    ends = math.floor(hundredths[0]) / 100, math.ceil(hundredths[1]) / 100
    low, high = (f"{end:.2f}".removeprefix("0") for end in ends)
    return f"{entry['gva']:.3f} {low}–{high}"


def _against_none(entry: Entry, _: Train) -> str:
    return entry["against_none"] or EMPTY


def _loss(entry: Entry, _: Train) -> str:
    return EMPTY if entry["val_loss"] is None else f"{entry['val_loss']:#.3g}"


def _cost(entry: Entry, train: Train) -> str:
    if entry["gva"] is None:
        return EMPTY
    times = entry["samples"] / (train["updates"] * train["batch_size"] * train["accumulation"])
    seconds = EMPTY if entry["train_seconds"] is None else f"{entry['train_seconds']:.0f} s"
    return f"x{times:.3g} {seconds:>6}"


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


TEXT, NUMBER, ANY = {"type": "string"}, {"type": "number"}, {"type": "object"}
POSITIVE = NUMBER | {"minimum": 0}
SHARE = POSITIVE | {"maximum": 1}
COUNT = {"type": "integer", "minimum": 1}
NUMBERS = {"type": "object", "additionalProperties": {"type": ["number", "null"]}}
EVERYWHERE = ("terminal", "page", "runs")
SCORES = (*EVERYWHERE, "averages")

COLUMNS = [
    Column("task", "Name of the task.", TEXT, null="never"),
    Column(
        "rank", "By GVA, lowest first, within the task; null unless ranked.", COUNT,
        heading="#", places=EVERYWHERE,
    ),
    Column(
        "stabilizer", "Canonical stabilizer string.", TEXT | {"minLength": 1}, null="never",
        heading="stabilizer", places=EVERYWHERE, text=_name,
    ),
    Column("status", "What the ranking says of it.", {"enum": STATUSES}, null="never"),
    Column("reason", "Why it failed or was skipped.", TEXT),
    Column(
        "rank_low",
        "The lowest rank that the seeds leave open (t-tests of all pairs, Holm, 5 %).",
        COUNT,
        heading="ranks", places=("page",),
        text=_ranks,
    ),
    Column("rank_high", "The highest of them.", COUNT),
    Column(
        "gva",
        "Standard deviation, between two checkpoints of the window, of the return that the policy"
        " is worth, without the noise of single episodes: sqrt(max(0, checkpoint_variance)).",
        POSITIVE, lambda s: s.series.score, "unfinished", "GVA", SCORES, _score,
    ),
    Column("gva_low", "Lower end of its 95 % interval; null below 3 seeds.", POSITIVE),
    Column("gva_high", "Upper end of it.", POSITIVE),
    Column(
        "gva_per_seed", "GVA of each seed.", {"type": "array", "items": POSITIVE},
        lambda s: s.series.gva_per_seed, "unfinished",
    ),
    Column(
        "checkpoint_variance",
        "Variance of the checkpoint component, mean over seeds; unbiased, so it may be negative.",
        NUMBER, lambda s: gva.components(s.series.scored).checkpoint.mean(), "unfinished",
    ),
    Column(
        "start_deviation", "Standard deviation of the start component: how starts differ.",
        POSITIVE, lambda s: s.of(gva.start_deviation), "unfinished",
    ),
    Column(
        "episode_noise",
        "Standard deviation of the rest: how single episodes differ beyond all else.", POSITIVE,
        lambda s: s.of(gva.episode_noise), "unfinished", "episode noise", ("page",),
        _fixed("episode_noise", 2),
    ),
    Column(
        "improvement",
        "Probability of improvement: share of pairs of seeds in which its GVA is below that of"
        " none; null for none.",
        SHARE,
    ),
    Column(
        "p_value",
        "Two-sided test of the GVA against none, seeds as blocks, adjusted for the number of"
        " entries (Dunnett); null below 3 seeds.",
        SHARE,
    ),
    Column(
        "against_none", "What p_value says at 5 %: steadier, less steady, no evidence.",
        TEXT | {"enum": [*inference.AGAINST_NONE, None]},
        heading="vs none", places=("terminal", "page"), text=_against_none,
    ),
    Column(
        "seeds_needed",
        "Seeds that would show a difference as large as the measured one with a chance of 80 %;"
        " null where it is shown, or takes more than 30.",
        COUNT,
    ),
    Column(
        "gva_adjacent", "From neighbouring checkpoints only (Allan deviation).", POSITIVE,
        lambda s: s.of(gva.gva_adjacent), "unfinished",
    ),
    Column(
        "gva_by_lag", "From checkpoints so many checkpoints apart.", NUMBERS,
        Scored.by_lag, "unfinished",
    ),
    Column(
        "gva_mean",
        "Standard deviation over checkpoints of the mean over starts, which the paper plots; holds"
        " the noise of single episodes.",
        POSITIVE, lambda s: s.of(gva.gva_mean), "unfinished",
    ),
    Column(
        "gva_trend",
        "What a straight line over the window explains of it; null below 3 checkpoints.",
        POSITIVE, lambda s: s.of(gva.gva_trend),
    ),
    Column(
        "gva_detrended", "GVA without that part.", POSITIVE, lambda s: s.of(gva.gva_detrended),
    ),
    Column(
        "gva_protocol_1",
        "The score of protocol 1, with episode noise: mean over seeds of sqrt(mean over starts of"
        " the sample variance over checkpoints).",
        POSITIVE, lambda s: s.of(gva.gva_protocol_1), "unfinished",
    ),
    Column(
        "gva_late", "GVA of the last quarter of training.", POSITIVE,
        lambda s: s.of(gva.gva_late, s.series.scored_updates, s.series.recipe.updates),
    ),
    Column(
        "gva_by_horizon", "GVA of the return up to so many steps.", NUMBERS,
        Scored.by_horizon, "unfinished",
    ),
    Column(
        "return", "Normalised return (random 0, expert 1), mean over the window.", NUMBER,
        lambda s: s.mean.mean, "unfinished", "return", SCORES, _fixed("return", 2),
    ),
    Column("return_low", "Lower end of its 95 % interval.", NUMBER, lambda s: s.mean.low),
    Column("return_high", "Upper end of it.", NUMBER, lambda s: s.mean.high),
    Column(
        "return_difference", "Return minus that of none, the same seeds, checkpoints and starts.",
        NUMBER, lambda s: s.difference,
    ),
    Column(
        "return_difference_low",
        "Lower one-sided 95 % bound of it, its error pooled over entries; null below 3 seeds.",
        NUMBER,
    ),
    Column("return_difference_high", "Upper one-sided 95 % bound of it.", NUMBER),
    Column(
        "return_holds",
        "Whether return_difference is shown to be above -0.05; null for none and below 3 seeds.",
        {"type": "boolean"},
    ),
    Column(
        "gain", "Return of the last third of the window minus that of the first.", NUMBER,
        lambda s: s.of(gva.gain), "unfinished",
    ),
    Column(
        "worst", "Lowest checkpoint mean.", NUMBER, lambda s: s.series.scored.mean(2).min(),
        "unfinished", "worst", SCORES, _fixed("worst", 2),
    ),
    Column(
        "final", "Return of the last checkpoint.", NUMBER,
        lambda s: s.series.scored[:, -1].mean(1).mean(), "unfinished",
    ),
    Column(
        "final_spread", "Its standard deviation between seeds.", POSITIVE,
        lambda s: _spread(s.series.scored[:, -1].mean(1)),
    ),
    Column(
        "regret",
        "Return of the window's best checkpoint minus that of the last, mean over seeds.", POSITIVE,
        lambda s: s.of(gva.regret), "unfinished", "regret", ("page",), _fixed("regret", 2),
    ),
    Column(
        "regret_worst", "The largest regret of a seed.", POSITIVE,
        lambda s: max(map(gva.regret, s.series.scored)), "unfinished",
    ),
    Column(
        "below_half", "Share of the window's checkpoints that return less than 0.5.", SHARE,
        lambda s: s.of(gva.share_below, 0.5), "unfinished", "below 0.5", ("page",),
        _fixed("below_half", 2),
    ),
    Column(
        "below_nine_tenths", "Share of them that return less than 0.9.", SHARE,
        lambda s: s.of(gva.share_below, 0.9), "unfinished",
    ),
    Column(
        "updates_saved",
        "Updates by which training could have been shorter: from the checkpoint on at which they"
        " begin, all return at least the mean of none over the window; null if the last does not.",
        {"type": "integer", "minimum": 0}, Scored.updates_saved, "maybe", "updates saved",
        ("page",), lambda e, _: EMPTY if e["updates_saved"] is None else f"{e['updates_saved']:,}",
    ),
    Column(
        "val_loss", "One-step validation loss, mean over the window.", NUMBER,
        lambda s: s.series.val_loss[:, s.series.window].mean(), "unfinished", "val loss",
        EVERYWHERE, _loss,
    ),
    Column(
        "amplification",
        "(GVA / mean return) / (relative swing of val_loss) of the trajectory's raw iterates.",
        NUMBER, lambda s: s.of_raw(gva.amplification),
    ),
    Column(
        "correlation",
        "Pearson's correlation over checkpoints of val_loss and return, of the raw iterates.",
        NUMBER | {"minimum": -1, "maximum": 1}, lambda s: s.of_raw(gva.correlation),
    ),
    Column(
        "gradient_variance", "Variance of a minibatch gradient, mean over the window.", POSITIVE,
        lambda s: s.gradient("gradient_variance"),
    ),
    Column(
        "gradient_norm2", "Squared norm of the mean gradient, mean over the window.", NUMBER,
        lambda s: s.gradient("gradient_norm2"),
    ),
    Column(
        "measures",
        "The task's metrics, by name: means over seeds, checkpoints of the window and starts; {} if"
        " it has none.",
        NUMBERS, Scored.measures, "unfinished",
    ),
    Column(
        "half_life", "Effective half-life in updates at the window's start and end.",
        {"type": "array", "items": {"type": "integer"}}, lambda s: s.series.rider["half_life"],
    ),
    Column(
        "notes", "What is to be said of the entry.", {"type": "array", "items": TEXT},
        Scored.notes, "unfinished",
    ),
    Column(
        "train_seconds", "Seconds of training of the whole trajectory.", POSITIVE,
        lambda s: s.timing("train_seconds"), "maybe", "cost", EVERYWHERE[:2], _cost,
    ),
    Column(
        "average_seconds", "Seconds that the average took.", POSITIVE,
        lambda s: s.timing("average_seconds", s.series.stabilizer),
    ),
    Column(
        "average_bytes", "Memory of the average.", POSITIVE,
        lambda s: s.timing("average_bytes", s.series.stabilizer),
    ),
    Column(
        "method", "The stabilizer without arguments and without settings of the recipe.",
        TEXT | {"minLength": 1}, null="never",
    ),
    Column(
        "settings", "Settings of the recipe, as edited, and arguments by name, as ema.half_life.",
        ANY, null="never",
    ),
    Column("samples", "Transitions drawn in training.", COUNT, null="never"),
    Column("updates", "Optimizer steps.", COUNT, null="never"),
    Column("seeds", "Training seeds.", COUNT, null="never"),
    Column("checkpoints", "In the window.", COUNT | {"minimum": 2}, null="never"),
    Column("starts", "Initial states.", COUNT, null="never"),
]  # fmt: skip
