"""`report.html` in a real browser: it draws without a word or a request, sorts, prints, fits, and reads without
script.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from edgeopt.release.document import Layer, LayerHistogram, Run
from edgeopt.release.evidence.page import page
from tests.release.documents import full, layers, made, profile
from tests.release.runs import run, variant

CHROMIUM = next((w for n in ("chromium", "chromium-browser", "google-chrome") if (w := shutil.which(n))), None)
ODD = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
OUTSIDE = """() => [...document.querySelectorAll("svg")].filter(s => s.getClientRects().length).flatMap(s => [...s.querySelectorAll("text")].filter(t => {
    const a = t.getBoundingClientRect(), b = s.getBoundingClientRect();
    return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
}).map(t => s.getAttribute("aria-label") + ": " + t.textContent))"""  # noqa: E501
OVERLAPS = """() => [...document.querySelectorAll("svg")].filter(s => s.getClientRects().length).flatMap(s => {
    const texts = [...s.querySelectorAll("text:not([transform])")].map(t => [t.textContent, t.getBoundingClientRect()]);
    return texts.flatMap(([a, p], i) => texts.slice(i + 1).filter(([b, q]) => p.left < q.right - 2 && q.left < p.right - 2 && p.top < q.bottom - 3 && q.top < p.bottom - 3)
        .map(([b, q]) => s.getAttribute("aria-label") + ": " + a + " on " + b));
})"""  # noqa: E501
FAINT = """() => {
    const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255).map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4); return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
    const back = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (c !== "rgba(0, 0, 0, 0)") return c; } return "rgb(255, 255, 255)"; };
    const found = new Set();
    for (const e of document.querySelectorAll("body *:not(script):not(style):not(title)")) {
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
        const a = light(e instanceof SVGElement ? getComputedStyle(e).fill : getComputedStyle(e).color), b = light(PAPER || back(e));
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) found.add(e.tagName + "." + (e.getAttribute("class") || "") + " " + ratio.toFixed(1));
    }
    return [...found];
}"""  # noqa: E501


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser."""
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Show = Callable[..., Any]


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Iterator[Show]:
    """`show(run, ...)` opens the page of runs; at the end there was no message, no dialog and no request but for the
    file.
    """
    said: list[str] = []
    contexts = []

    def call(*runs: Run, width: int = 1200, **more: Any) -> Any:
        file = tmp_path / "report.html"
        file.write_text(page(runs), encoding="utf-8")
        context = chromium.new_context(viewport={"width": width, "height": 900}, **more)
        contexts.append(context)
        found = context.new_page()
        found.on("console", lambda m: said.append(f"console: {m.text}"))
        found.on("pageerror", lambda e: said.append(f"error: {e}"))
        found.on("dialog", lambda d: (said.append(f"dialog: {d.message}"), d.dismiss()))
        found.on(
            "request", lambda r: said.append(r.url) if unquote(r.url) not in (f"file://{file}", "data:,") else None
        )
        found.goto(f"file://{file}")
        return found

    yield call
    for context in contexts:
        context.close()
    assert said == []


def names(shown: Any, table: int = 0, column: int = 1) -> list[str]:
    """The text of a column."""
    return [
        t.split("\n")[0]
        for t in shown.locator(f"table >> nth={table}").locator(f"tbody tr > *:nth-child({column})").all_inner_texts()
    ]


# what is there


class Outline(HTMLParser):
    """Headings by level, pictures, and whether each says what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.pictures: list[dict[str, str | None]] = []
        self.titles = 0
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag == "svg":
            self.pictures.append(dict(attrs))
            self.inside = True
        elif tag == "title" and self.inside:
            self.titles += 1
        else:
            self.inside = False


RUNS = {
    "full": (full(),),
    "several": (full(), full(shift=1.0), full(shift=2.0)),
    "other variants": (full("a", "b"), full("b", "c")),
    "no gates, no profile": (run(variant(metrics={"size.file": 5.0})),),
    "nothing but float": (run(variant("float")),),
    "all failed": (run(variant("float"), variant("a", error="x: no samples"), variant("b", error="a failed")),),
    "failed and not": (full().model_copy(update={"variants": (*full().variants, variant("z", error="quantize: x"))}),),
    "profile failed": (
        full(profile=None).model_copy(
            update={
                "profile": (
                    profile("int8").model_copy(
                        update={
                            "measured": tuple(
                                m.model_copy(
                                    update={
                                        "latency": None,
                                        "ops": None,
                                        "memory": None,
                                        "placement": None,
                                        "error": "died",
                                    }
                                )
                                for m in profile("int8").measured
                            )
                        }
                    )
                )
            }
        ),
    ),
    "empty histograms": (
        run(
            variant(
                layers=(
                    Layer(name="l", op="Add", sqnr_db=200.0, histogram=LayerHistogram(edges=(), counts=(), clip=None)),
                    Layer(
                        name="m",
                        op="Add",
                        sqnr_db=-200.0,
                        histogram=LayerHistogram(edges=(0.0, 0.0), counts=(0,), clip=(0.0, 0.0)),
                    ),
                    Layer(
                        name="n",
                        op="Add",
                        sqnr_db=0.0,
                        histogram=LayerHistogram(edges=(1e30, 1e38), counts=(5,), clip=(-1e-30, 1e-30)),
                    ),
                )
            )
        ),
    ),
    "zero figures": (
        (
            run(
                variant("float", metrics={"size.file": 0.0, "accuracy.eval": 0.0}),
                variant(metrics={"size.file": 0.0, "accuracy.eval": 0.0}),
            ),
        )
        * 2
    ),
}


@pytest.mark.parametrize("kind", list(RUNS))
def test_a_page_has_headings_in_order_and_pictures_that_say_what_they_are(kind: str) -> None:
    text, found = page(RUNS[kind]), Outline()
    found.feed(text)
    assert found.levels[0] == 1 and found.levels.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(found.levels, found.levels[1:], strict=False))
    assert all(p.get("aria-label") and p.get("role") == "img" for p in found.pictures)
    assert found.titles >= len(found.pictures)
    assert not re.search(
        r"\b(nan|inf|None|undefined)\b", re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)
    )


@pytest.mark.parametrize("kind", list(RUNS))
def test_a_page_draws_without_a_message_or_a_request(kind: str, show: Show) -> None:
    shown = show(*RUNS[kind])
    assert shown.locator("h1").inner_text() == "p"
    assert names(shown) == [v.name for v in RUNS[kind][-1].variants]
    assert all(
        "no samples" in t or "failed" in t or "quantize: x" in t for t in shown.locator("td.error").all_inner_texts()
    )


def test_the_trend_is_there_for_several_runs_and_only_then(show: Show) -> None:
    assert show(full()).get_by_text("Trend over").count() == 0
    shown = show(full(), full(shift=1.0), full(shift=2.0))
    assert shown.get_by_role("heading", name="Trend over 3 runs").count() == 1
    (line,) = shown.locator("svg[aria-label='latency.p50 over 3 runs'] polyline").all()[:1]
    assert len((line.get_attribute("points") or "").split()) == 3


def test_the_page_of_a_hundred_nodes_is_no_larger_than_400_kb() -> None:
    assert len(page([full(nodes=100)]).encode()) <= 400_000
    assert len(page([full(nodes=100)] * 20).encode()) <= 400_000


# sorting


def test_a_click_on_a_head_sorts_by_number_and_another_the_other_way_round(show: Show) -> None:
    shown = show(full("b", "c", "a"))
    head = shown.get_by_role("button", name="latency, median").first
    head.click()
    assert names(shown) == ["b", "c", "a", "float"]
    assert shown.locator("th[aria-sort=ascending]").inner_text().startswith("latency")
    head.click()
    assert names(shown) == ["float", "a", "c", "b"]
    assert shown.locator("th[aria-sort]").count() == 1
    shown.get_by_role("button", name="variant").first.click()
    assert names(shown) == ["a", "b", "c", "float"]


def test_the_keyboard_sorts_and_the_focus_is_seen(show: Show) -> None:
    shown = show(full("b", "c", "a"))
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.textContent") == "variant"
    assert shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    shown.keyboard.press("Enter")
    assert names(shown) == ["a", "b", "c", "float"]
    shown.keyboard.press("Space")
    assert names(shown) == ["float", "c", "b", "a"]


def test_rows_without_a_figure_come_last_whichever_way_and_none_is_lost(show: Show) -> None:
    found = full("b", "a")
    broken = found.model_copy(update={"variants": (variant("z", error="x"), *found.variants)})
    shown = show(broken)
    head = shown.get_by_role("button", name="speed against").first
    for want in (["a", "b"], ["b", "a"]):
        head.click()
        order = names(shown)
        assert order[:2] == want and sorted(order[2:]) == ["float", "z"]


# without script, dark, on paper, narrow


def test_everything_is_there_without_script(show: Show) -> None:
    found = full()
    shown = show(found, java_script_enabled=False)
    text = shown.locator("body").text_content()
    for part in (
        *(g.message for g in found.gates),
        *(v.name for v in found.variants),
        "SQNR by layer",
        "Time by operator",
        "layer_0",
    ):
        assert part in text
    closed = shown.locator("details:not([open]) summary")
    closed.last.click()
    assert shown.locator("details").last.locator("figure").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_stands_out_from_its_ground(scheme: str, show: Show) -> None:
    shown = show(full(), full(shift=1.0), color_scheme=scheme)
    assert shown.evaluate(FAINT.replace("PAPER", "null")) == []
    ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_stands_out_on_white_paper_whose_ground_is_not_printed(scheme: str, show: Show) -> None:
    shown = show(full(), full(shift=1.0), color_scheme=scheme)
    shown.emulate_media(media="print", color_scheme=scheme)
    assert shown.evaluate(FAINT.replace("PAPER", "'rgb(255, 255, 255)'")) == []


def test_every_variant_is_printed_whether_it_is_folded_or_not(show: Show) -> None:
    shown = show(full())
    shown.emulate_media(media="print")
    hidden = shown.evaluate(
        "[...document.querySelectorAll('details')].filter(d => ![...d.querySelectorAll('h3')].every(h =>"
        " h.checkVisibility({contentVisibilityAuto: true, visibilityProperty: true}))).map(d =>"
        " d.textContent.trim().split('\\n')[0])"
    )
    assert hidden == []


def test_no_column_is_cut_off_on_paper(show: Show) -> None:
    shown = show(full(), width=718)  # A4 less its margins, in CSS pixels
    shown.emulate_media(media="print")
    cut = shown.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth + 1 &&"
        " s.getClientRects().length).map(s => s.querySelector('th').textContent + ': ' + s.scrollWidth + ' in ' +"
        " s.clientWidth)"
    )
    assert cut == []


def test_it_is_printed_as_a_pdf_of_a_few_pages(show: Show) -> None:
    data = show(full()).pdf(format="A4")
    assert data.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 20


LONG = "a_very_long_name_without_a_place_to_break_" * 4


@pytest.mark.parametrize("long", [False, True], ids=["plain", "long names"])
def test_a_narrow_screen_never_scrolls_sideways(long: bool, show: Show) -> None:
    found = full()
    if long:
        named = made("v" * 80, 8.0, layer=LONG).model_copy(update={"error": LONG})
        found = full(project=LONG, project_file=LONG, notes=(LONG,)).model_copy(
            update={"variants": (*full().variants, named)}
        )
    shown = show(found, width=400)
    wide = shown.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => e.scrollWidth > innerWidth &&"
        " !e.closest('.scroll')).map(e => e.tagName + ' ' + e.className)"
    )
    assert shown.evaluate("document.documentElement.scrollWidth") <= 400, wide


@pytest.mark.parametrize("runs", [("full",), ("several",), ("other variants",), ("empty histograms",)])
def test_no_word_of_a_picture_is_cut_off(runs: tuple[str], show: Show) -> None:
    shown = show(*RUNS[runs[0]])
    shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert sorted(set(shown.evaluate(OUTSIDE))) == []


def test_no_word_of_a_picture_lies_on_another(show: Show) -> None:
    near = full("int8", "fp16", "weights").variants
    same = tuple(
        v.model_copy(update={"metrics": {**v.metrics, "latency.p50": 20.0 + i, "accuracy.agreement": 0.99}})
        for i, v in enumerate(near[1:])
    )
    shown = show(full().model_copy(update={"variants": (near[0], *same)}))
    assert sorted(set(shown.evaluate(OVERLAPS))) == []


def test_words_of_pictures_are_no_smaller_than_nine_pixels_on_a_narrow_screen(show: Show) -> None:
    shown = show(full(), width=400)
    small = shown.evaluate(
        "[...document.querySelectorAll('svg')].filter(s => s.getClientRects().length && s.querySelector('text')).map(s"
        " => [s.getAttribute('aria-label'), parseFloat(getComputedStyle(s.querySelector('text')).fontSize) *"
        " s.getBoundingClientRect().width / s.viewBox.baseVal.width]).filter(([_, px]) => px < 9)"
    )
    assert small == []


# bad names


def test_no_name_becomes_markup_or_runs(show: Show) -> None:
    first = made("a", 8.0).model_copy(update={"name": ODD, "layers": layers(8, ODD), "parent": ODD, "error": None})
    found = full(ODD, project=ODD, project_file=ODD, notes=(ODD,), baseline=ODD)
    found = found.model_copy(
        update={
            "variants": (found.variants[0], first, variant("b", error=ODD)),
            "versions": {ODD: ODD},
            "profile": profile(ODD, node=ODD),
        }
    )
    shown = show(found, found)
    shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert shown.locator("img").count() == 0 and shown.locator("script").count() == 1
    assert shown.locator("h1").inner_text() == ODD
    assert shown.title() == f"{ODD}: fail"
    assert ODD in shown.locator("table").first.inner_text()
    for label in shown.locator("svg").all():
        assert "\n" not in (label.get_attribute("aria-label") or "")


def test_the_page_allows_nothing_from_outside() -> None:
    text = page([full()])
    assert "default-src 'none'" in text
    assert not re.search(
        r"""(?:src|href)\s*=\s*(?!["']?data:)|url\(|@import|https?:""", re.sub(r'content="[^"]*"', "", text)
    )


def test_a_run_without_gates_says_so_beside_its_exit_code() -> None:
    assert "no gates &middot; exit code 0" in " ".join(page([run(variant())]).split())
