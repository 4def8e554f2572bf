"""The page in a real browser: it renders, sorts, fits a phone, and loads nothing. And whose files it may replace."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browsing import contrast, list_requests, luminance, open_browser, resize
from commandline import Run
from forge import edit_manifest
from reporting import OTHER, forge_large, measure_large, record_parity, record_scores, record_timings, spoil

from matexport import load_family, pack_profile, verify_family
from matexport.errors import DestinationError, FamilyError, MissingExtraError
from matexport.family.integrity import check_family
from matexport.family.manifest import CARD, MANIFEST, PICTURE, REPORT
from matexport.pick.limits import Budget
from matexport.report.findings import gather_findings
from matexport.report.write import render_page, write_report
from matexport.spec.measured import TaskKind

SMALL, LARGE = "L01-D008-fp32", "L03-D032-fp32"


class Elements(HTMLParser):
    """(tag, attributes) of a page, and the text in each script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += f"{data} "

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def large(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family of 60 profiles with its report, the budget drawn in. Not to be changed."""
    path = Path(shutil.copytree(exported, tmp_path_factory.mktemp("large") / "family"))
    measure_large(forge_large(path))
    budget = Budget(max_latency_ms=3.0, max_disk_mb=1.0, max_ram_mb=200.0, min_retention=0.7)
    write_report(gather_findings(path, budget=budget))
    return path


# --- the page as text


def test_the_page_is_small_and_the_same_twice(large: Path) -> None:
    page = (large / REPORT).read_bytes()
    assert len(page) <= 3_000_000
    budget = Budget(max_latency_ms=3.0, max_disk_mb=1.0, max_ram_mb=200.0, min_retention=0.7)
    assert render_page(gather_findings(large, budget=budget)).encode() == page


def check_closed(page: str) -> Elements:
    """One script, allowed by its digest, and nothing that is loaded from anywhere."""
    elements = Elements(page)
    assert len(elements.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(elements.scripts[0].encode()).digest()).decode()
    policy = next(it["content"] for it in elements.of("meta") if it.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"
    for tag, attributes in elements.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, attributes)
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    assert not {"img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in elements.tags}
    return elements


def test_the_page_loads_nothing(large: Path) -> None:
    page = (large / REPORT).read_text(encoding="utf-8")
    check_closed(page)
    assert not re.search(r"@import|(src|href)\s*=\s*[\"']?http", page)
    with pytest.raises(AssertionError):
        check_closed(page.replace("</body>", '<a href="http://x.test/">x</a></body>'))
    with pytest.raises(AssertionError):
        check_closed(page.replace('"use strict";', '"use strict"; //'))


def test_hostile_text_is_shown_and_not_run(family: Path) -> None:
    findings = gather_findings(spoil(family))
    elements = check_closed(render_page(findings))
    assert elements.text.count("<script>alert(1)</script>") > 10, "shown where it was put"
    assert "49" not in re.findall(r"'> (\S+)", elements.text), "no template of its own"


def test_a_page_can_be_read_by_those_who_do_not_see_it(large: Path) -> None:
    page = (large / REPORT).read_text(encoding="utf-8")
    elements = Elements(page)
    assert elements.of("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in elements.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(elements.of("svg")) == 4
    assert all(it["role"] == "img" and it["aria-label"] for it in elements.of("svg"))
    ids = [str(attributes["id"]) for _, attributes in elements.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [str(it["href"]) for it in elements.of("a")]
    assert {link.removeprefix("#") for link in links} <= set(ids)


def text_of(path: Path, **options: Any) -> str:
    return " ".join(Elements(render_page(gather_findings(path, **options))).text.split())


def test_the_choice_is_named_and_outlined(family: Path) -> None:
    """The choice is that of `pick`; without limits it is the best, and without quality it is said to be a guess."""
    loaded = load_family(family)
    page = render_page(gather_findings(loaded))
    assert "The choice of pick: L03-D032-fp32, as no limit was set; no retention was measured" in Elements(page).text
    assert "Retention over dims" not in page
    names = [profile.name for profile in loaded.profiles]
    record_scores(loaded, {name: 0.5 + 0.1 * place for place, name in enumerate(names)})
    record_timings(loaded, {name: 1.0 + place for place, name in enumerate(names)})
    findings = gather_findings(loaded, budget=Budget(max_latency_ms=3.5))
    assert findings.choice.chosen is not None
    chosen = findings.choice.chosen.profile
    elements = Elements(render_page(findings))
    text = " ".join(elements.text.split())
    assert f"The choice of pick: {chosen}, within what could be checked of the budget, at a retention of" in text
    outlined = [attributes for attributes in elements.of("th") if "chosen" in (attributes.get("class") or "")]
    assert [attributes["data-value"] for attributes in outlined] == [chosen]
    assert "ring: the choice of pick" in text
    assert "Retention over dims, a line per number of layers (fp32)" in text
    assert "2 layers: 0.700 at 8, 0.800 at 32" in text
    text = Elements(render_page(gather_findings(loaded, budget=Budget(max_latency_ms=0.5)))).text
    assert "Nothing fits, so there is no choice." in text


def test_what_was_not_measured_names_the_command(family: Path) -> None:
    shutil.rmtree(family / "measurements")
    text = text_of(family)
    for verb in ("verify . --record", "evaluate ."):
        assert f"matexport {verb}" in text
    assert "<svg" not in render_page(gather_findings(family))
    loaded = load_family(family)
    record_scores(loaded, {SMALL: 0.5})
    text = text_of(family)
    assert "No latency was measured. Measure it with matexport bench ." in text
    assert "Of 5 of 6 profiles no retention is known." in text


def test_a_breach_is_named_and_its_host(family: Path) -> None:
    loaded = load_family(family)
    names = [profile.name for profile in loaded.profiles]
    record_parity(loaded, dict.fromkeys(names, 9.9e-6))
    text = text_of(family)
    assert "6 of 6 profiles passed parity" in text
    assert "off its floor on host" not in text
    record_parity(loaded, dict.fromkeys(names, 2e-7) | {LARGE: 1.1e-5}, OTHER)
    text = text_of(family)
    assert "5 of 6 profiles passed parity on Another CPU (avx2), 8 CPUs, onnxruntime 1.31.1 (host b); 1 off" in text
    assert f"{LARGE} off its floor on host b max abs difference 1.1e-05, allowed 1e-05" in text


# --- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_browser(tmp_path_factory.mktemp("chromium")) as driven:
        yield driven


def open_page(browser: Any, page: Path, width: int = 1200, scheme: str = "light") -> None:
    resize(browser, width, scheme)
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what came before is not this page's
    browser.get(page.absolute().as_uri())


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "light"), (1200, "dark"), (360, "dark")])
def test_the_page_renders(width: int, scheme: str, large: Path, browser: Any) -> None:
    open_page(browser, large / REPORT, width, scheme)
    assert browser.get_log("browser") == []
    requests = list_requests(browser)
    assert requests.count((large / REPORT).absolute().as_uri()) == 1, "the log is read"
    assert [url for url in requests if not url.startswith("data:,")] == [(large / REPORT).absolute().as_uri()]
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('section, svg, figure, table')]"
        ".filter((it) => !it.closest('details:not([open])'))"
        ".map((it) => [it.tagName, it.getBoundingClientRect().width, it.getBoundingClientRect().height])"
    )
    assert [tag for tag, _, _ in sizes].count("SECTION") == 10
    assert [tag.lower() for tag, _, _ in sizes].count("svg") == 4
    assert all(wide > 30 and high > 30 for _, wide, high in sizes), sizes
    scroll, inner = browser.execute_script("return [document.scrollingElement.scrollWidth, window.innerWidth]")
    assert scroll <= inner == width
    ground, ink = browser.execute_script(
        "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    )
    assert contrast(ground, ink) >= 7
    assert (luminance(ground) > luminance(ink)) == (scheme == "light")


def test_text_stands_out(large: Path, browser: Any) -> None:
    """WCAG 2 AA, 4.5 to 1, of every piece of text against the first ground behind it that is opaque."""
    script = """
    const found = new Set();
    for (const it of document.querySelectorAll("body *")) {
      if (it.closest("svg, script, [aria-hidden], details:not([open])")) continue;
      if (![...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
      let ground = it;
      const read = () => getComputedStyle(ground).backgroundColor;
      while (ground.parentElement && read() === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
      const colour = read();
      found.add(colour + "|" + getComputedStyle(it).color);
    }
    return [...found]"""
    for scheme in ("light", "dark"):
        open_page(browser, large / REPORT, 1200, scheme)
        pairs = [pair.split("|") for pair in browser.execute_script(script)]
        assert len(pairs) > 10
        assert [pair for pair in pairs if contrast(*pair) < 4.5] == []


COLUMN = """
const table = document.getElementById("table-profiles");
const heads = [...table.tHead.rows[0].cells];
const column = heads.findIndex((it) => it.textContent === arguments[0]);
return [heads.map((it) => it.getAttribute("aria-sort")), column,
        [...table.tBodies[0].rows].map((row) => [row.cells[0].textContent, row.cells[column].textContent])]
"""


def press(browser: Any, title: str, *, key: bool = False) -> tuple[list[str], str | None]:
    """Press a column's title with the mouse or the keyboard -> its cells from the top, and aria-sort."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    buttons = browser.find_elements(By.CSS_SELECTOR, "#table-profiles thead button")
    button = next(it for it in buttons if it.get_attribute("textContent") == title)
    if key:
        browser.execute_script("arguments[0].focus()", button)
        browser.switch_to.active_element.send_keys(Keys.ENTER)
    else:
        browser.execute_script("arguments[0].click()", button)
    states, column, rows = browser.execute_script(COLUMN, title)
    assert [state for index, state in enumerate(states) if index != column] == [None] * (len(states) - 1)
    assert len({name for name, _ in rows}) == len(rows), "no row was lost"
    return [cell for _, cell in rows], states[column]


def test_columns_sort_both_ways(large: Path, tmp_path: Path, browser: Any) -> None:
    path = Path(shutil.copytree(large, tmp_path / "family"))
    shutil.rmtree(path / "measurements")
    loaded = load_family(path)
    latencies = {"L01-D004-fp32": 9.0, "L01-D008-fp32": 10.0, "L02-D004-fp32": 100.5, "L03-D004-fp32": 0.25}
    record_timings(loaded, latencies)
    write_report(gather_findings(path))
    open_page(browser, path / REPORT)
    cells, state = press(browser, "latency ms")
    assert (cells[:5], state) == (["0.25", "9.00", "10.00", "100.50", "–"], "ascending")
    assert set(cells[4:]) == {"–"}
    cells, state = press(browser, "latency ms", key=True)
    assert (cells[:5], state) == (["100.50", "10.00", "9.00", "0.25", "–"], "descending"), "missing last both ways"
    assert len(cells) == 60
    names = [profile.name for profile in loaded.profiles]
    assert press(browser, "profile") == (sorted(names), "ascending")
    assert press(browser, "profile") == (sorted(names, reverse=True), "descending")
    cells, _ = press(browser, "dim")
    assert list(map(int, cells)) == sorted(map(int, cells))
    assert browser.get_log("browser") == []


def test_hostile_text_does_nothing_in_a_browser(family: Path, browser: Any) -> None:
    path = write_report(gather_findings(spoil(family))).page.path
    open_page(browser, path, 360)
    assert browser.execute_script("return [document.scripts.length, document.images.length]") == [1, 0]
    assert browser.get_log("browser") == []
    assert [url for url in list_requests(browser) if not url.startswith(("data:,", "file:"))] == []
    scroll, inner = browser.execute_script("return [document.scrollingElement.scrollWidth, window.innerWidth]")
    assert scroll <= inner


# --- where it is written


def test_a_family_with_a_report_is_the_same_family(family: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in family.iterdir() if path.is_file()}
    report = write_report(gather_findings(family))
    assert [file.path for file in report.files] == [family / REPORT, family / CARD]
    assert [file.bytes for file in report.files] == [file.path.stat().st_size for file in report.files]
    after = {path.name: path.read_bytes() for path in family.iterdir() if path.is_file()}
    assert after.keys() - before.keys() == {REPORT, CARD}
    assert all(after[name] == content for name, content in before.items())
    assert verify_family(family).passed
    pack = pack_profile(family, SMALL, tmp_path / "pack")
    assert not (pack.path / REPORT).exists()
    write_report(gather_findings(pack))
    assert verify_family(pack.path).passed
    write_report(gather_findings(family))


def test_the_card_has_a_picture_where_there_is_something_to_see(family: Path, tmp_path: Path) -> None:
    retentions = {profile.name: 0.5 + profile.point.dim / 100 for profile in load_family(family).profiles}
    measured = Path(shutil.copytree(family, tmp_path / "measured"))
    record_scores(load_family(measured), retentions)
    report = write_report(gather_findings(measured))
    assert [file.path.name for file in report.files] == [REPORT, CARD, PICTURE]
    assert "](<report.svg>)" in (measured / CARD).read_text(encoding="utf-8")
    svg = (measured / PICTURE).read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)  # well formed, marks included
    assert root.tag.endswith("}svg")
    assert "currentColor" in svg
    assert root.get("color") == "#1f2328"
    assert [part.get("fill") for part in root][:1] == ["#ffffff"]
    assert root.get("aria-label", "").startswith("Retention over dims")
    assert verify_family(measured).passed
    assert [file.did for file in write_report(gather_findings(measured)).files][2] == "replaced"

    shutil.rmtree(measured / "measurements")
    assert write_report(gather_findings(measured)).picture is None
    assert not (measured / PICTURE).exists()
    assert PICTURE not in (measured / CARD).read_text(encoding="utf-8")
    for theirs in ("<svg/>", svg.replace("#1f2328", "#ff0000"), svg + "<!-- ours -->"):
        (measured / PICTURE).write_text(theirs, encoding="utf-8")
        with pytest.raises(DestinationError, match=r"report\.svg exists and is not as `matexport report` wrote it"):
            write_report(gather_findings(measured))
        write_report(gather_findings(measured), overwrite=True)  # which has no picture to put in its place
        assert (measured / PICTURE).read_text(encoding="utf-8") == theirs


@pytest.mark.parametrize("name", [REPORT, CARD, PICTURE])
def test_a_report_that_is_no_file_is_foreign(name: str, family: Path) -> None:
    (family / name).symlink_to(family / MANIFEST)
    with pytest.raises(FamilyError, match=f"extra: {name} is not listed"):
        check_family(load_family(family))
    with pytest.raises(DestinationError, match="is not a regular file"):
        write_report(gather_findings(family))
    (family / name).unlink()
    (family / name).mkdir()
    with pytest.raises(FamilyError, match=f"extra: {name} is not listed"):
        check_family(load_family(family))
    assert [other for other in (REPORT, CARD, PICTURE) if (family / other).exists()] == [name]


@pytest.mark.parametrize("name", ["report.htm", "Report.html", "README.md.html", "sub.report.html"])
def test_other_names_are_foreign(name: str, family: Path) -> None:
    (family / name).touch()
    with pytest.raises(FamilyError, match=f"extra: {name} is not listed"):
        check_family(load_family(family))


def test_what_a_killed_report_left_is_no_extra_file(family: Path) -> None:
    (family / f"{REPORT}.abc.tmp").touch()
    check_family(load_family(family))


@pytest.mark.parametrize("mine", ["# mine\n", "# mine\n\nRun `matexport report FAMILY`; see its --help.\n"])
def test_somebody_elses_file_stays(mine: str, family: Path, tmp_path: Path) -> None:
    (family / CARD).write_text(mine)
    with pytest.raises(DestinationError, match=r"README\.md exists and was not written by `matexport report`"):
        write_report(gather_findings(family))
    assert (family / CARD).read_text() == mine
    assert not (family / REPORT).exists()
    write_report(gather_findings(family), tmp_path / "page.html")
    assert {path.name for path in tmp_path.iterdir()} == {"family", "page.html", "page.md"}


def test_a_listed_file_is_not_replaced(family: Path) -> None:
    """No family lists one, or it is refused when it is read; so the card is never one of its own files."""
    edit_manifest(family, lambda data: data["files"].update({CARD: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(FamilyError, match=r"lists the file 'README\.md', which is of no kind that export writes"):
        write_report(gather_findings(family))


def test_nothing_half_written(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(gather_findings(family))
    before = {path.name: path.read_bytes() for path in family.iterdir() if path.is_file()}
    record_scores(load_family(family), {SMALL: 0.5})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matexport.report.write.Path.chmod", fail)
    with pytest.raises(DestinationError, match="the disk is full"):
        write_report(gather_findings(family))
    assert {path.name: path.read_bytes() for path in family.iterdir() if path.is_file()} == before


def test_without_the_extra(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jinja2" else True)
    with pytest.raises(MissingExtraError, match=r"needs jinja2, which is not installed here; install the \[report\]"):
        write_report(gather_findings(family))
    assert not (family / REPORT).exists()


# --- the command


def test_report_as_a_user_does(run: Run, family: Path, tmp_path: Path) -> None:
    result = run("report", family)
    assert (result.code, result.err) == (0, "")
    assert str(family / REPORT) in result.out
    out = tmp_path / "other.html"
    document = run("report", family, "--out", out, "--min-retention", "0.9", "--json").json
    assert document["report"] == str(out)
    assert document["card"] == str(out.with_suffix(".md"))
    assert document["bytes"] == {str(path): path.stat().st_size for path in (out, out.with_suffix(".md"))}
    assert run("verify", family).code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "page.pdf"), ("page.pdf was asked", "must end in .html")),
        (("--task", "nope"), ("the task 'nope' was asked; evaluated are: sts",)),
        (("--threads", "3"), ("threads=3 was asked; timed are: threads=1",)),
        (("--max-latency-ms", "0"), ("argument --max-latency-ms: '0' is not a number above 0",)),
        (("--max-ram-mb", "nan"), ("argument --max-ram-mb: 'nan' is not a number above 0",)),
        (("--min-retention", "95"), ("'95' is not a share of at most 1, such as 0.95",)),
        (("--max-disk-mb", "x"), ("argument --max-disk-mb",)),
    ],
)
def test_wrong_options(options: tuple[str, str], words: tuple[str, ...], run: Run, family: Path) -> None:
    loaded = load_family(family)
    record_timings(loaded, {SMALL: 1.0})
    record_scores(loaded, {SMALL: 0.9}, kind=TaskKind.STS)
    run("report", family, *options).complains(*words)
    assert not (family / REPORT).exists()


def test_wrong_places(run: Run, family: Path, tmp_path: Path) -> None:
    run("report", tmp_path).complains("it is not a family or pack")
    run("report", family, "--out", family / "page.html").complains("is inside the family")
    run("report", family, "--out", tmp_path / "no" / "page.html").complains("cannot write", "no such file or directory")
    assert run("report", family, "--out", family / REPORT).code == 0
    assert (family / CARD).exists()
