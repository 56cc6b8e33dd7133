"""
``agelens gate``: fit an age gate's limits, and report what it does to whom.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from agelens.cli import gate_check as _check
from agelens.cli.console import error_console, output_console, print_table, progress_bar
from agelens.cli.options import AcceptLicence, DetectorName, FaceTables, Keep, ModelName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agelens.bundle import Bundle, ModelCard
    from agelens.evaluation.scored import DataFile, ScoredFaces
    from agelens.evaluation.signing import VerifiedAudit
    from agelens.gate.fitting import GateFit
    from agelens.gate.measuring import GateReport, TradeOff
    from agelens.gate.policy import GatePolicy

app = typer.Typer(
    help="Keep those under an age out, or in, and know how often that fails and for whom.",
    no_args_is_help=True,
)

_SHOWN_LIMITS: Final = 12
_AS_TYPED: Final = {
    "max_false_accept": "--max-false-accept",
    "confidence": "--confidence",
    "max_false_refuse": "--max-false-refuse",
    "minors": "--minor-band",
    "adults": "--adult-band",
}


class RuleName(StrEnum):
    """What the gate compares."""

    probability = "probability"
    challenge = "challenge"


class AdmitName(StrEnum):
    """Who is let in."""

    over = "over"
    under = "under"


_Flip = Annotated[
    bool, typer.Option("--flip", help="Average with the mirrored face; the gate does so too.")
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
    model: ModelName,
    data: FaceTables,
    required_age: Annotated[
        int | None,
        typer.Option(
            min=1, max=100, help="Completed years at which the two sides part; 18 by default."
        ),
    ] = None,
    admit: Annotated[
        AdmitName | None,
        typer.Option(
            help="Who is let in: over, those of the required age or more (the default); under, "
            "those who have not reached it."
        ),
    ] = None,
    max_false_accept: Annotated[
        float, typer.Option(help="Bound of the share of those to be kept out who are accepted.")
    ] = 0.05,
    confidence: Annotated[
        float, typer.Option(help="How sure the bound has to be, between 0 and 1.")
    ] = 0.95,
    by: _By = None,
    rule: Annotated[
        RuleName | None,
        typer.Option(
            help="probability: accept from a probability of the admitted age; challenge: from an "
            "estimated age."
        ),
    ] = None,
    minor_band: Annotated[
        str | None,
        typer.Option(
            metavar="A-B",
            help="Ages under the required one that the bound must hold for apart; by default "
            "the five years under it. With --admit under: that --max-false-refuse must hold for.",
        ),
    ] = None,
    adult_band: Annotated[
        str | None,
        typer.Option(
            metavar="A-B",
            help="Ages that --max-false-refuse must hold for apart; by default the seven years "
            "from the required one. With --admit under: that the bound must hold for, by default "
            "the five years from it.",
        ),
    ] = None,
    max_false_refuse: Annotated[
        float,
        typer.Option(
            help="Bound of the share of those to be let in who are refused outright rather than "
            "asked for another proof; 0 refuses nobody outright."
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
        str | None,
        typer.Option(help="Name of the policy; by default that of --base, or over-AGE, under-AGE."),
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
    detector: DetectorName = "default",
    accept_licence: AcceptLicence = False,
    keep: Keep = None,
) -> None:
    """Find the limit that keeps false acceptance below a bound, with a stated confidence.

    DATA must be faces that the model was neither trained nor calibrated on, and like those that
    the gate will see. The bound holds for all who are to be kept out, for those of them next to
    the required age, and for each group of --by. With too few faces to promise it, the fit refuses
    and says how many are needed.

    [bold]Examples[/]

      agelens gate fit cc0 faces.parquet --max-false-accept 0.05 --by gender --out policy.toml

      agelens gate fit cc0 faces.parquet --base site-18 --max-false-accept 0.01 --out policy.toml

      agelens gate fit cc0 faces.parquet --required-age 13 --admit under --out children.toml
    """
    from agelens.bundle import find_model
    from agelens.data.schema import write_text
    from agelens.errors import ArgumentError
    from agelens.gate.fitting import checked_promise, fit_gate
    from agelens.gate.measuring import datasets_of
    from agelens.gate.policy import LONGEST_NAME, GatePolicy

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
    if start is not None and admit is not None and admit.value != start.admit:
        raise ArgumentError(
            f"--admit {admit.value} and --base {base}: that policy has admit = {start.admit!r}; "
            "name one of the two"
        )
    age = start.required_age if start else required_age or 18
    chosen_rule = start.rule if start else "probability" if rule is None else rule.value
    who = start.admit if start else "over" if admit is None else admit.value
    if who == "under" and chosen_rule == "challenge":
        raise ArgumentError(
            "--admit under and --rule challenge do not go together: a buffer age is there to keep "
            "the young out; leave out --rule"
        )
    if name is not None and not 1 <= len(name) <= LONGEST_NAME:
        raise ArgumentError(f"--name must have 1 to {LONGEST_NAME} characters, got {len(name)}")
    _require_no_folder(out, "--out", "a file for the policy")
    _require_no_folder(keep, "--keep", "a file for the answers")
    minors, adults = checked_promise(
        age,
        max_false_accept,
        confidence,
        max_false_refuse or None,
        _band(minor_band, "--minor-band"),
        _band(adult_band, "--adult-band"),
        who,
        names=_AS_TYPED,
    )
    groups = _columns(by, data) or ()
    faces = _score(model, data, flip, detector, accept_licence, keep)
    found = fit_gate(
        faces,
        age,
        max_false_accept,
        confidence,
        groups,
        chosen_rule,
        minors=minors,
        adults=adults,
        max_false_refuse=max_false_refuse or None,
        base=start,
        name=name,
        admit=who,
    )
    _warn_of_known_faces(faces.provenance.data, datasets_of(faces), find_model(model).card)
    if out is None:
        typer.echo(found.policy.to_toml(), nl=False)
        for note in found.notes:
            error_console().print(escape(note), soft_wrap=True)
    else:
        found.policy.save(out)
        figures = out.with_suffix(".fit.json")
        write_text(figures, json.dumps(found.to_dict(), indent=1, ensure_ascii=False) + "\n")
        _print_fit(found)
        for path in (out, figures):
            error_console().print(f"-> {escape(str(path))}", soft_wrap=True)


@app.command()
def report(
    model: ModelName,
    data: FaceTables,
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
        str | None, typer.Option(help="What the gate keeps to those it lets in, by which law.")
    ] = None,
    other_way: Annotated[
        str | None, typer.Option(help="The proof for those who are not accepted.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Bootstrap draws behind the intervals in years.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    accept_licence: AcceptLicence = False,
    keep: Keep = None,
) -> None:
    """Measure a gate on faces it was not fitted on, and fill its papers.

    OUT gets gate-report.json and .html (in the manner of NIST), the public practice statement, the
    notice for the people in front of the camera, and the impact assessment and technical file,
    begun. What only the operator can know is left as a blank. A gate whose audit is missing, failed
    or out of date stays shut; that is said here too.

    Exits with 1 when a promise of the fit does not hold on these faces.

    [bold]Example[/]: agelens gate report cc0 test.parquet --policy policy.toml --out papers/
    """
    from agelens.bundle import find_model
    from agelens.errors import ArgumentError
    from agelens.evaluation.scoring import card_sha256, model_sha256
    from agelens.gate.measuring import measure_gate, require_same_model
    from agelens.gate.paperwork import Operator, write_paperwork
    from agelens.gate.policy import GatePolicy

    if out.exists() and not out.is_dir():
        raise ArgumentError(f"--out {out}: is a file; name a folder")
    _require_no_folder(keep, "--keep", "a file for the answers")
    loaded = GatePolicy.load(policy)
    loaded.require_limit()
    groups = _columns(by, data)
    bundle = find_model(model)
    require_same_model(
        loaded, bundle.card.identifier, model_sha256(bundle), card_sha256(bundle.card)
    )
    verified, problem = _verified(audit, loaded, policy.parent, key, bundle, model)
    fitted = loaded.model
    faces = _score(
        model,
        data,
        fitted.flip if fitted else False,
        fitted.detector if fitted else "default",
        accept_licence,
        keep,
    )
    measured = measure_gate(faces, loaded, by=groups, samples=samples, seed=seed)
    written = write_paperwork(
        measured,
        out,
        operator=Operator(operator, contact, place, other_way, purpose),
        audit=verified,
        problem=problem,
        card=bundle.card,
    )
    _warn_of_fitted_faces(measured)
    _warn_of_known_faces(faces.provenance.data, measured.datasets, bundle.card)
    _print_report(measured)
    _print_audit(loaded, verified, problem)
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


def _columns(text: str | None, data: Sequence[Path]) -> list[str] | None:
    """The columns of --by, each of which the tables have.

    Raises:
        ArgumentError: A column is not there.
    """
    from agelens.data.schema import FaceTable
    from agelens.errors import ArgumentError

    if text is None:
        return None
    found = [name.strip() for name in text.split(",") if name.strip()]
    if found:
        known = ["gender", *sorted(FaceTable.open(data).audit)]
        for part in (part.strip() for name in found for part in name.split("+")):
            if part not in known:
                raise ArgumentError(
                    f"--by {text}: there is no column {part!r} in the data; there are: "
                    f"{', '.join(known)}"
                )
    return found


def _require_no_folder(path: Path | None, option: str, wanted: str) -> None:
    from agelens.errors import ArgumentError

    if path is not None and path.is_dir():
        raise ArgumentError(f"{option} {path}: is a folder; name {wanted}")


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
    given: Path | None,
    policy: GatePolicy,
    folder: Path,
    key: str | None,
    bundle: Bundle,
    model: str,
) -> tuple[VerifiedAudit | None, str | None]:
    """The verified audit, and what keeps the gate shut; a given one must verify."""
    from agelens.errors import AuditError
    from agelens.gate.decision import audit_problem, read_audit
    from agelens.identifiers import utc_now

    path = folder / policy.audit.path if given is None else given
    if given is None and not path.exists():
        return None, (
            f"there is no audit at {path}; make one with `agelens audit {model} DATA --out "
            "FOLDER`, or name it with --audit"
        )
    try:
        verified = read_audit(path, policy, folder, bundle, now=utc_now(), trusted_key=key)
    except AuditError as error:
        if given is not None:
            raise
        return None, str(error)
    return verified, audit_problem(verified, policy.audit.max_age_days, utc_now())


# --- printing -------------------------------------------------------------------------------------


def _print_fit(found: GateFit) -> None:
    from agelens.gate.paperwork import people, rule_words

    console = output_console()
    policy = found.policy
    console.print(f"[bold]{escape(policy.name)}[/]", soft_wrap=True)
    for line in rule_words(policy.to_table()):
        console.print(f"  {escape(line)}", soft_wrap=True)
    assert policy.fit is not None  # it was fitted just now
    rows = [
        (
            people(one.ages, one.group),
            "accepted" if one.error == "false_acceptance" else "refused",
            f"{one.errors:,} of {one.faces:,}",
            f"{100 * one.rate:.1f}",
            f"{100 * one.upper:.1f}",
        )
        for one in policy.fit.promises
    ]
    head = ("true age", "what", "in the fit", "rate, %", "upper bound, %")
    print_table(head, rows, left=2)
    console.print("price of other limits, %", soft_wrap=True)
    _print_price(found.price, policy.accept_from)
    for note in found.notes:
        console.print(escape(note), soft_wrap=True)


def _print_price(points: Sequence[TradeOff], limit: float | None) -> None:
    head = [
        "accepted from",
        *(f"{band}\naccepted" for band in points[0].false_accept),
        *(f"{band}\nnot" for band in points[0].not_accepted),
    ]
    step = max(1, len(points) // _SHOWN_LIMITS)
    shown = [p for number, p in enumerate(points) if number % step == 0 or p.limit == limit]
    rows = [
        (
            f"{point.limit:g}",
            *(
                f"{100 * value:.1f}" if value == value else ""
                for value in (*point.false_accept.values(), *point.not_accepted.values())
            ),
        )
        for point in shown
    ]
    styles = ["bold" if point.limit == limit else None for point in shown]
    print_table(head, rows, left=0, styles=styles)


def _print_report(measured: GateReport) -> None:
    from agelens.gate.measuring import ALL
    from agelens.gate.paperwork import people

    console = output_console()
    policy, counts = measured.policy, measured.counts
    console.print(
        f"[bold]{escape(policy.name)}[/], {escape(measured.model['name'])}: "
        f"{counts['under_age']:,} under {policy.required_age} and {counts['of_age']:,} of "
        f"{policy.required_age} or over",
        soft_wrap=True,
    )
    shown = [one for one in measured.decisions if one.group == ALL or one.kept_out]
    rows = [
        (
            people(one.ages, one.group),
            f"{one.accept.faces:,}",
            f"{100 * one.accept.value:.1f}",
            "{:.1f} to {:.1f}".format(*(100 * end for end in one.accept.interval)),
            f"{100 * one.step_up.value:.1f}",
            f"{100 * one.refuse.value:.1f}",
        )
        for one in shown
    ]
    head = ("true age", "faces", "accepted, %", "95 %", "step up, %", "refused, %")
    styles = ["red" if one.kept_out else None for one in shown]
    print_table(head, rows, left=1, styles=styles)
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
    for check in measured.checks:
        if check.verdict == "too_few":
            console.print(
                f"[yellow]too few to tell[/]: "
                f"{escape(people(check.promise.ages, check.promise.group))}: "
                f"{check.found.faces:,} faces, and a rate under {100 * check.bound:g} % needs "
                f"{check.needed:,}",
                soft_wrap=True,
            )
    unknown = [check.promise for check in measured.checks if check.verdict == "unknown"]
    if unknown:
        named = "; ".join(dict.fromkeys(people(one.ages, one.group) for one in unknown))
        console.print(
            f"[yellow]not checked[/], for there are no such faces here: {escape(named)}",
            soft_wrap=True,
        )
    if measured.checks and all(check.verdict == "below" for check in measured.checks):
        console.print("[green]every promise of the fit holds on these faces[/]")


def _print_audit(policy: GatePolicy, verified: VerifiedAudit | None, problem: str | None) -> None:
    """On what the gate will open, or why it stays shut."""
    console = output_console()
    if problem is None and verified is not None:
        console.print(
            f"[green]audit passed[/] by the policy {escape(repr(verified.policy))}, holds until "
            f"{policy.audit.holds_until(verified.created, verified.expires):%Y-%m-%d}",
            soft_wrap=True,
        )
        return
    open_all_the_same = (
        "the gate stays shut"
        if policy.override is None
        else f"the gate opens on the override of {policy.override.name} only"
    )
    console.print(
        f"[bold red]no valid audit[/], {escape(open_all_the_same)}: {escape(str(problem))}",
        soft_wrap=True,
    )


def _warn_of_known_faces(
    data: Sequence[DataFile], datasets: Sequence[str], card: ModelCard
) -> None:
    from dataclasses import asdict

    from agelens.gate.measuring import known_to_the_model

    for line in known_to_the_model([asdict(one) for one in data], datasets, card):
        error_console().print(f"[yellow]warning:[/] {escape(line)}", soft_wrap=True)


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
