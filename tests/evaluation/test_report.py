"""The page of an evaluation: it shows what is stored, stands alone, and draws nothing empty."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the 'eval' extra")
pytest.importorskip("matplotlib", reason="needs the 'eval' extra")
pytest.importorskip("jinja2", reason="needs the 'eval' extra")

from agelens.bundle import CalibrationFields
from agelens.errors import ArgumentError, DataError
from agelens.evaluation import plots
from agelens.evaluation.calibration_page import write_calibration_html
from agelens.evaluation.evaluating import evaluate
from agelens.evaluation.plots import Bin, Reading, TimedModel
from agelens.evaluation.report import evaluation_command, findings, write_evaluation_html
from agelens.evaluation.scored import ScoredFaces
from evaluation.simulation import in_ranges, normal_masses, scored, simulated

COUNT = 600


def with_groups(faces: ScoredFaces, names: tuple[str, ...] = ("one", "two")) -> ScoredFaces:
    groups = np.array([names[row % len(names)] for row in range(len(faces))], object)
    return replace(faces, audit={"race": groups})


@pytest.fixture(scope="module")
def wire() -> dict[str, Any]:
    """A whole evaluation with a comparison."""
    faces = with_groups(simulated(COUNT, seed=1))
    other = with_groups(simulated(COUNT, seed=1, shift=4, model="other@2"))
    return evaluate(faces, other=other, samples=100).to_dict()


@pytest.fixture(scope="module")
def page(wire: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(wire, tmp_path_factory.mktemp("page"))


def written(wire: dict[str, Any], folder: Path, **options: Any) -> str:
    write_evaluation_html(wire, folder / "evaluation.html", **options)
    return (folder / "evaluation.html").read_text("utf-8")


class _Elements(HTMLParser):
    """Tags with their attributes, and the text outside of style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


# --- what it shows --------------------------------------------------------------------------------


def test_every_figure_of_the_evaluation_is_in_the_page(wire: dict[str, Any], page: str) -> None:
    from agelens.evaluation.metrics import METRICS

    text = _Elements(page).text

    for name, found in wire["metrics"].items():
        shown = METRICS[name].text(found["value"])
        assert METRICS[name].title in text, name
        assert re.search(rf"(?<![\d.]){re.escape(shown)}(?![\d])", text), name


def test_each_group_has_its_row_with_interval(wire: dict[str, Any], page: str) -> None:
    text = _Elements(page).text

    for group in wire["groups"]["age"]:
        found = group["metrics"]["age_mae"]
        row = f"{found['value']:.2f}"
        if found["low"] is not None:
            row += f" ({found['low']:.2f}–{found['high']:.2f})"
        assert f"{group['value'].replace('-', '–')} {group['count']:,} {row}" in text


def test_the_command_hashes_and_worst_cases_are_named(wire: dict[str, Any], page: str) -> None:
    text = _Elements(page).text

    assert "agelens evaluate simulated@1 faces.parquet --compare other@2 --samples 100" in text
    assert wire["provenance"]["model_sha256"] in text
    assert wire["provenance"]["data"][0]["sha256"] in text
    for case in (*wire["worst"]["age"], *wire["worst"]["gender"]):
        assert case["name"] in text


def test_the_comparison_says_which_model_is_better(page: str) -> None:
    text = _Elements(page).text

    assert "Compared with other@2" in text
    assert re.search(r"MAE, years simulated@1 [\d.]+ [\d.]+ -[\d.]+ \(", text)


def test_faces_are_shown_only_when_they_are_given(wire: dict[str, Any], tmp_path: Path) -> None:
    name = wire["worst"]["age"][0]["name"]
    uri = "data:image/jpeg;base64,AAAA"

    without = _Elements(written(wire, tmp_path))
    shown = _Elements(written(wire, tmp_path, faces={name: uri}))

    assert [tag for tag, _ in without.tags if tag == "img"] == []
    assert [attrs["src"] for tag, attrs in shown.tags if tag == "img"] == [uri]


def test_what_stands_out_is_said_in_sentences() -> None:
    # Everybody is said to be 40 for certain; gender is right for one group only.
    count = 1200
    true = np.tile([10, 40, 80], count // 3)
    group = np.arange(count) % 2
    faces = scored(
        normal_masses(np.full(count, 40.0), np.full(count, 0.5)),
        np.where(group == 0, 0.99, np.where(np.arange(count) % 4 < 2, 0.99, 0.01)),
        true,
        true,
        np.ones(count, int),
    )
    faces = replace(with_groups(faces), answered=np.arange(count) % 10 > 0)

    said = list(findings(evaluate(faces, samples=100).to_dict()))

    assert "These true ages come out too old: 10–12 by 30.0 years." in said
    assert "These true ages come out too young: 70+ by 40.0 years." in said
    assert any("less often than they state" in s and "ages 10–12 (0 %)" in s for s in said)
    assert any(
        "50.0 % of faces labelled two (race) and 100.0 % of faces labelled one (race)" in s
        for s in said
    )
    assert "The analyzer abstains on 10 % of the faces." in said


def test_a_right_model_is_not_said_to_be_biased_where_it_is_not() -> None:
    # By true age even a model that is right pulls the youngest and the oldest to the middle.
    said = list(findings(evaluate(simulated(3000, seed=2), samples=100).to_dict()))

    assert not [line for line in said if "come out too" in line and re.search("25–39|40–59", line)]
    assert not [line for line in said if "Gender is right" in line]


# --- it stands alone ------------------------------------------------------------------------------


def test_the_page_refers_to_nothing_outside(page: str) -> None:
    elements = _Elements(page)
    policy = next(
        attrs["content"] or ""
        for tag, attrs in elements.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )

    assert "default-src 'none'" in policy
    assert "script" not in {tag for tag, _ in elements.tags}
    assert "link" not in {tag for tag, _ in elements.tags}
    for tag, attrs in elements.tags:
        for name in ("src", "href", "xlink:href", "action"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_ids_are_unique_and_every_reference_leads_somewhere(page: str) -> None:
    tags = _Elements(page).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))

    assert len(ids) == len(set(ids))
    assert referred <= set(ids)


def test_labels_of_the_data_cannot_become_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    faces = with_groups(simulated(200, seed=3), (evil, "b & c"))

    page = written(evaluate(faces, samples=50).to_dict(), tmp_path)

    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_page_reads_in_light_and_dark(page: str) -> None:
    variables = set(re.findall(r"var\(--plot-(\w+)", page))
    light, dark = (
        dict(re.findall(r"--plot-(\w+): (#\w+)", block))
        for block in re.findall(r":root \{( --plot-ink[^}]*)\}", page)[:2]
    )

    assert variables <= set(light) == set(dark)
    assert all(light[name] != dark[name] for name in light)
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]\b", page)  # a stand-in left in a chart


def test_the_same_result_gives_the_same_page(
    wire: dict[str, Any], page: str, tmp_path: Path
) -> None:
    assert written(copy.deepcopy(wire), tmp_path) == page


# --- what is missing ------------------------------------------------------------------------------


def charts_of(page: str) -> list[str]:
    return re.findall(r"<svg class=.*?</svg>", page, re.DOTALL)


def test_no_chart_is_empty(page: str) -> None:
    charts = charts_of(page)

    assert len(charts) >= 15
    for chart in charts:
        assert re.search(r"var\(--plot-[1-4]", chart), re.findall('aria-label="[^"]*"', chart)


def test_ranges_only_leave_out_what_needs_exact_ages(tmp_path: Path) -> None:
    result = evaluate(in_ranges(simulated(COUNT, seed=4)), samples=50).to_dict()

    text = _Elements(written(result, tmp_path)).text

    assert "In the labelled range" in text
    assert "Predicted against true age" not in text
    assert "not measured: age_mae" in text


def test_a_model_without_gender_has_no_gender_section(tmp_path: Path) -> None:
    faces = simulated(COUNT, seed=5)
    nothing = np.full(COUNT, np.nan)
    mute = replace(faces, female=nothing, decoded_female=nothing)

    page = written(evaluate(mute, samples=50).to_dict(), tmp_path)

    assert "Gender presentation" not in page
    assert "gives no gender" in page
    assert all(re.search(r"var\(--plot-[1-4]", chart) for chart in charts_of(page))


def test_labels_of_gender_only_have_no_age_section(tmp_path: Path) -> None:
    faces = simulated(COUNT, seed=6)
    unknown = np.full(COUNT, -1, np.int16)

    page = written(
        evaluate(replace(faces, age_min=unknown, age_max=unknown), samples=50).to_dict(), tmp_path
    )

    assert "Gender presentation" in page
    assert "Error by age" not in page
    assert all(re.search(r"var\(--plot-[1-4]", chart) for chart in charts_of(page))


def test_a_few_faces_have_figures_without_intervals(tmp_path: Path) -> None:
    page = written(evaluate(simulated(6, seed=7), samples=50).to_dict(), tmp_path)

    assert "nan" not in _Elements(page).text.lower().replace("finance", "")


@pytest.mark.parametrize("schema", [None, "agelens.leaderboard/1"])
def test_another_kind_of_result_is_refused(schema: str | None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected|has the schema 'agelens\.evaluation/1'"):
        write_evaluation_html({"schema": schema}, tmp_path / "x.html")

    assert not (tmp_path / "x.html").exists()


def test_an_old_result_that_lacks_a_part_is_named(wire: dict[str, Any], tmp_path: Path) -> None:
    old = {name: part for name, part in wire.items() if name != "reliability"}

    with pytest.raises(DataError, match="no 'reliability'; evaluate the model again"):
        write_evaluation_html(old, tmp_path / "x.html")


def test_the_command_repeats_the_options(wire: dict[str, Any]) -> None:
    changed = copy.deepcopy(wire)
    changed["comparison"] = None
    changed["settings"] |= {"samples": 1000, "seed": 7}
    changed["provenance"]["options"] = {"detector": "none", "crops": False, "flip": True}

    assert evaluation_command(changed) == (
        "agelens evaluate simulated@1 faces.parquet --flip --no-crops --detector none --seed 7 "
        "--out OUT"
    )


# --- charts ---------------------------------------------------------------------------------------


def test_a_value_stands_where_the_axis_says() -> None:
    # Read back from the drawing: the marks of 2 and 6 years against the ticks of the axis.
    chart = plots.error_by_age(
        [Reading("0–2", 2.0, 1.5, 2.5, 10), Reading("3–9", 6.0, 5.5, 6.5, 20)],
        [Reading("0–2", 0.0, -0.5, 0.5, 10), Reading("3–9", 0.0, -0.5, 0.5, 20)],
    )
    ticks = {
        float(number.replace("−", "-")): float(height)
        for height, number in re.findall(
            r'<use [^>]*x="-?[\d.]+" y="([\d.]+)"[^>]*/>\s*</g>\s*</g>\s*<g>\s*'
            r"<text[^>]*>([−\d.]+)</text>",
            chart,
        )
    }
    colour = re.escape(f"var(--plot-1, {plots.LIGHT.series[0]})")
    marks = [
        float(y)
        for x, y in re.findall(rf'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: {colour}', chart)
    ]
    low, high = ticks[0.0], ticks[6.0]
    years = sorted({round(6 * (y - low) / (high - low), 2) for y in marks})

    assert 2.0 in years
    assert 6.0 in years


def test_what_could_not_be_measured_is_left_out_of_a_chart() -> None:
    rows = [Reading("a", 1.0, 0.5, 1.5, 9), Reading("b", float("nan"))]

    chart = plots.dots(rows, axis="years", name="dots", title="Two groups")

    assert ">b<" in chart
    assert "nan" not in chart.lower()


def test_marked_rows_are_told_apart_by_more_than_colour() -> None:
    rows = [Reading("good", 1.0, 0.5, 1.5), Reading("bad", 2.0, 1.5, 2.5, marked=True)]

    chart = plots.dots(rows, axis="years", name="dots", title="Two groups")

    heavy = r'font(-weight)?: (700|bold)[^"]*"[^>]*>'
    assert re.search(heavy + "bad<", chart)
    assert not re.search(heavy + "good<", chart)


@pytest.mark.parametrize("counts", [[[1]], [[1, 2], [3, 4], [5, 6]]])
def test_counts_that_do_not_fit_their_edges_are_refused(counts: list[list[int]]) -> None:
    with pytest.raises(ArgumentError, match="must be one less each way"):
        plots.predicted_against_true(counts, [0, 10, 20], [0, 10, 20])


def test_a_chart_stands_alone_as_a_file() -> None:
    model = TimedModel("cc0@1.0", 3.0, Reading("", 6.0, 5.8, 6.2))

    text = plots.standalone(plots.accuracy_against_time([model]))

    assert text.startswith("<svg")
    assert "xmlns" in text[:400]
    assert "<style>" in text
    assert "cc0@1.0" in text


def test_a_reliability_chart_names_its_series() -> None:
    bins = [Bin(0.1, 0.2, 0.1, 0.3, 10), Bin(0.9, 0.8, 0.7, 0.9, 10)]

    chart = plots.reliability(
        {"before": bins, "after": bins}, predicted="said", observed="was", name="r"
    )

    for words in ("before", "after", "said", "was"):
        assert f">{words}<" in chart


# --- the page of a calibration --------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated() -> dict[str, Any]:
    """A model that is too sure, before and after."""
    from agelens.bundle import read_card
    from agelens.evaluation.calibrating import CalibrationOptions, calibrate

    card = read_card(Path(plots.__file__).parents[1] / "weights" / "cc0.toml")
    card = card.model_copy(update={"calibration": CalibrationFields()})
    faces = with_groups(simulated(900, seed=8, narrow=0.5))
    return calibrate(faces, card, CalibrationOptions(samples=50)).to_dict()


def test_a_calibration_is_shown_before_and_after(
    calibrated: dict[str, Any], tmp_path: Path
) -> None:
    write_calibration_html(calibrated, tmp_path / "calibration.html")
    page = (tmp_path / "calibration.html").read_text("utf-8")
    text = _Elements(page).text

    before, after = (calibrated[side]["metrics"]["coverage_90"] for side in ("before", "after"))
    assert before["value"] < 0.8 < after["value"]
    assert (
        f"90 % intervals hold the age for {100 * before['value']:.1f} % of the faces before, and "
        f"for {100 * after['value']:.1f} % after."
    ) in text
    for side in ("before", "after"):
        for group in calibrated[side]["groups"]["race"]:
            found = group["metrics"]["coverage_90"]
            assert f"{100 * found['value']:.1f} ({100 * found['low']:.1f}–" in text
    assert calibrated["provenance"]["model_sha256"] in text
    assert all(re.search(r"var\(--plot-[12]", chart) for chart in charts_of(page))
    assert "script" not in {tag for tag, _ in _Elements(page).tags}


def test_another_result_is_no_calibration(wire: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has the schema 'agelens\.calibration/1'"):
        write_calibration_html(wire, tmp_path / "x.html")
