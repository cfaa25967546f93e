"""Event files, read back with TensorBoard's own reader, hold the numbers of the statistics."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from stab import gva
from stab.reports import figures, statistics, tensorboard


@pytest.fixture(scope="module")
def written(
    shared_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[statistics.Results, Path]:
    top = tmp_path_factory.mktemp("tensorboard")
    results = statistics.read(shared_run)
    leaderboard = statistics.leaderboard(results)
    (top / "figures").mkdir()
    figures.save(figures.draw(results, leaderboard), top / "figures")
    tensorboard.write(results, leaderboard, top / "figures", top / "events")
    return results, top / "events"


def test_writing_is_silent(
    shared_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    results = statistics.read(shared_run)
    tensorboard.write(results, statistics.leaderboard(results), tmp_path, tmp_path / "events")
    said = capfd.readouterr()
    assert said.out + said.err == ""


def opened(folder: Path) -> EventAccumulator:
    events = EventAccumulator(
        str(folder), size_guidance=dict.fromkeys(("tensors", "scalars", "images", "histograms"), 0)
    )
    return events.Reload()


def scalars(events: EventAccumulator, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events.Scalars(tag)}


def test_one_run_a_stabilizer_and_one_for_the_leaderboard(
    written: tuple[statistics.Results, Path],
) -> None:
    _, folder = written
    runs = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("events.*")}
    assert runs == {"none", "ema", "lr_decay", "leaderboard"}
    assert len(list(folder.rglob("events.*"))) == len(runs), (
        "hyper-parameters make no runs of their own"
    )


@pytest.mark.parametrize("string", ["none", "ema", "lr_decay"])
def test_scalars_equal_the_statistics(
    written: tuple[statistics.Results, Path], string: str
) -> None:
    results, folder = written
    series, events = results.series["toy", string], opened(folder / string)
    updates = series.updates.tolist()
    expected = dict(zip(updates, series.returns.mean((0, 2)), strict=True))
    assert scalars(events, "toy/return") == pytest.approx(expected, rel=1e-6)
    expected = dict(zip(updates, series.val_loss.mean(0), strict=True))
    assert scalars(events, "toy/val_loss") == pytest.approx(expected, rel=1e-6)
    window = series.updates[series.window].tolist()
    jumps = np.mean([gva.jumps(J) for J in series.returns[:, series.window]], axis=0)
    assert scalars(events, "toy/return_jump") == pytest.approx(
        dict(zip(window[1:], jumps, strict=True)), rel=1e-6
    )


def test_hyper_parameters_and_scores(written: tuple[statistics.Results, Path]) -> None:
    results, folder = written
    (entry,) = (
        e for e in statistics.leaderboard(results)["entries"] if e["stabilizer"] == "lr_decay"
    )
    events = opened(folder / "lr_decay")
    for name in ("gva", "return", "worst", "val_loss"):
        assert scalars(events, f"hparam/toy/{name}") == pytest.approx(
            {entry["updates"]: entry[name]}, rel=1e-6
        )
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["stabilizer"].string_value == "lr_decay"
    assert values["schedule"].string_value == "linear"
    assert "lr" not in values, "all entries have the same"


def test_custom_charts_lay_all_stabilizers_over_each_other(
    written: tuple[statistics.Results, Path],
) -> None:
    _, folder = written
    (event,) = opened(folder / "leaderboard").Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["toy"]
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert list(charts) == ["return", "jump of the return between checkpoints", "validation loss"]
    found = {
        tag
        for string in ("none", "ema", "lr_decay")
        for tag in opened(folder / string).Tags()["scalars"]
    }
    for tags, wanted in zip(
        charts.values(), ("toy/return", "toy/return_jump", "toy/val_loss"), strict=True
    ):
        assert [tag for tag in found if re.match(tags[0], tag)] == [wanted]


def test_histograms_are_of_all_starts_and_seeds(written: tuple[statistics.Results, Path]) -> None:
    results, folder = written
    series = results.series["toy", "ema"]
    found = opened(folder / "ema").Histograms("toy/returns")
    assert [event.step for event in found] == series.updates.tolist()
    for k, event in enumerate(found):
        values = series.returns[:, k]
        assert event.histogram_value.num == values.size
        assert (event.histogram_value.min, event.histogram_value.max) == pytest.approx(
            (values.min(), values.max())
        )
        assert event.histogram_value.sum == pytest.approx(values.sum())


def test_the_leaderboard_is_text_and_images(written: tuple[statistics.Results, Path]) -> None:
    _, folder = written
    events = opened(folder / "leaderboard")
    (text,) = events.Tensors("GVA/toy/text_summary")
    assert "| 1 | ema |" in text.tensor_proto.string_val[0].decode()
    kinds = ("curves", "heat", "horizons", "recipes", "scores", "tradeoff")
    assert set(events.Tags()["images"]) == {*(f"toy/{kind}" for kind in kinds), "GVA/toy"}
    assert min(events.Tags()["images"]) == "GVA/toy", "TensorBoard opens on it"
    names = {
        tag: ("toy", "leaderboard") if tag == "GVA/toy" else tag.split("/")
        for tag in events.Tags()["images"]
    }
    for tag in events.Tags()["images"]:
        (shown,) = events.Images(tag)
        with (
            Image.open(io.BytesIO(shown.encoded_image_string)) as image,
            Image.open(folder.parent / "figures" / f"{'-'.join(names[tag])}.png") as saved,
        ):
            assert np.array_equal(np.asarray(image), np.asarray(saved))


def test_slugs_name_the_runs(make_run: Callable[..., Path], tmp_path: Path) -> None:
    results = statistics.read(make_run())
    leaderboard = statistics.leaderboard(results)
    string = "lr_decay:power=2.0,shape=polynomial+ema"
    leaderboard["entries"] = [leaderboard["entries"][0] | {"stabilizer": string}]
    series = results.series["toy", "ema"]
    slug = "lr_decay-power=2.0,shape=polynomial--ema"
    results.series["toy", string] = dataclasses.replace(series, stabilizer=string)
    tensorboard.write(results, leaderboard, tmp_path / "figures", tmp_path / "events")
    assert (tmp_path / "events" / slug).is_dir()


@pytest.mark.parametrize(
    "values", [(1.0, 0.9999999999999998), (1.0, 1.0), (-3.0, 1e6), (0.5, 0.5 + 1e-12)]
)
def test_returns_that_hardly_differ_have_a_histogram(
    run: Path, tmp_path: Path, values: tuple[float, float]
) -> None:
    results = statistics.read(run)
    leaderboard = statistics.leaderboard(results)
    for series in results.series.values():
        series.returns[:] = np.resize(values, series.returns.shape)
    tensorboard.write(results, leaderboard, tmp_path / "figures", tmp_path / "events")
    found = opened(tmp_path / "events" / "ema").Histograms("toy/returns")
    assert {event.histogram_value.num for event in found} == {
        results.series["toy", "ema"].returns[:, 0].size
    }
