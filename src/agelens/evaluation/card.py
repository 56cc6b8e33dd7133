"""
The model card: what a model is for, what it was made of and how it fares, from stored results only.

The headings are those of Mitchell et al. ("Model Cards for Model Reporting", FAT* 2019), then
calibration, energy and cost, and how to cite. Every figure is one of a stored evaluation or audit;
results of another model are refused.
"""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from agelens import __version__
from agelens.bundle import Bundle, Figure, ModelCard, bundled_folder, card_faults, find_model
from agelens.data.schema import write_text
from agelens.errors import ArgumentError, CardError, DataError, ModelError
from agelens.evaluation.audit_page import gap_table, verdict_words
from agelens.evaluation.evaluating import SCHEMA as EVALUATION_SCHEMA
from agelens.evaluation.metrics import find_metric
from agelens.evaluation.pages import group_table
from agelens.evaluation.report import evaluation_command, findings, interval_words
from agelens.evaluation.scoring import card_sha256, model_sha256
from agelens.evaluation.signing import verify_audit
from agelens.evaluation.tables import estimate_text, markdown, per_cent, read_result
from agelens.toml import toml_text

Wire = Mapping[str, Any]

CARD_FIGURES: Final = (
    "age_mae",
    "age_bias",
    "age_cs5",
    "age_mae_macro",
    "range_exact",
    "range_one_off",
    "nine_ranges_exact",
    "age_crps",
    "coverage_90",
    "interval_width_90",
    "over18_auc",
    "gender_accuracy",
    "gender_labelled",
    "gender_labelled_accuracy",
    "answered_rate",
)
"""Metrics that go into the ``figures`` of a TOML card."""

_TABLE_FIGURES: Final = (
    *CARD_FIGURES[:4],
    "age_median_error",
    "age_rmse",
    "range_distance",
    *CARD_FIGURES[4:10],
    "coverage_50",
    "coverage_80",
    "coverage_95",
    "age_nll",
    "age_calibration_error",
    "over18_auc",
    "over18_brier",
    "gender_accuracy",
    "gender_balanced_accuracy",
    "gender_auc",
    "gender_labelled",
    "gender_labelled_accuracy",
    "gender_brier",
    "detection_rate",
    "answered_rate",
)
_BAND_FIGURES: Final = ("age_mae", "age_bias", "nine_ranges_exact", "coverage_90")
_GROUP_FIGURES: Final = (
    "age_mae",
    "age_bias",
    "nine_ranges_exact",
    "coverage_90",
    "gender_accuracy",
)


# --- reading what is stored -----------------------------------------------------------------------


def read_evaluation(path: Path) -> dict[str, Any]:
    """A stored evaluation.

    Raises:
        DataError: There is no such file, or it is something else.
    """
    return read_result(path, EVALUATION_SCHEMA, "agelens evaluate")


def check_evaluation(evaluation: Wire, bundle: Bundle, where: str) -> None:
    """Refuse an evaluation of another model, or of this one under another card.

    Args:
        evaluation: A stored evaluation.
        bundle: The model that it should be of.
        where: The file's name, for the message.

    Raises:
        DataError: The weights differ, or the calibration or another field of the card does.
    """
    made, own = evaluation["provenance"], model_sha256(bundle)
    if made["model_sha256"] != own:
        raise DataError(
            f"{where}: it evaluates {made['model']} (weights {made['model_sha256'][:12]}...), not "
            f"{bundle.card.identifier} (weights {own[:12]}...); evaluate this model"
        )
    held = card_sha256(bundle.card)
    if made["card_sha256"] != held:
        raise DataError(
            f"{where}: the card of {bundle.card.identifier} has changed since (its calibration, "
            f"limits or another field: SHA-256 {held[:12]}..., evaluated "
            f"{made['card_sha256'][:12]}...); evaluate the model again"
        )


# --- figures of the TOML card ---------------------------------------------------------------------


def card_figures(evaluations: Sequence[Wire]) -> tuple[Figure, ...]:
    """The figures of a TOML card, each with its data, interval and the command that makes it."""
    figures = []
    for evaluation in evaluations:
        data = _files(evaluation)
        for name in CARD_FIGURES:
            found = evaluation["metrics"].get(name)
            if found is not None and found["value"] is not None:
                low, high = (
                    None if found[end] is None else round(found[end], 4) for end in ("low", "high")
                )
                figures.append(
                    Figure(
                        metric=name,
                        data=f"{data}, {found['count']:,} faces",
                        value=round(found["value"], 4),
                        unit=find_metric(name).unit,
                        low=low,
                        high=high,
                        command=evaluation_command(evaluation),
                    )
                )
    return tuple(figures)


def write_figures(bundle: Bundle, evaluations: Sequence[Wire]) -> Path:
    """Put the figures of stored evaluations into the model's TOML card.

    Returns:
        The card's path.

    Raises:
        ArgumentError: The card is one that comes with the package.
        CardError: The card has become invalid meanwhile.
    """
    path = Path(bundle.origin)
    if path.suffix != ".toml" or path.is_relative_to(bundled_folder()):
        raise ArgumentError(
            f"the card of {bundle.card.identifier} comes with the package and is not written; "
            "name a model file of your own"
        )
    table = tomllib.loads(path.read_text("utf-8"))
    table["figures"] = [f.model_dump(exclude_none=True) for f in card_figures(evaluations)]
    try:
        ModelCard.model_validate(table)
    except ValidationError as error:
        raise CardError(f"{path}: {card_faults(error)}") from error
    write_text(path, toml_text(table))
    return path


# --- the page -------------------------------------------------------------------------------------


def write_card(
    model: str,
    output: Path,
    *,
    evaluations: Sequence[Path],
    audit: Path | None = None,
    audit_key: str | Path | None = None,
    run: Path | None = None,
) -> None:
    """Write a model card in Markdown.

    Args:
        model: Name or path of the model.
        output: File to write; it appears when it is complete, or not at all.
        evaluations: Stored evaluations of this model, one or more.
        audit: A signed audit of this model.
        audit_key: Public key that must have signed it; see ``signing.verify_audit``.
        run: Folder of the training run, for its time and device.

    Raises:
        DataError: A result is missing, empty, of another kind or of another model.
        AuditError: The audit is not whole, not trusted, expired, or of another model.
        ModelNotFound, CardError: The model.
    """
    if not evaluations:
        raise ArgumentError("a card needs one evaluation or more: --evaluation evaluation.json")
    bundle = find_model(model)
    held = [read_evaluation(path) for path in evaluations]
    for path, evaluation in zip(evaluations, held, strict=True):
        check_evaluation(evaluation, bundle, str(path))
    audited = None
    if audit is not None:
        audited = verify_audit(audit, bundle=bundle, trusted_key=audit_key).document
    write_text(output, card_page(bundle, held, audit=audited, run=run))


def card_page(
    bundle: Bundle, evaluations: Sequence[Wire], *, audit: Wire | None = None,
    run: Path | None = None,
) -> str:  # fmt: skip
    """The model card as Markdown; the results are of this model."""
    card = bundle.card
    parts = [
        f"# Model card: {card.identifier}",
        card.summary,
        _section("Model details", _details(bundle)),
        _section("Intended use", _intended_use(card, audit)),
        _section("Factors", _factors(evaluations)),
        _section("Metrics", _metrics(card, evaluations)),
        _section("Evaluation data", _evaluation_data(evaluations)),
        _section("Training data", _training_data(card)),
        _section("Quantitative analyses", "\n\n".join(_analyses(evaluations))),
        _section("Calibration", _calibration(card, evaluations)),
        _section("Audit", _audit(audit)),
        _section("Ethical considerations", _ETHICS),
        _section("Caveats and recommendations", _caveats(card, evaluations)),
        _section("Energy and cost", _cost(bundle, evaluations, run)),
        _section("How to cite", _citation(card, evaluations)),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _details(bundle: Bundle) -> str:
    card = bundle.card
    crop = card.crop_spec()
    lines = [
        f"Name and version: `{card.identifier}`",
        f"Licence: {card.licence} (class: {card.licence_class})",
        f"Input: {card.input.size} px face chips, margin {crop.margin:g}, aligned by {crop.anchor}",
        f"Age output: {card.age.kind}, turned into a distribution over the ages 0 to 100",
        f"Gender output: {'P(female) as perceived' if card.gender else 'none'}",
        f"Weights: {_megabytes(bundle)}",
        *(f"File `{f.path}` ({f.role}): SHA-256 `{f.sha256}`" for f in card.files),
    ]
    if card.attribution:
        lines.insert(1, f"By: {card.attribution}")
    return _bullets(lines)


def _megabytes(bundle: Bundle) -> str:
    try:
        return f"{bundle.size_bytes() / 1e6:.1f} MB"
    except ModelError:
        return "not on this machine"


def _intended_use(card: ModelCard, audit: Wire | None) -> str:
    lines = [
        "Primary: how old faces look and which gender they present, in aggregate or with a person "
        "who looks at the answer, always with its interval; research on age estimation.",
        "Users: those who can check it on faces like theirs (`agelens evaluate`, `agelens audit`) "
        "and answer for what is done with it.",
        "Out of scope: proving an age or an identity; deciding about a person by a number alone; "
        "character, health, origin or ability; race or ethnicity, which AgeLens never predicts.",
    ]
    if card.licence_class == "research":
        lines.append("Out of scope: commercial use, which the licence does not allow.")
    if audit is None:
        lines.append(
            "Not audited here: do not let it decide who may enter, buy or see something before "
            "`agelens audit` has passed on faces like yours."
        )
    elif audit["verdict"] != "passed":
        lines.append(
            f"**It failed the audit by the policy “{audit['policy']['name']}”** (see Audit): it is "
            "not fit for the decisions that this policy is for."
        )
    return _bullets(lines)


def _factors(evaluations: Sequence[Wire]) -> str:
    named = [
        f"Audit column `{column}`, as the authors of {_files(evaluation)} labelled it: "
        f"{', '.join(group['value'] for group in groups)}."
        for evaluation in evaluations
        for column, groups in evaluation["groups"].items()
        if column not in ("age", "gender", "dataset")
    ]
    lines = [
        "Groups: true age in bands; gender as labelled, which is how others perceived a face.",
        *named,
        "Pictures: size, blur, light, pose and what covers a face change the error; faces that "
        "allow no answer are abstained on, and counted.",
        "Not looked at, for want of labels: skin tone as seen by people, disability, make-up, "
        "faces changed by illness or surgery, and whatever else the data sets do not name.",
    ]
    return _bullets(lines)


def _metrics(card: ModelCard, evaluations: Sequence[Wire]) -> str:
    threshold = card.calibration.gender_threshold
    return _bullets(
        [
            "MAE, bias and CS@5 compare the expected age with exact labels. Ranges are compared "
            "with the rounded expected age. Coverage is the share of 90 % intervals that hold the "
            "label, and should be 90 %.",
            f"Gender counts the likelier one of every face; a label is said from a probability of "
            f"{threshold:g} on, and “uncertain” under it.",
            f"Intervals: {interval_words(evaluations[0])}",
            "Figures are over all faces with an estimate, also where the analyzer would abstain.",
        ]
    )


def _evaluation_data(evaluations: Sequence[Wire]) -> str:
    rows = []
    for evaluation in evaluations:
        counts = evaluation["faces"]
        labels = f"{counts['exact_age']:,} exact ages, {counts['range_age']:,} ranges, "
        labels += f"{counts['gender']:,} genders"
        for file in evaluation["provenance"]["data"]:
            rows.append([file["name"], f"`{file['sha256'][:16]}…`", labels, f"{file['rows']:,}"])
    table = markdown(["file", "SHA-256", "labels of the evaluation", "faces"], rows, left=3)
    commands = "\n".join(evaluation_command(evaluation) for evaluation in evaluations)
    return f"{table}\n\nMade by:\n\n```bash\n{commands}\n```"


def _training_data(card: ModelCard) -> str:
    if not card.training_data:
        return (
            "The card names none: what the weights were trained on is not known to AgeLens, and "
            "neither are the licences of those pictures."
        )
    rows = [
        [d.name, d.licence, d.licence_class, "" if d.rows is None else f"{d.rows:,}"]
        for d in card.training_data
    ]
    return markdown(["data set", "licence", "class", "faces"], rows, left=3)


def _analyses(evaluations: Sequence[Wire]) -> Iterator[str]:
    yield "### All faces\n\n" + figures_markdown(evaluations)
    for evaluation in evaluations:
        data = _files(evaluation)
        for column, groups in evaluation["groups"].items():
            names = _BAND_FIGURES if column == "age" else _GROUP_FIGURES
            table = group_table(column, groups, names)
            title = {"age": "true age", "gender": "labelled gender"}.get(column, column)
            words = f"\n\n{table.caption}" if table.caption else ""
            yield f"### By {title}: {data}\n\n{markdown(table.head, table.rows)}{words}"


def figures_markdown(evaluations: Sequence[Wire], names: Sequence[str] = _TABLE_FIGURES) -> str:
    """Metrics of one or more stored evaluations side by side, with their intervals."""
    head = ["", *(_data_title(evaluation) for evaluation in evaluations)]
    rows = []
    for name in names:
        metric = find_metric(name)
        cells = [estimate_text(e["metrics"].get(name), metric.text) for e in evaluations]
        if any(name in evaluation["metrics"] for evaluation in evaluations):
            unit = f", {metric.shown_unit}" if metric.shown_unit else ""
            rows.append([f"{metric.title}{unit}", *cells])
    return markdown(head, rows)


def _files(evaluation: Wire) -> str:
    return ", ".join(file["name"] for file in evaluation["provenance"]["data"])


def _data_title(evaluation: Wire) -> str:
    files = ", ".join(Path(file["name"]).stem for file in evaluation["provenance"]["data"])
    return f"{files} ({evaluation['faces']['rows']:,})"


def _calibration(card: ModelCard, evaluations: Sequence[Wire]) -> str:
    fields = card.calibration
    if not fields.data:
        said = "Not calibrated: probabilities and intervals are the network's own."
    else:
        said = (
            f"Fitted on {fields.data}: age temperature {fields.age_temperature:g}, smoothing "
            f"{fields.age_smoothing[0]:g} + {fields.age_smoothing[1]:g} a year, gender temperature "
            f"{fields.gender_temperature:g} and bias {fields.gender_bias:+g}, "
            f"{len(fields.coverage)} conformal tables for the intervals."
        )
    rows = []
    for evaluation in evaluations:
        for held in evaluation["reliability"].get("intervals", ()):
            found = {"value": held["share"], "low": held["low"], "high": held["high"]}
            achieved = estimate_text(found, per_cent)
            rows.append([_data_title(evaluation), f"{100 * held['level']:g}", achieved])
    table = markdown(["data", "stated level, %", "intervals that hold the label, %"], rows)
    return f"{said}\n\n{table}" if rows else said


def _audit(audit: Wire | None) -> str:
    if audit is None:
        return "None was given to this card."
    files = ", ".join(file["name"] for file in audit["data"])
    head = (
        f"By the policy “{audit['policy']['name']}” on {files}, made {audit['created'][:10]}, "
        f"holds until {audit['expires'][:10]}: the model **{audit['verdict']}**. "
        + " ".join(verdict_words(audit))
    )
    parts = [head]
    if audit["sentences"]:
        parts.append(_bullets(audit["sentences"]))
    for column in audit["columns"]:
        table = gap_table(audit, [column])
        if table.rows:
            title = f"Gaps between groups by {column}, with a test of whether they are noise:"
            parts.append(f"{title}\n\n{markdown(table.head, table.rows, left=3)}")
    return "\n\n".join(parts)


_ETHICS: Final = _bullets(
    [
        "Faces are personal data. AgeLens keeps no picture, crop or embedding unless it is asked "
        "to.",
        "Gender is how others perceive a face. It is not a person's identity, there are people "
        "whom neither word fits, and it can be switched off.",
        "Race is a label of some data sets, used to look for differences between groups; it is "
        "never predicted.",
        "Errors are not spread evenly (see the tables by group). Whoever uses the model answers "
        "for whom it fails, and has to offer another way to those whom it cannot tell.",
    ]
)


def _caveats(card: ModelCard, evaluations: Sequence[Wire]) -> str:
    lines = list(card.limits)
    for evaluation in evaluations:
        title = _data_title(evaluation)
        lines += [f"On {title}: {finding}" for finding in findings(evaluation)]
    lines.append(
        "Measure it on your own faces before you rely on it: cameras, countries and ages differ."
    )
    return _bullets(lines)


def _cost(bundle: Bundle, evaluations: Sequence[Wire], run: Path | None) -> str:
    lines = []
    for evaluation in evaluations:
        spent = evaluation["provenance"]["milliseconds"]
        if spent:
            lines.append(
                f"Inference, one face at a time on one thread: {spent['network']:.1f} ms of CPU "
                f"for the network, {spent['total']:.1f} ms for the whole chain "
                f"({_data_title(evaluation)})."
            )
            break
    lines.append(f"Size of the weights: {_megabytes(bundle)}.")
    lines += _training_cost(run)
    return _bullets(lines)


def _training_cost(run: Path | None) -> list[str]:
    if run is None:
        return ["Training: no run was given to this card; its time and energy are not known."]
    try:
        environment = json.loads((run / "environment.json").read_text("utf-8"))
        with open(run / "timings.csv", newline="", encoding="utf-8") as table:
            epochs = list(csv.DictReader(table))
        seconds = sum(float(epoch["seconds"]) for epoch in epochs)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{run}: no folder of a training run (environment.json, timings.csv): {error}"
        ) from error
    how = environment["run"]
    return [
        f"Training: {len(epochs)} epochs in {seconds / 3600:.2f} hours of wall clock on "
        f"{how.get('device', 'an unnamed device')} ({environment.get('processor', '?')}, "
        f"{environment.get('cores', '?')} cores). Energy was not measured."
    ]


def _citation(card: ModelCard, evaluations: Sequence[Wire]) -> str:
    made = max(evaluation["created"][:10] for evaluation in evaluations)
    by = card.attribution or "its authors"
    return (
        f"{by}: *{card.identifier}*, {card.licence}. Figures: model card made with AgeLens "
        f"{__version__} from evaluations of {made}; weights "
        f"`{', '.join(f.sha256[:12] for f in card.files)}`."
    )
