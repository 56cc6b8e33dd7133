"""
``agelens gate``: fit an age gate's limits, and report what it does to whom.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from agelens.cli import gate_check as _check
from agelens.cli.console import error_console, output_console, progress_bar

if TYPE_CHECKING:
    from agelens.bundle import Bundle
    from agelens.evaluation.scored import ScoredFaces
    from agelens.evaluation.signing import VerifiedAudit
    from agelens.gate.fitting import GateFit
    from agelens.gate.measuring import GateReport, TradeOff

app = typer.Typer(
    help="Keep those under age out, and know how often that fails and for whom.",
    no_args_is_help=True,
)

_SHOWN_LIMITS = 12


class RuleName(StrEnum):
    """What the gate compares."""

    probability = "probability"
    challenge = "challenge"


_Model = Annotated[
    str, typer.Argument(help="Model: a name, a .onnx file with its card, or insightface:DIR.")
]
_Data = Annotated[
    list[Path],
    typer.Argument(help="Parquet tables of labelled faces, or folders of them.", metavar="DATA"),
]
_Flip = Annotated[
    bool, typer.Option("--flip", help="Average with the mirrored face; the gate does so too.")
]
_Detector = Annotated[
    str, typer.Option(help="default, none (each picture is one face), or insightface:DIR.")
]
_Licence = Annotated[
    bool, typer.Option("--accept-licence", help="Use a model licensed for research only.")
]
_Keep = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Keep each face's answers (.npz), and take them from there when model and data are "
        "the same.",
    ),
]
_By = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMNS",
        help="Groups: gender and audit columns, with commas; race+gender for their combinations.",
    ),
]


@app.command()
def fit(
    model: _Model,
    data: _Data,
    required_age: Annotated[
        int | None, typer.Option(min=1, max=100, help="Completed years that admit; 18 by default.")
    ] = None,
    max_false_accept: Annotated[
        float, typer.Option(help="Bound of the share of those under age who are accepted.")
    ] = 0.05,
    confidence: Annotated[
        float, typer.Option(help="How sure the bound has to be, between 0 and 1.")
    ] = 0.95,
    by: _By = None,
    rule: Annotated[
        RuleName | None,
        typer.Option(
            help="probability: accept from P(of age); challenge: accept from an estimated age."
        ),
    ] = None,
    minor_band: Annotated[
        str | None,
        typer.Option(
            metavar="A-B",
            help="Ages next to the required one that the bound must hold for apart; by default "
            "the five years under it.",
        ),
    ] = None,
    adult_band: Annotated[
        str | None,
        typer.Option(
            metavar="A-B",
            help="Ages that --max-false-refuse must hold for apart; by default the seven years "
            "from the required one.",
        ),
    ] = None,
    max_false_refuse: Annotated[
        float,
        typer.Option(
            help="Bound of the share of those of age who are refused outright rather than asked "
            "for another proof; 0 refuses nobody outright."
        ),
    ] = 0.05,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="Policy whose other fields are kept: a TOML file, or shop-18, site-18, "
            "challenge-25.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the policy; by default that of --base, or over-AGE.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Policy file to write (TOML); its figures and price go beside it as .fit.json. "
            "Without it the policy is printed.",
        ),
    ] = None,
    flip: _Flip = False,
    detector: _Detector = "default",
    accept_licence: _Licence = False,
    keep: _Keep = None,
) -> None:
    """Find the limit that keeps false acceptance below a bound, with a stated confidence.

    DATA must be faces that the model was neither trained nor calibrated on, and like those that
    the gate will see. The bound holds for all under age, for those next to the required age, and
    for each group of --by. With too few faces to promise it, the fit refuses and says how many are
    needed.

    [bold]Examples[/]

      agelens gate fit cc0 faces.parquet --max-false-accept 0.05 --by gender --out policy.toml

      agelens gate fit cc0 faces.parquet --base site-18 --max-false-accept 0.01 --out policy.toml
    """
    from agelens.data.schema import write_text
    from agelens.errors import ArgumentError
    from agelens.gate.fitting import fit_gate
    from agelens.gate.policy import GatePolicy

    start = None if base is None else GatePolicy.load(base)
    if start is not None and required_age not in (None, start.required_age):
        raise ArgumentError(
            f"--required-age {required_age} and --base {base}: that policy is for "
            f"{start.required_age}; name one of the two"
        )
    if start is not None and rule is not None and rule.value != start.rule:
        raise ArgumentError(
            f"--rule {rule.value} and --base {base}: that policy has the rule {start.rule!r}; "
            "name one of the two"
        )
    minors = _band(minor_band, "--minor-band")
    adults = _band(adult_band, "--adult-band")
    faces = _score(model, data, flip, detector, accept_licence, keep)
    found = fit_gate(
        faces,
        required_age or 18,
        max_false_accept,
        confidence,
        _columns(by) or (),
        "probability" if rule is None else rule.value,
        minors=minors,
        adults=adults,
        max_false_refuse=max_false_refuse or None,
        base=start,
        name=name,
    )
    if out is None:
        typer.echo(found.policy.to_toml(), nl=False)
    else:
        found.policy.save(out)
        figures = out.with_suffix(".fit.json")
        write_text(figures, json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
        _print_fit(found)
        for path in (out, figures):
            error_console().print(f"-> {escape(str(path))}", soft_wrap=True)


@app.command()
def report(
    model: _Model,
    data: _Data,
    policy: Annotated[Path, typer.Option(help="The gate's policy, fitted on other faces.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the report and the papers.")],
    by: _By = None,
    audit: Annotated[
        Path | None,
        typer.Option(
            help="Signed audit of the model; the one that the policy names, if it lies there."
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Public key that must have signed the audit.")
    ] = None,
    operator: Annotated[str | None, typer.Option(help="Who answers for the gate.")] = None,
    contact: Annotated[str | None, typer.Option(help="Where to ask and to complain.")] = None,
    place: Annotated[str | None, typer.Option(help="Where the gate stands.")] = None,
    purpose: Annotated[
        str | None, typer.Option(help="What is kept from those under age, by which law.")
    ] = None,
    other_way: Annotated[
        str | None, typer.Option(help="The proof for those who are not accepted.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Bootstrap draws behind the intervals in years.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    accept_licence: _Licence = False,
    keep: _Keep = None,
) -> None:
    """Measure a gate on faces it was not fitted on, and fill its papers.

    OUT gets gate-report.json and .html (in the manner of NIST), the public practice statement, the
    notice for the people in front of the camera, and the impact assessment and technical file,
    begun. What only the operator can know is left as a blank.

    Exits with 1 when a promise of the fit does not hold on these faces.

    [bold]Example[/]: agelens gate report cc0 test.parquet --policy policy.toml --out papers/
    """
    from agelens.bundle import find_model
    from agelens.errors import ArgumentError
    from agelens.gate.measuring import measure_gate
    from agelens.gate.paperwork import Operator, write_paperwork
    from agelens.gate.policy import GatePolicy

    if out.exists() and not out.is_dir():
        raise ArgumentError(f"--out {out}: is a file; name a folder")
    loaded = GatePolicy.load(policy)
    bundle = find_model(model)
    verified = _verified(audit, policy.parent / loaded.audit.path, key or loaded.audit.key, bundle)
    fitted = loaded.model
    faces = _score(
        model,
        data,
        fitted.flip if fitted else False,
        fitted.detector if fitted else "default",
        accept_licence,
        keep,
    )
    measured = measure_gate(faces, loaded, by=_columns(by), samples=samples, seed=seed)
    written = write_paperwork(
        measured,
        out,
        operator=Operator(operator, contact, place, other_way, purpose),
        audit=verified,
        card=bundle.card,
    )
    _warn_of_fitted_faces(measured)
    _print_report(measured)
    for path in written:
        error_console().print(f"-> {escape(str(path))}", soft_wrap=True)
    if any(check.verdict == "broken" for check in measured.checks):
        raise typer.Exit(1)


app.command("check")(_check.check)
app.command("verify-journal")(_check.verify_journal)
app.add_typer(_check.keys_app, name="keys")


# --- parsing --------------------------------------------------------------------------------------


def _band(text: str | None, option: str) -> tuple[int, int] | None:
    from agelens.errors import ArgumentError

    if text is None:
        return None
    low, dash, high = text.partition("-")
    if not (dash and low.strip().isdecimal() and high.strip().isdecimal()):
        raise ArgumentError(f"{option} {text}: write two ages as 13-17")
    return int(low), int(high)


def _columns(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _score(
    model: str,
    data: list[Path],
    flip: bool,
    detector: str,
    accept_licence: bool,
    keep: Path | None,
) -> ScoredFaces:
    from agelens.evaluation.scoring import ScoringOptions, score

    options = ScoringOptions(detector=detector, flip=flip, accept_licence=accept_licence)
    with progress_bar(f"asking {model}") as progress:
        return score(model, data, options, kept=keep, progress=progress)


def _verified(
    given: Path | None, named: Path, key: str | None, bundle: Bundle
) -> VerifiedAudit | None:
    """The verified audit: a given one must hold; without the policy's the papers say so."""
    from agelens.errors import AuditError
    from agelens.evaluation.signing import verify_audit

    if given is not None:
        return verify_audit(given, bundle=bundle, trusted_key=key)
    if not named.exists():
        return None
    try:
        return verify_audit(named, bundle=bundle, trusted_key=key)
    except AuditError as error:
        error_console().print(
            f"[yellow]warning:[/] the papers will say that there is no audit: {escape(str(error))}",
            soft_wrap=True,
        )
        return None


# --- printing -------------------------------------------------------------------------------------


def _print_fit(found: GateFit) -> None:
    from rich.table import Table

    from agelens.gate.paperwork import people, rule_words

    console = output_console()
    policy = found.policy
    console.print(f"[bold]{escape(policy.name)}[/]", soft_wrap=True)
    for line in rule_words(policy.to_table()):
        console.print(f"  {escape(line)}", soft_wrap=True)
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for title in ("true age", "what", "in the fit", "rate, %", "upper bound, %"):
        left = title in ("true age", "what")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    assert policy.fit is not None  # it was fitted just now
    for one in policy.fit.promises:
        table.add_row(
            escape(people(one.ages, one.group)),
            "accepted" if one.error == "false_acceptance" else "refused",
            f"{one.errors:,} of {one.faces:,}",
            f"{100 * one.rate:.1f}",
            f"{100 * one.upper:.1f}",
        )
    console.print(table)
    console.print(_price_table(found.price, policy.accept_from))
    for note in found.notes:
        console.print(escape(note), soft_wrap=True)


def _price_table(points: tuple[TradeOff, ...], limit: float | None) -> Any:
    from rich.table import Table

    table = Table(
        title="price of other limits, %", title_justify="left", box=None, padding=(0, 1),
        pad_edge=False,
    )  # fmt: skip
    table.add_column("accepted from", justify="right")
    for band in points[0].false_accept:
        table.add_column(f"{band}\naccepted", justify="right")
    for band in points[0].not_accepted:
        table.add_column(f"{band}\nnot", justify="right")
    step = max(1, len(points) // _SHOWN_LIMITS)
    shown = [p for number, p in enumerate(points) if number % step == 0 or p.limit == limit]
    for point in shown:
        cells = [*point.false_accept.values(), *point.not_accepted.values()]
        table.add_row(
            f"{point.limit:g}",
            *(f"{100 * value:.1f}" if value == value else "" for value in cells),
            style="bold" if point.limit == limit else None,
        )
    return table


def _print_report(measured: GateReport) -> None:
    from rich.table import Table

    from agelens.gate.measuring import ALL
    from agelens.gate.paperwork import people

    console = output_console()
    policy, counts = measured.policy, measured.counts
    console.print(
        f"[bold]{escape(policy.name)}[/], {escape(measured.model['name'])}: "
        f"{counts['under_age']:,} under age and {counts['of_age']:,} of age",
        soft_wrap=True,
    )
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for title in ("true age", "faces", "accepted, %", "95 %", "step up, %", "refused, %"):
        left = title == "true age"
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    for one in measured.decisions:
        if one.group != ALL and not one.under_age:
            continue
        low, high = one.accept.interval
        table.add_row(
            escape(people(one.ages, one.group)),
            f"{one.accept.faces:,}",
            f"{100 * one.accept.value:.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            f"{100 * one.step_up.value:.1f}",
            f"{100 * one.refuse.value:.1f}",
            style="red" if one.under_age else None,
        )
    console.print(table)
    for check in measured.checks:
        if check.verdict in ("above", "broken"):
            colour = "red" if check.verdict == "broken" else "yellow"
            what = "accepted" if check.promise.error == "false_acceptance" else "refused"
            words = people(check.promise.ages, check.promise.group)
            console.print(
                f"[{colour}]{check.verdict}[/]: {escape(words)}: {100 * check.found.value:.1f} % "
                f"{what}, promised under {100 * check.bound:g} %",
                soft_wrap=True,
            )
    if measured.checks and all(check.verdict == "below" for check in measured.checks):
        console.print("[green]every promise of the fit holds on these faces[/]")


def _warn_of_fitted_faces(measured: GateReport) -> None:
    fit = measured.policy.fit
    if fit is None:
        return
    used = {one.sha256 for one in fit.data}
    for one in measured.data:
        if one["sha256"] in used:
            error_console().print(
                f"[yellow]warning:[/] {escape(str(one['name']))}: the gate was fitted on this "
                "file, so its figures here are too good; report on other faces",
                soft_wrap=True,
            )
