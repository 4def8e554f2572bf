"""The page in a real browser: the family's own numbers, every byte over the wire counted, and errors in words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import contrast, list_requests, luminance, open_browser, resize
from forge import edit_manifest
from msgspec.structs import replace
from places import GOLDEN, ROOT
from serving import Client, Wire, serve, wait_for

from matexport import Embedder, load_family
from matexport.family.integrity import describe_prefixes
from matexport.family.manifest import write_manifest
from matexport.serve.service import find_page

FAMILY = GOLDEN / "schema3"
TEXTS = [
    "the cat sits on the mat",
    "A dog, in the snow!",
    "river " * 90,
    "Käse 猫 🙂 naïve",
    "money is in the bank - 42.",
    "  the   house",
]


#: WebGPU on the CPU, by the driver that Chromium brings along.
SOFTWARE_GPU = ("enable-unsafe-webgpu", "enable-features=Vulkan", "use-webgpu-adapter=swiftshader")


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    if not (find_page() / "index.html").is_file():
        message = f"the page is not built: npm ci && npm run build in {ROOT / 'web'}"
        assert os.environ.get("MATEXPORT_BROWSER_TESTS") != "required", message
        pytest.skip(message)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_browser(tmp_path_factory.mktemp("chromium")) as driven:
        driven.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
        yield driven


class Page:
    """The page of a server in the browser."""

    def __init__(self, browser: Any, client: Client) -> None:
        self.browser, self.client = browser, client
        resize(browser, 1200)
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(client.server.url)
        self.settle()

    def read(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(f"return {script}", *arguments)

    def settle(self, state: str = "ready") -> None:
        """Wait until what was asked is answered, or could not be."""
        wait_for(lambda: self.read("document.getElementById('page')?.dataset.state") in ("ready", "failed"), 120)
        error = self.read("document.getElementById('error').textContent")
        assert self.read("document.getElementById('page').dataset.state") == state, error

    def text(self, element: str) -> str:
        return str(self.read("document.getElementById(arguments[0]).textContent", element))

    def set(self, element: str, value: str, state: str = "ready") -> None:
        """As an input of a user's, and what follows from it."""
        self.browser.execute_script(
            "const it = document.getElementById(arguments[0]); it.value = arguments[1];"
            "document.getElementById('page').dataset.state = 'asked';"
            "it.dispatchEvent(new Event('input', {bubbles: true}))",
            element,
            value,
        )
        self.settle(state)

    def press(self, element: str, key: str, state: str = "ready") -> None:
        """A key on an element that has the focus."""
        self.browser.execute_script(
            "document.getElementById(arguments[0]).focus();document.getElementById('page').dataset.state = 'asked'",
            element,
        )
        self.browser.switch_to.active_element.send_keys(key)
        self.settle(state)

    def cosines(self) -> np.ndarray:
        rows = self.read(
            "[...document.querySelectorAll('#numbers tr')].slice(1)"
            ".map((row) => [...row.querySelectorAll('td')].map((cell) => Number(cell.textContent)))"
        )
        return np.array(rows)

    def agrees(self, family: Path, profile: str, texts: list[str], **asked: str) -> None:
        """The page shows that profile's cosines: those of the embedder's vectors, to 1e-4."""
        assert self.text("profile") == profile
        with Embedder(family, profile) as embedder:
            vectors = np.stack([embedder.embed([text], **asked)[0] for text in texts]).astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.testing.assert_allclose(self.cosines(), vectors @ vectors.T, atol=1e-4, rtol=0)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def page(browser: Any, wire: Wire) -> Iterator[Page]:
    with serve(FAMILY, wire.wrap) as client:
        yield Page(browser, client)


def test_the_shallowest_profile_answers_first_and_deeper_ones_fetch_the_rest(page: Page, wire: Wire) -> None:
    from selenium.webdriver.common.keys import Keys

    facts = load_family(FAMILY).facts
    assert page.text("profile") == "L01-D020-int8"
    first = facts.profiles["L01-D020-int8"]
    assert wire.spans(first.weights) == [(0, first.weights_prefix_bytes)]
    counted = sum(size for path, _, _, size in wire.answers if path.startswith("/family/"))
    listed = (facts.files[name].bytes for name in ("tokenizer.json", "tokenizer_config.json", first.graph))
    manifest = (FAMILY / "family.json").stat().st_size
    assert counted == first.weights_prefix_bytes + sum(listed) + manifest, "these and nothing else"
    assert int(page.read("document.getElementById('fetched').dataset.bytes")) == counted
    page.set("texts", "\n".join(TEXTS))
    page.press("layers", Keys.END)
    page.agrees(FAMILY, "L02-D020-int8", TEXTS)
    deep = facts.profiles["L02-D020-int8"].weights_prefix_bytes
    assert wire.spans(first.weights) == [(0, first.weights_prefix_bytes), (first.weights_prefix_bytes, deep)]
    for key in (Keys.HOME, Keys.END, Keys.HOME):
        page.press("layers", key)
    assert len(wire.spans(first.weights)) == 2, "what is here is not fetched again"
    paths = [path for path, asked, _, _ in wire.answers if not asked]
    assert len(set(paths)) == len(paths), "nor any other file"


def test_a_prefix_that_is_not_what_the_family_says_is_refused(browser: Any, tmp_path: Path) -> None:
    """The shallow one is sound, and stays; what is behind it is fetched again each time."""
    from selenium.webdriver.common.keys import Keys

    family = Path(shutil.copytree(FAMILY, tmp_path / "family"))
    facts = load_family(family).facts
    profiles = describe_prefixes(family, facts.profiles)
    deep = profiles["L02-D020-int8"]
    wrong = replace(deep, weights_prefix_sha256="0" * 64)
    write_manifest(family, replace(facts, profiles=profiles | {"L02-D020-int8": wrong}))
    wire = Wire()
    with serve(family, wire.wrap) as client:
        page = Page(browser, client)
        assert page.text("profile") == "L01-D020-int8"
        page.press("layers", Keys.END, "failed")
        assert "bytes have another sha256 than the family says" in page.text("error")
        page.press("layers", Keys.HOME)
        page.press("layers", Keys.END, "failed")
        first = profiles["L01-D020-int8"].weights_prefix_bytes
        behind = (first, deep.weights_prefix_bytes)
        assert wire.spans(deep.weights) == [(0, first), behind, behind]


def test_every_profile_gives_the_embedder_s_cosines(page: Page, wire: Wire) -> None:
    page.set("texts", "\n".join(TEXTS))
    page.set("precision", "fp32")
    page.agrees(FAMILY, "L01-D020-fp32", TEXTS)
    page.set("dim", "0")
    page.agrees(FAMILY, "L01-D012-fp32", TEXTS)
    page.set("layers", "1")
    page.agrees(FAMILY, "L02-D020-fp32", TEXTS)
    page.set("layers", "0")
    page.set("precision", "int8")
    page.agrees(FAMILY, "L01-D020-int8", TEXTS)
    page.set("prompt", "=query")
    page.agrees(FAMILY, "L01-D020-int8", TEXTS, prompt="query")
    spans = wire.spans("weights.fp32.safetensors")
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]


def test_it_is_told_apart_from_a_shift(page: Page) -> None:
    """The comparison itself: the numbers of another profile, or of another prompt, are not these."""
    page.set("texts", "\n".join(TEXTS))
    page.set("precision", "fp32")
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        page.agrees(FAMILY, "L01-D020-fp32", TEXTS, prompt="query")
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        page.agrees(FAMILY, "L01-D020-fp32", [TEXTS[1], TEXTS[0], *TEXTS[2:]])


def test_texts_are_cut_and_pooled_as_the_parent_does(browser: Any) -> None:
    """On the left, at its length; and tokens of a prompt are left out of the pooling."""
    family = GOLDEN / "schema4"
    with serve(family) as client:
        page = Page(browser, client)
        page.set("texts", "\n".join(TEXTS))
        page.agrees(family, "L01-D020-fp32", TEXTS)
        page.set("prompt", "=query")
        page.agrees(family, "L01-D020-fp32", TEXTS, prompt="query")


def test_the_parent_s_default_prompt_is_the_page_s(browser: Any, tmp_path: Path) -> None:
    family = Path(shutil.copytree(FAMILY, tmp_path / "family"))
    edit_manifest(family, lambda manifest: manifest["text"].update(default_prompt="query"))
    with serve(family) as client:
        page = Page(browser, client)
        page.set("texts", "\n".join(TEXTS))
        page.agrees(family, "L01-D020-int8", TEXTS)
        page.set("prompt", "")
        page.agrees(family, "L01-D020-int8", TEXTS, prompt="")


def test_webgpu_gives_the_same_numbers(tmp_path: Path) -> None:
    with open_browser(tmp_path, SOFTWARE_GPU) as driven, serve(FAMILY) as client:
        page = Page(driven, client)
        if not page.read("!document.querySelector('#runtime [value=webgpu]').disabled"):
            pytest.skip("this Chromium has no software adapter")
        page.set("precision", "fp32")
        page.set("texts", "\n".join(TEXTS))
        page.set("runtime", "webgpu")
        page.agrees(FAMILY, "L01-D020-fp32", TEXTS)


def test_a_gpu_that_is_not_there_is_not_offered(page: Page) -> None:
    """The browser of these tests knows WebGPU, and has no adapter."""
    assert page.read("document.querySelector('#runtime [value=webgpu]').disabled")
    assert page.read("document.querySelector('#runtime [value=webgpu]').textContent").startswith("GPU: ")


def test_it_asks_nobody_else(page: Page, browser: Any) -> None:
    requests = [url for url in list_requests(browser) if not url.startswith(("data:", "blob:"))]
    assert len(requests) > 8, "the log is read"
    assert [url for url in requests if not url.startswith(page.client.server.url)] == []
    said = [entry["message"] for entry in browser.get_log("browser")]
    # Chromium's own word where a page asks for a GPU that is not there.
    assert [message for message in said if not message.endswith("No available adapters.")] == []


def test_what_is_wrong_is_said_in_words(page: Page, browser: Any) -> None:
    page.set("texts", " \n", "failed")
    assert page.text("error") == "There is no sentence: write some, one per line."
    page.set("texts", "dog\n" * 65, "failed")
    assert "64 are the most" in page.text("error")
    page.set("texts", "dog")
    assert page.read("document.getElementById('error').hidden")
    assert "One sentence" in page.read("document.getElementById('matrix').getAttribute('aria-label')")


def test_a_family_that_was_replaced_is_said_in_words(browser: Any) -> None:
    with serve(FAMILY) as client:
        page = Page(browser, client)
        port = client.port
    with serve(GOLDEN / "schema4", port=port):
        page.set("precision", "fp32", "failed")
        assert "another sha256" in page.text("error")
    page.set("texts", "dog", "failed")
    assert page.text("error"), "nobody is there"


def test_a_family_that_the_page_cannot_show_is_said_in_words(browser: Any, tmp_path: Path) -> None:
    family = Path(shutil.copytree(GOLDEN / "schema2", tmp_path / "family"))

    def keep_codes(manifest: dict[str, Any]) -> None:
        for name, facts in list(manifest["profiles"].items()):
            if facts["encoding"] == "float32":
                del manifest["profiles"][name], manifest["files"][facts["graph"]]

    edit_manifest(family, keep_codes)
    with serve(family) as client:
        resize(browser, 1200)
        browser.get(client.server.url)
        script = "return document.getElementById('error').textContent"
        wait_for(lambda: browser.execute_script(script))
        assert "vectors of floats" in browser.execute_script(script)


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "light"), (1200, "dark"), (360, "dark")])
def test_it_fits_and_can_be_read(page: Page, browser: Any, width: int, scheme: str) -> None:
    resize(browser, width, scheme)
    scroll, inner = page.read("[document.scrollingElement.scrollWidth, window.innerWidth]")
    assert scroll <= inner == width
    ground, ink = page.read("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert contrast(ground, ink) >= 7
    assert (luminance(ground) > luminance(ink)) == (scheme == "light")
    pairs = page.read(
        "[...document.querySelectorAll('label, dt, dd, output, .hint, #status, summary')].map((it) => "
        "[getComputedStyle(it).color, getComputedStyle(it.closest('form, section') ?? document.body).backgroundColor])"
    )
    assert len(pairs) > 10
    assert [pair for pair in pairs if contrast(*pair) < 4.5] == []


def test_all_controls_have_names_and_take_the_focus(page: Page, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    nameless = page.read(
        "[...document.querySelectorAll('input, select, textarea')].filter((it) => !it.labels.length).map((it) => it.id)"
    )
    assert nameless == []
    browser.execute_script("document.activeElement.blur()")
    reached = []
    for _ in range(7):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.read("document.activeElement.id || document.activeElement.tagName"))
    assert reached == ["layers", "dim", "precision", "runtime", "prompt", "texts", "SUMMARY"]
    assert page.read("document.getElementById('matrix').getAttribute('aria-label')").startswith(
        "Cosines of 6 sentences"
    )
    assert page.read("document.getElementById('layers').getAttribute('aria-valuetext')") == "1"
