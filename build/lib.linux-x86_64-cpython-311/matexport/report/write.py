"""Write the report of a family: one HTML page that loads nothing, a Markdown model card beside it, and its picture.

Text from a manifest or a measurement is untrusted: the template escapes all of it, and the page's content security
policy allows one script, by its digest, and lets the page load nothing. The same family, measurements and host give the
same bytes, since no time is written.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matexport.errors import DestinationError, RequestError
from matexport.extras import require_extra
from matexport.family.manifest import CARD, PICTURE, REPORT, REPORTED, Family
from matexport.io.files import describe_os_error, explain_write_errors, replace_file
from matexport.marks import GENERATOR, HTML, PAGE_MARK, MarksError, is_whole
from matexport.report.card.render import render_card
from matexport.report.findings import Findings
from matexport.report.heatmaps import list_gradient
from matexport.report.page import lay_out
from matexport.report.plots import stand_alone

if TYPE_CHECKING:
    from jinja2 import Environment


#: A card of earlier versions, which did not say where their text ends.
_OLD_MARK = "<!-- Written by matexport report, which replaces it. -->"
_PACKAGES = {"jinja2": "jinja2", "matplotlib": "matplotlib"}


@dataclass(frozen=True)
class Written:
    """One file of a report.

    Attributes:
        did: what was done: ``written``, ``replaced``, or ``updated between its marks``.
    """

    path: Path
    bytes: int
    did: str


@dataclass(frozen=True)
class Report:
    """The files of a report.

    Attributes:
        picture: of the card; None where no retention is known that it could show.
    """

    page: Written
    card: Written
    picture: Written | None

    @property
    def files(self) -> list[Written]:
        return [file for file in (self.page, self.card, self.picture) if file]


def require_report_extra() -> None:
    """Check that the packages of the ``[report]`` extra are installed.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not; the message has the pip command.
    """
    require_extra("report", "a report", _PACKAGES)


def write_report(findings: Findings, out: Path | None = None, *, overwrite: bool = False) -> Report:
    """Write the page, the card and its picture. In a card that is there, only what stands between the report's marks is
    replaced.

    Args:
        findings: what `findings.gather_findings` found.
        out: the page, ``*.html``; the card lies beside it with the suffix ``.md``, the picture with ``.svg``. When left
            out, ``FAMILY/report.html``, ``FAMILY/README.md`` and ``FAMILY/report.svg``.
        overwrite: replace the files whole, whoever wrote them.

    Raises:
        RequestError: the name of `out` does not end in ``.html``.
        DestinationError: a file that no report wrote is in the way, or somebody wrote between the report's marks; the
            family lists a file of that name, `out` is elsewhere inside the family, or a file cannot be written.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    require_report_extra()
    page, card, picture = _choose_targets(findings.family, out)
    findings = replace(findings, place=_spell_place(findings.family, page))
    layout = lay_out(findings)
    curves = layout["curves"]
    present = {path: _read_present(path) for path in (page, card, picture)}
    try:
        if not overwrite:
            _refuse_other(page, present[page])
            _refuse_unmarked(card, present[card])
            _refuse_changed(picture, present[picture])
        text = render_card(findings, None if overwrite else present[card], picture.name if curves else None)
    except MarksError as error:
        raise DestinationError(f"{card}: {error}, or --overwrite to replace all of it") from None
    contents = {
        page: _render(layout).encode("utf-8", "replace"),
        card: text.encode("utf-8", "surrogateescape"),  # whatever somebody wrote, byte by byte
    }
    if curves:
        contents[picture] = (HTML.wrap(stand_alone(curves.svg)) + "\n").encode()
    _write_together(contents)
    if not curves and is_whole(present[picture] or ""):
        picture.unlink()  # of a report before, which nothing shows any more
    did = {path: "written" if present[path] is None else "replaced" for path in contents}
    if present[card] is not None and not overwrite:
        did[card] = "updated between its marks"
    written = {path: Written(path, path.stat().st_size, done) for path, done in did.items()}
    return Report(written[page], written[card], written.get(picture))


def _spell_place(family: Family, page: Path) -> str:
    """Where the family is, seen from the folder of the page: commands in it are to be run there."""
    try:
        return Path(os.path.relpath(family.path.resolve(), page.absolute().parent.resolve())).as_posix()
    except ValueError:  # another drive
        return str(family.path.resolve())


def render_page(findings: Findings) -> str:
    """The page as HTML.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    require_report_extra()
    return _render(lay_out(findings))


def _render(page: Mapping[str, Any]) -> str:
    from markupsafe import Markup

    # These files come with the package, so they need no escaping.
    css, script = (Markup(_read_data(name)) for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    plots = [vars(plot) | {"svg": Markup(plot.svg)} for plot in page["plots"]]
    curves = page["curves"] and vars(page["curves"]) | {"svg": Markup(page["curves"].svg)}
    colours = list_gradient()
    return _open_templates().get_template("report.html.jinja").render(
        page={**page} | {"plots": plots, "curves": curves},
        css=css,
        script=script,
        policy=policy,
        generator=GENERATOR,
        gradient=",".join(colours),
        gradient_back=",".join(reversed(colours)),
    )  # fmt: skip


def _open_templates() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_read_data))


def _read_data(name: str) -> str:
    return resources.files("matexport.report").joinpath("assets", name).read_text(encoding="utf-8")


def _choose_targets(family: Family, out: Path | None) -> tuple[Path, Path, Path]:
    """The page, the card and its picture."""
    inside = family.path / REPORT
    if out is None or out.absolute().resolve() == inside.absolute().resolve():
        targets = inside, family.path / CARD, family.path / PICTURE
        if listed := {*REPORTED} & family.facts.files.keys():
            raise DestinationError(
                f"{family.path} lists {sorted(listed)[0]} as a file of its own, and a report would replace it: "
                "give --out"
            )
    else:
        if out.suffix != ".html":
            raise RequestError(f"--out {out} was asked; its name must end in .html")
        if out.absolute().resolve().is_relative_to(family.path.resolve()):
            raise DestinationError(
                f"{out} is inside the family, where a report is called {REPORT}; leave out --out, or write elsewhere"
            )
        targets = out, out.with_suffix(".md"), out.with_suffix(".svg")
    return targets


def _read_present(target: Path) -> str | None:
    """What is there already; None where nothing is."""
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise DestinationError(f"{target} exists and is not a regular file; move it, or give --out")
    try:
        return target.read_bytes().decode("utf-8", "surrogateescape") if target.exists() else None
    except OSError as error:
        raise DestinationError(f"cannot read {target}: {describe_os_error(error)}") from None


def _refuse_other(page: Path, present: str | None) -> None:
    """Refuse to replace a page that no report wrote."""
    if present is not None and PAGE_MARK not in present.splitlines():
        raise DestinationError(
            f"{page} exists and was not written by `{GENERATOR}`; move it, give --out, or --overwrite to replace it"
        )


def _refuse_unmarked(card: Path, present: str | None) -> None:
    """Refuse to touch a card that has no marks between which it may be changed, such as a user's own README.md."""
    if present is None or HTML.find(present):
        return
    wrote = "was not written by"
    if _OLD_MARK in present.splitlines():
        wrote = "has no marks that say where the report ends, as it was written by an earlier"
    raise DestinationError(
        f"{card} exists and {wrote} `{GENERATOR}`; move it, give --out, or --overwrite to replace all of it"
    )


def _refuse_changed(picture: Path, present: str | None) -> None:
    """Refuse to replace a picture that no report wrote, or that somebody changed."""
    if present is not None and not is_whole(present):
        raise DestinationError(
            f"{picture} exists and is not as `{GENERATOR}` wrote it; move it, give --out, or --overwrite to replace it"
        )


def _write_together(contents: dict[Path, bytes]) -> None:
    """Write all files beside their destinations first, and put them in place only when every one is complete."""
    with ExitStack() as stack:
        for path, content in contents.items():
            stack.enter_context(explain_write_errors(path))
            file = stack.enter_context(replace_file(path))
            file.write(content)
            file.flush()
