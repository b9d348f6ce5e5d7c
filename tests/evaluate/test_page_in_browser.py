"""The report in a real browser: no errors, no requests, readable on a phone, printable.

Needs Chromium and Playwright.
"""

import matplotlib
import numpy as np
import pyarrow as pa
import pytest

from onesug_jax.evaluate import metrics, page
from onesug_jax.evaluate.evaluator import Evaluation, summarise

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of sixty requests with long queries, and a plot."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder = tmp_path_factory.mktemp("report")
    figure, axis = pyplot.subplots()
    axis.plot([1, 2, 3])
    figure.savefig(folder / "by_slice.png")
    pyplot.close(figure)
    (folder / "related.txt").write_text("'w'  " + "a very long line of related queries, " * 12)
    rng = np.random.default_rng(0)
    pool = [f"query number {n} with quite a few words in it 拖鞋 女" for n in range(40)]
    names, truths = ("model", "most_popular", "sft"), [pool[n % 40] for n in range(60)]
    lists = {name: [rng.permutation(pool)[:16].tolist() for _ in truths] for name in names}
    columns = {
        "row": list(range(60)),
        "request_id": [f"r{n}" for n in range(60)],
        "prefix": [truth[: 1 + n % 9] for n, truth in enumerate(truths)],
        "truth": truths,
        "level": ["order", "click", "item_click"] * 20,
        "prefix_count": [20, 3, 0] * 20,
        "history": [7] * 60,
        "recent": [pool[:5]] * 60,
    }
    for name, found in lists.items():
        columns[f"list_{name}"] = found
        ranks = [metrics.rank_of(truth, texts) for truth, texts in zip(truths, found, strict=True)]
        columns[f"rank_{name}"] = pa.array(ranks, pa.int32())
    rows = pa.table(columns)
    return page.write_page(Evaluation(summarise(rows), rows), str(folder))


@pytest.mark.parametrize("width", [360, 1280], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_complete_and_fits(browser, report, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    shown = context.new_page()
    urls, problems = [], []
    shown.on("request", lambda request: urls.append(request.url))
    shown.on("console", lambda message: problems.append(message.text))
    shown.on("pageerror", lambda error: problems.append(str(error)))
    shown.goto(f"file://{report}")
    assert not problems
    assert [url for url in urls if not url.startswith("data:")] == [f"file://{report}"]
    assert shown.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scrolling"
    pictures = shown.locator("img")
    assert pictures.count() == 1
    assert pictures.first.evaluate("image => image.complete && image.naturalWidth > 0")
    assert shown.locator(".list").count() >= 20 and shown.locator("li.hit").count()
    ink = shown.evaluate(
        "() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; }"
    )
    assert ink[0] != ink[1]
    size = shown.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")
    assert size >= 14, "readable without zooming"
    assert len(shown.screenshot(full_page=True)) > 20_000
    context.close()


def test_the_page_prints(browser, report):
    context = browser.new_context()
    shown = context.new_page()
    shown.goto(f"file://{report}")
    printed = shown.pdf(format="A4")
    assert printed.startswith(b"%PDF") and printed.count(b"/Type /Page\n") >= 2
    context.close()
