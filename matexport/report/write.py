"""Write the report of a family: one HTML page that loads nothing, and a Markdown model card beside it.

Text from a manifest or a measurement is untrusted: the template escapes all of it, and the page's content security
policy allows one script, by its digest, and lets the page load nothing. The same family, measurements and host give the
same bytes, since no time is written.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from matexport.errors import DestinationError, RequestError
from matexport.extras import require_extra
from matexport.family.manifest import CARD, REPORT, Family
from matexport.io.files import explain_write_errors, replace_file
from matexport.report.card import render_card
from matexport.report.findings import Findings
from matexport.report.heatmaps import list_gradient
from matexport.report.page import lay_out

if TYPE_CHECKING:
    from jinja2 import Environment


#: Both files name this generator, so that a report replaces only what a report wrote.
GENERATOR = "matexport report"

#: Whole lines by which a page or a card is recognised as written by us.
MARKS = (
    f'<meta name="generator" content="{GENERATOR}">'.encode(),
    f"<!-- Written by {GENERATOR}, which replaces it. -->".encode(),
)
_PACKAGES = {"jinja2": "jinja2", "matplotlib": "matplotlib"}


@dataclass(frozen=True)
class Report:
    """The two files of a report. Sizes in bytes."""

    page: Path
    card: Path
    page_bytes: int
    card_bytes: int


def require_report_extra() -> None:
    """Check that the packages of the ``[report]`` extra are installed.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not; the message has the pip command.
    """
    require_extra("report", "a report", _PACKAGES)


def write_report(findings: Findings, out: Path | None = None) -> Report:
    """Write the page and the card.

    Args:
        findings: what `findings.gather_findings` found.
        out: the page, ``*.html``; the card lies beside it with the suffix ``.md``. When left out,
            ``FAMILY/report.html`` and ``FAMILY/README.md``.

    Raises:
        RequestError: the name of `out` does not end in ``.html``.
        DestinationError: a file that no report wrote is in the way, the family lists a file of that name, `out` is
            elsewhere inside the family, or a file cannot be written.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    require_report_extra()
    page, card = _choose_targets(findings.family, out)
    contents = {page: render_page(findings), card: render_card(findings, GENERATOR)}
    _write_together({path: text.encode("utf-8", "replace") for path, text in contents.items()})
    return Report(page, card, page.stat().st_size, card.stat().st_size)


def render_page(findings: Findings) -> str:
    """The page as HTML.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    require_report_extra()
    from markupsafe import Markup

    # These files come with the package, so they need no escaping.
    css, script = (Markup(_read_data(name)) for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = lay_out(findings)
    plots = [vars(plot) | {"svg": Markup(plot.svg)} for plot in page["plots"]]
    colours = list_gradient()
    return _open_templates().get_template("report.html.jinja").render(
        page=page | {"plots": plots},
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


def _choose_targets(family: Family, out: Path | None) -> tuple[Path, Path]:
    inside = family.path / REPORT
    if out is None or out.absolute().resolve() == inside.absolute().resolve():
        targets = inside, family.path / CARD
        if listed := {REPORT, CARD} & family.facts.files.keys():
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
        targets = out, out.with_suffix(".md")
    for target in targets:
        _refuse_other(target)
    return targets


def _refuse_other(target: Path) -> None:
    """Refuse to replace a file that no report wrote, such as a user's own README.md."""
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise DestinationError(f"{target} exists and is not a regular file; move it, or give --out")
    try:
        ours = not target.exists() or any(line in MARKS for line in target.read_bytes().splitlines())
    except OSError as error:
        raise DestinationError(f"cannot read {target}: {(error.strerror or str(error)).lower()}") from None
    if not ours:
        raise DestinationError(f"{target} exists and was not written by `{GENERATOR}`; move it, or give --out")


def _write_together(contents: dict[Path, bytes]) -> None:
    """Write all files beside their destinations first, and put them in place only when every one is complete."""
    with ExitStack() as stack:
        for path, content in contents.items():
            stack.enter_context(explain_write_errors(path))
            file = stack.enter_context(replace_file(path))
            file.write(content)
            file.flush()
