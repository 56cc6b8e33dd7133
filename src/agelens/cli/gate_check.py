"""
``agelens gate check``, ``keys`` and ``verify-journal``: ask a gate, keep its keys, read its record.
"""

from __future__ import annotations

import json
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.markup import escape

from agelens.cli.console import error_console, output_console
from agelens.cli.options import AcceptLicence

if TYPE_CHECKING:
    from agelens.analyzer import Analyzer
    from agelens.gate.decision import Decision
    from agelens.gate.journal import JournalCheck
    from agelens.gate.liveness import Move
    from agelens.gate.policy import GatePolicy
    from agelens.gate.token import PublicKey, TokenKeys

keys_app = typer.Typer(help="Make, replace and publish the keys of tokens.", no_args_is_help=True)

_COLOURS = {"accept": "green", "refuse": "red", "step_up": "yellow", "retry": "yellow"}
_Folder = Annotated[Path, typer.Argument(help="Folder of the token keys; the policy's token.keys.")]


def check(
    pictures: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...",
            help="Frames of one person in the order they were taken, or a video.",
        ),
    ],
    policy: Annotated[Path, typer.Option(help="The gate's policy.")],
    audit: Annotated[
        Path | None, typer.Option(help="Signed audit of the model; by default the policy's.")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="Record of decisions; by default the policy's.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model, when it is a file: a .onnx with its card beside it."),
    ] = None,
    moves: Annotated[
        str | None,
        typer.Option(
            metavar="MOVES",
            help="For a recording: the moves that were asked for, as left,right,closer.",
        ),
    ] = None,
    nonce: Annotated[
        str | None, typer.Option(help="Of the party that accepts the token; without it no token.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the decision as JSON.")] = False,
    accept_licence: AcceptLicence = False,
) -> None:
    """Decide on one person by a gate's policy.

    Exits with 0 when the person is accepted, 1 when not, 2 when the gate stays shut or the command
    is wrong: then nothing is decided, and nothing recorded.

    [bold]Examples[/]

      agelens gate check frame1.jpg frame2.jpg frame3.jpg --policy policy.toml

      agelens gate check recording.mp4 --policy policy.toml --moves left,closer,right
    """
    from agelens.gate.decision import Gate
    from agelens.gate.policy import GatePolicy

    loaded = GatePolicy.load(policy)
    _require_files(pictures)
    asked = None if moves is None else _moves(moves, loaded)
    if nonce is not None:
        _require_no_trial(moves, journal)
    analyzer = None if model is None else _analyzer(model, loaded, accept_licence)
    with Gate(
        loaded,
        folder=policy.parent,
        analyzer=analyzer,
        audit=audit,
        journal=journal,
        accept_licence=accept_licence,
    ) as gate:
        if gate.journal is not None and gate.journal.recovery is not None:
            error_console().print(
                f"[yellow]warning:[/] {escape(str(gate.journal.path))}: "
                f"{escape(str(gate.journal.recovery))}",
                soft_wrap=True,
            )
        challenge = None if asked is None else gate.challenge_of(asked)
        trial = moves is not None or journal is not None
        # A single path may be a video; several are pictures.
        given: Path | list[Path] = pictures[0] if len(pictures) == 1 else pictures
        decision = gate.decide(given, challenge=challenge, nonce=nonce, trial=trial)
    if as_json:
        typer.echo(json.dumps(decision.to_dict(), ensure_ascii=False))
    else:
        _print_decision(decision)
    raise typer.Exit(0 if decision.accepted else 1)


def verify_journal(
    file: Annotated[Path, typer.Argument(help="The journal; its signed head lies beside it.")],
    key: Annotated[
        str | None,
        typer.Option(
            help="Public key that signed it: ed25519:... or a file. By default that of "
            "AGELENS_AUDIT_KEY when it is set, else this installation's audit.pub."
        ),
    ] = None,
    anchor: Annotated[
        list[Path] | None,
        typer.Option(metavar="HEAD", help="Copy of an earlier head that was kept elsewhere."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check that a gate's record is whole: nothing changed, added, moved or cut.

    Exits with 0 when it is, 1 when it is not; the first break is named by its line. 3: all is whole
    but for one line after the signed head, as a gate leaves it that was stopped while it wrote.

    [bold]Example[/]: agelens gate verify-journal gate-journal.jsonl --key gate.pub
    """
    from agelens.gate.journal import verify_journal as verify

    found = verify(file, trusted_key=key, anchors=anchor or ())
    if as_json:
        typer.echo(json.dumps(_journal_facts(found), ensure_ascii=False))
    else:
        _print_journal(file, found)
    raise typer.Exit({"intact": 0, "broken": 1, "unsigned": 3}[found.state])


# --- keys -----------------------------------------------------------------------------------------


@keys_app.command()
def init(folder: _Folder) -> None:
    """Make a folder with a first key.

    [bold]Example[/]: agelens gate keys init gate-keys
    """
    from agelens.gate.token import TokenKeys

    output_console().print(_key_words(TokenKeys.create(folder).signing), soft_wrap=True)


@keys_app.command()
def rotate(
    folder: _Folder,
    now: Annotated[
        bool,
        typer.Option(
            "--now", help="End all earlier keys at once, with all their tokens: one was stolen."
        ),
    ] = False,
) -> None:
    """Make a new signing key; tokens of earlier ones hold until they expire.

    Start the gate again afterwards, and publish the key set again. The earlier keys that still
    verify are printed, with the time until which they do.

    [bold]Example[/]: agelens gate keys rotate gate-keys
    """
    from agelens.gate.token import TokenKeys

    keys = TokenKeys.open(folder)
    keys.rotate(at_once=now)
    _print_keys(keys)


@keys_app.command()
def jwks(
    folder: _Folder,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; default: print it.")
    ] = None,
) -> None:
    """The public keys as a JWKS document, for those who verify tokens.

    [bold]Example[/]: agelens gate keys jwks gate-keys -o jwks.json
    """
    from agelens.data.schema import write_text
    from agelens.gate.token import TokenKeys

    text = json.dumps(TokenKeys.open(folder).jwks(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)


# --- parsing and printing -------------------------------------------------------------------------


def _require_files(pictures: list[Path]) -> None:
    """Refuse what is no file: a slip of the operator is no decision on a person.

    Raises:
        ArgumentError: A path is missing, a folder or not readable, or a video is one of several.
    """
    from agelens.errors import ArgumentError
    from agelens.sources import VIDEO_SUFFIXES

    for path in pictures:
        if path.is_dir():
            raise ArgumentError(f"{path}: is a folder; name the frames of one person, or a video")
        try:
            path.open("rb").close()
        except OSError as error:
            raise ArgumentError(
                f"{path}: cannot be read ({error.strerror}); name the frames of one person, or a "
                "video"
            ) from error
        if len(pictures) > 1 and path.suffix.lower() in VIDEO_SUFFIXES:
            raise ArgumentError(f"{path}: a video is given by itself; leave out the other paths")


def _moves(text: str, policy: GatePolicy) -> list[Move]:
    from agelens.errors import ArgumentError
    from agelens.gate.liveness import MOVES

    if policy.liveness != "challenge":
        raise ArgumentError(
            f"--moves {text}: {policy.name} has liveness = {policy.liveness!r}, so nothing looks "
            "at moves; leave out --moves, or set liveness = 'challenge' in the policy"
        )
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in MOVES:
            raise ArgumentError(
                f"--moves {text}: {word!r} is no move; there are {', '.join(MOVES)}"
            )
    return [cast("Move", word) for word in words]


def _require_no_trial(moves: str | None, journal: Path | None) -> None:
    """Refuse a token for moves that were not drawn, or outside the policy's own record.

    Raises:
        ArgumentError: One of the two was given.
    """
    from agelens.errors import ArgumentError

    for option, given, why in (
        ("--moves", moves, "the moves were not drawn for this occasion"),
        ("--journal", journal, "the decision is not in the policy's own journal"),
    ):
        if given is not None:
            raise ArgumentError(
                f"--nonce with {option} {given}: no token is issued when {why}; leave out one of "
                "the two"
            )


def _analyzer(model: str, policy: GatePolicy, accept_licence: bool) -> Analyzer:
    from agelens.analyzer import Analyzer

    part = policy.model
    return Analyzer(
        model=model,
        detector=part.detector if part else "default",
        flip=part.flip if part else False,
        accept_licence=accept_licence,
    )


def _key_words(key: PublicKey) -> str:
    """What a key does: "signing key KID", "KID verifies until ..."."""
    if key.until is None:
        return f"signing key {key.kid}"
    return f"{key.kid} verifies until {key.until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _print_keys(keys: TokenKeys) -> None:
    console = output_console()
    verifying = keys.verifying()
    for key in verifying:
        console.print(_key_words(key), soft_wrap=True)
    if len(verifying) == 1:
        console.print("no earlier key verifies any more", soft_wrap=True)


def _print_decision(decision: Decision) -> None:
    console = output_console()
    console.print(f"[bold {_COLOURS[decision.outcome]}]{decision.outcome}[/]")
    for reason in decision.reasons:
        console.print(f"  {escape(reason.text)}", soft_wrap=True)
    if decision.confidence is not None:
        console.print(
            f"  probability of being {decision.admitted}: at least {decision.confidence:g}",
            soft_wrap=True,
        )
    console.print(f"  {decision.used} of {decision.frames} frames used, {decision.id}")
    if decision.override is not None:
        words = f"{decision.override.text} ({decision.override.name}, {decision.override.date})"
        console.print(f"  [yellow]override[/]: {escape(words)}", soft_wrap=True)
    if decision.audit.problem is not None:
        console.print(f"  [yellow]audit[/]: {escape(decision.audit.problem)}", soft_wrap=True)
    if decision.token is not None:
        console.print(f"  token: {decision.token.text}", soft_wrap=True)


def _journal_facts(found: JournalCheck) -> dict[str, object]:
    return {
        "intact": found.intact,
        "state": found.state,
        "decisions": found.decisions,
        "lines": found.lines,
        "signed": found.signed,
        "signed_at": found.signed_at,
        "key": found.key,
        "recoveries": list(found.recoveries),
        "line": found.line,
        "problem": found.problem,
    }


def _print_journal(file: Path, found: JournalCheck) -> None:
    console = output_console()
    name = escape(str(file))
    if found.problem is not None:
        where = "" if found.line is None else f", line {found.line:,}"
        word = "[bold yellow]unsigned[/]" if found.unsigned else "[bold red]broken[/]"
        console.print(f"{word} {name}{where}: {escape(found.problem)}", soft_wrap=True)
        return
    console.print(
        f"[bold green]intact[/] {name}: {found.decisions:,} decisions, signed {found.signed_at}",
        soft_wrap=True,
    )
    for line in found.recoveries:
        console.print(f"  line {line:,}: the gate went on after a crash")
