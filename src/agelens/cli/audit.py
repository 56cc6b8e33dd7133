"""
``agelens audit``: may this model be relied on, for whom, and until when.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from agelens.cli.console import error_console, output_console, progress_bar
from agelens.cli.options import AcceptLicence, Crops, DetectorName, Flip, Keep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agelens.evaluation.audit import AuditResult
    from agelens.evaluation.scored import ScoredFaces
    from agelens.evaluation.scoring import ScoringOptions
    from agelens.evaluation.stress import StressResult

_MARKS = {"passed": "[green]passed[/]", "failed": "[bold red]failed[/]"}


def audit(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL DATA...",
            help="A model, then Parquet tables of labelled faces or folders of them. With "
            "--verify: the tables only, or nothing.",
        ),
    ] = [],  # noqa: B006 - typer takes no other default for a list that may be empty
    policy: Annotated[
        str | None,
        typer.Option(help="What the model must do: strict, lenient, or a TOML file. [strict]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for audit.json (signed) and audit.html."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="COLUMN", help="Audit columns to look at; default: all."),
    ] = None,
    min_cell: Annotated[
        int | None,
        typer.Option(min=2, help="Faces that a group needs to be judged; default: the policy's."),
    ] = None,
    skin_tone: Annotated[
        bool | None,
        typer.Option(
            "--skin-tone/--no-skin-tone",
            help="Measure skin tone from the pictures; default: when there is no audit column.",
        ),
    ] = None,
    stress: Annotated[
        bool | None,
        typer.Option(
            "--stress/--no-stress",
            help="Try changed pictures of a sample; default: when the policy has limits on them.",
        ),
    ] = None,
    stress_faces: Annotated[int, typer.Option(min=1, help="Faces in that sample.")] = 300,
    before: Annotated[
        Path | None,
        typer.Option(metavar="AUDIT.json", help="An earlier audit to compare with, in the page."),
    ] = None,
    crops: Crops = True,
    flip: Flip = False,
    detector: DetectorName = "default",
    samples: Annotated[
        int, typer.Option(min=100, help="Bootstrap draws behind the 95 % intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap and of the sample.")] = 0,
    key: Annotated[
        str | None,
        typer.Option(
            help="Private key file to sign with (PEM, Ed25519), default: this installation's own; "
            "with --verify the public key that must have signed."
        ),
    ] = None,
    keep: Keep = None,
    accept_licence: AcceptLicence = False,
    verify: Annotated[
        Path | None,
        typer.Option(metavar="AUDIT.json", help="Check a signed audit instead of making one."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="With --verify: the model to be used.")
    ] = None,
) -> None:
    """Test who a model serves worse, and judge it by a policy.

    By every audit column, gender, age band and their intersections; errors of age checks; changed
    pictures. Exit status 0 when it passed, 1 when it failed (the failing groups are named), 2 when
    it could not be made or does not verify.

    [bold]Examples[/]

      agelens audit cc0 utkface-test.parquet --out audit/

      agelens audit models/ours.onnx faces.parquet --policy ours.toml --by race --by device

      agelens audit --verify audit/audit.json --model cc0
    """
    from agelens.errors import ArgumentError

    if verify is not None:
        if model is None:
            raise ArgumentError("--verify needs --model: the model that is to be used")
        if out is not None or before is not None:
            raise ArgumentError("--verify makes no new audit: leave out --out and --before")
        _verify(verify, model, words, policy, key)
        return
    if model is not None:
        raise ArgumentError("--model goes with --verify; name the model first: audit MODEL DATA")
    if len(words) < 2:
        raise ArgumentError(
            "name a model and at least one table of faces: agelens audit MODEL DATA..."
        )
    from agelens.evaluation.audit import audit as run
    from agelens.evaluation.policy import AuditPolicy
    from agelens.evaluation.report import write_audit_html
    from agelens.evaluation.scoring import ScoringOptions, score
    from agelens.evaluation.signing import AUDIT_SCHEMA, signing_key
    from agelens.evaluation.tables import read_result

    name, data = words[0], [Path(word) for word in words[1:]]
    loaded = AuditPolicy.load("strict" if policy is None else policy)
    if out is not None and out.exists() and not out.is_dir():
        raise ArgumentError(f"--out {out}: is a file; name a folder")
    signer = None if out is None else signing_key(None if key is None else Path(key))
    earlier = None
    if before is not None:
        earlier = read_result(before, AUDIT_SCHEMA, "agelens audit MODEL DATA --out FOLDER")
    options = ScoringOptions(
        detector=detector, crops=crops, flip=flip, accept_licence=accept_licence
    )
    with progress_bar(f"asking {name}") as progress:
        faces = score(name, data, options, kept=keep, progress=progress)
    if skin_tone or (skin_tone is None and not faces.audit):
        faces = _with_measured_tones(faces, name, data, options, wanted=bool(skin_tone))
    tried = None
    if stress or (stress is None and loaded.stress):
        kept = None if keep is None else keep.with_name(f"{keep.stem}-stress{keep.suffix}")
        tried = _stressed(name, data, faces, options, stress_faces, samples, seed, kept)
    with progress_bar("comparing groups") as progress:
        result = run(
            faces,
            loaded,
            stress=tried,
            columns=by,
            min_cell=min_cell,
            samples=samples,
            seed=seed,
            progress=progress,
        )
    if out is not None:
        signed = result.save(out / "audit.json", signer)
        write_audit_html(signed, out / "audit.html", before=earlier)
        for file in ("audit.json", "audit.html"):
            error_console().print(f"-> {escape(str(out / file))}", soft_wrap=True)
    _print(result)
    if earlier is not None:
        _print_change(result, earlier)
    raise typer.Exit(0 if result.passed else 1)


def _with_measured_tones(
    faces: ScoredFaces, model: str, data: Sequence[Path], options: ScoringOptions, *, wanted: bool
) -> ScoredFaces:
    """The faces with measured tones; unless these were asked for, as they are where there are none.

    Raises:
        DataError: They were asked for, and can be measured on no face.
    """
    from agelens.evaluation.skin_tone import measure_tones, with_tones

    with progress_bar("measuring skin tones") as progress:
        tones = measure_tones(data, model=model, options=options, progress=progress)
    if tones or wanted:
        return with_tones(faces, tones)
    error_console().print(
        "[yellow]there is no audit column, and skin tone can be measured on no face: no groups "
        "but gender and age[/]",
        soft_wrap=True,
    )
    return faces


def _stressed(
    model: str,
    data: Sequence[Path],
    faces: ScoredFaces,
    options: ScoringOptions,
    count: int,
    samples: int,
    seed: int,
    kept: Path | None,
) -> StressResult:
    from agelens.evaluation.stress import stress

    with progress_bar("changing pictures") as progress:
        return stress(
            model,
            data,
            faces,
            replace(options, timed=False),
            count=count,
            samples=samples,
            seed=seed,
            kept=kept,
            progress=progress,
        )


# --- printing -------------------------------------------------------------------------------------


def _print(result: AuditResult) -> None:
    console = output_console()
    provenance = result.faces.provenance
    files = ", ".join(file.name for file in provenance.data)
    console.print(
        f"[bold]{escape(provenance.model)}[/] on {len(result.faces):,} faces of {escape(files)}, "
        f"policy {escape(result.policy.name)}",
        soft_wrap=True,
    )
    if result.policy.summary:
        console.print(f"[dim]{escape(result.policy.summary)}[/]", soft_wrap=True)
    console.print()
    for one in result.judgements:
        mark = _MARKS.get(one.outcome, "[yellow]not judged[/]")
        few = f", {one.too_few} too few" if one.too_few else ""
        tally = f"{len(one.failures)} of {one.judged} failed" if one.failures else f"{one.judged}"
        console.print(f"{mark}  {escape(one.text)}  [dim]({tally}{few})[/]", soft_wrap=True)
        for failure in one.failures:
            console.print(
                f"    [red]{escape(failure.cell)}[/]: {escape(failure.sentence)}", soft_wrap=True
            )
        if one.note:
            console.print(f"    [dim]{escape(one.note)}[/]", soft_wrap=True)
    real = [gap for gap in result.groups.gaps if gap.significant]
    console.print()
    console.print(
        f"{len(real)} of {len(result.groups.gaps)} gaps between groups are more than noise "
        f"({result.groups.tests:,} tests, corrected together)",
        soft_wrap=True,
    )
    for note in result.notes:
        console.print(f"[dim]note: {escape(note)}[/]", soft_wrap=True)
    console.print()
    if result.passed:
        until = f"holds until {result.expires:%Y-%m-%d}"
        console.print(f"[bold green]passed[/]; {until}", soft_wrap=True)
    else:
        cells = list(dict.fromkeys(failure.cell for failure in result.failures))
        unjudged = sum(one.outcome == "unjudged" for one in result.judgements)
        named = "; ".join(cells) or "no group"
        more = ""
        if unjudged and result.policy.unjudged == "fail":
            more = f"; {unjudged} requirement{'s' * (unjudged > 1)} could not be judged"
        console.print(f"[bold red]failed[/]: {escape(named)}{more}", soft_wrap=True)


def _print_change(result: AuditResult, before: dict[str, Any]) -> None:
    """What failed before and what fails now, by cell, figure and limit."""
    now = {(one.cell, one.metric, one.limit) for one in result.failures}
    then = {(one["cell"], one["metric"], one["limit"]) for one in before["failures"]}
    console = output_console()
    console.print(
        f"before ({escape(before['model']['name'])}, {before['created'][:10]}): "
        f"{len(then)} failing; now {len(now)}: {len(then - now)} no longer failing, "
        f"{len(now - then)} new",
        soft_wrap=True,
    )
    other = [
        word
        for word, same in (
            ("policy", before["policy"]["sha256"] == result.policy.sha256),
            ("data", {one["sha256"] for one in before["data"]} == _data_sha256(result)),
        )
        if not same
    ]
    if other:
        console.print(
            f"  [yellow]the audit before was by another {' and other '.join(other)}: what no "
            "longer fails may only not have been asked[/]",
            soft_wrap=True,
        )
    for word, changed in (("no longer failing", then - now), ("new", now - then)):
        for cell, metric, limit in sorted(changed):
            console.print(
                f"  {word}: {escape(metric)}, {escape(cell)} (limit: {limit})", soft_wrap=True
            )


def _data_sha256(result: AuditResult) -> set[str]:
    return {file.sha256 for file in result.faces.provenance.data}


# --- verifying ------------------------------------------------------------------------------------


def _verify(
    path: Path, model: str, data: Sequence[str], policy: str | None, key: str | None
) -> None:
    from agelens.bundle import find_model
    from agelens.evaluation.signing import verify_audit

    fingerprint = None
    if data:
        from agelens.data.schema import FaceTable
        from agelens.evaluation.scoring import data_sha256
        from agelens.evaluation.signing import data_fingerprint

        table = FaceTable.open([Path(word) for word in data])
        fingerprint = data_fingerprint([data_sha256(file) for file in table.files])
    expected = None
    if policy is not None:
        from agelens.evaluation.policy import AuditPolicy

        expected = AuditPolicy.load(policy)
    found = verify_audit(
        path,
        bundle=find_model(model),
        data_sha256=fingerprint,
        policy=expected,
        trusted_key=key,
    )
    verdict = _MARKS["passed" if found.passed else "failed"]
    output_console().print(
        f"{escape(str(path))}: signed and in date until {found.expires:%Y-%m-%d}; "
        f"{escape(found.model)} {verdict} by the policy {escape(found.policy)}",
        soft_wrap=True,
    )
    if not found.passed:
        for sentence in found.document["sentences"]:
            output_console().print(f"  {escape(sentence)}", soft_wrap=True)
    raise typer.Exit(0 if found.passed else 1)
