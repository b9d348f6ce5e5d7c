"""The page in a real browser: lists, choices, history, errors. Needs Chromium and Playwright."""

import re

import httpx2 as httpx
import pytest

from onesug_jax.serve.feedback import FeedbackStore
from tests.serve.test_server import Server

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path):
    service = Server(tmp_path)
    yield service
    service.process.kill()
    service.process.wait(30)


@pytest.fixture
def page(browser, server):
    context = browser.new_context()
    opened = context.new_page()
    opened.problems = []
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.goto(server.url)
    opened.locator("#list li").first.wait_for()
    yield opened
    assert not opened.problems
    context.close()


def texts(page):
    return [re.sub(r"^\d+", "", text) for text in page.locator("#list li").all_text_contents()]


def type_in(page, text):
    """Types, and waits for the list of the text."""
    page.locator("#query").press_sequentially(text, delay=20)
    prefix = page.locator("#query").input_value()
    page.locator("#list li", has_text=prefix).first.wait_for()


def rows(server):
    """The exported rows of the store."""
    import pyarrow.parquet as pq

    store = FeedbackStore(server.store)
    target = server.store + ".parquet"
    count = store.export(target)
    store.close()
    return pq.read_table(target).to_pylist() if count else []


def test_a_list_for_every_letter_by_keyboard_alone(page):
    box = page.locator("#query")
    type_in(page, "la")
    assert texts(page)[:2] == ["la0", "la1"]
    assert box.get_attribute("role") == "combobox" and box.get_attribute("aria-expanded") == "true"
    assert box.get_attribute("aria-activedescendant") is None
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    active = box.get_attribute("aria-activedescendant")
    assert page.locator(f"#{active}").get_attribute("aria-selected") == "true"
    assert page.locator("[role=option][aria-selected=true]").count() == 1
    assert box.input_value() == "la1"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert box.input_value() == "la", "the typed text"
    page.keyboard.press("ArrowUp")
    assert box.input_value() == texts(page)[-1], "the last entry"
    page.keyboard.press("Escape")
    assert box.input_value() == "la" and box.get_attribute("aria-expanded") == "false"
    assert not page.locator("#list").is_visible()
    page.keyboard.press("Escape")
    assert box.input_value() == ""
    assert re.search(r"\d ms", page.locator("#latency").text_content())
    assert "median" in page.locator("#pace-text").text_content()


def test_choosing_reaches_the_store_and_changes_the_next_list(page, server):
    type_in(page, "la")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator("#saved", has_text="saved").wait_for()
    page.locator("#history li", has_text="la1").wait_for()
    (row,) = rows(server)
    assert (row["prefix"], row["query"], row["clicked_position"]) == ("la", "la1", 1)
    assert row["shown"][:3] == ["la0", "la1", "la2"] and row["user_id"].startswith("visitor-")
    type_in(page, "te")
    assert texts(page)[0] == "te after la1", "the list knows what was searched"
    page.locator("#ordered").click()
    page.locator("#saved", has_text="order").wait_for()
    assert rows(server)[0]["ordered_items"] == ["page-item"]
    page.locator("#list li").nth(2).click()
    page.locator("#history li", has_text="te1").wait_for()
    assert [row["query"] for row in rows(server)] == ["la1", "te1"]
    page.reload()
    page.locator("#history li", has_text="la1").wait_for()
    page.locator("#clear").click()
    page.locator("#no-history").wait_for()
    assert rows(server) == []
    type_in(page, "te")
    assert texts(page)[0] == "te0"


def test_typed_text_is_searched_unchanged(page, server):
    type_in(page, "tent")
    page.keyboard.press("Enter")
    page.locator("#history li", has_text="tent").wait_for()
    (row,) = rows(server)
    assert row["query"] == "tent" and row["clicked_position"] is None


def test_a_search_before_its_list_arrives(page, server):
    """After a quick Enter, the list of an earlier prefix is not reported as shown."""
    type_in(page, "la")
    held = []
    page.route("**/suggest", lambda route: held.append(route))
    page.locator("#query").press_sequentially("mp")
    page.keyboard.press("Enter")
    page.locator("#saved", has_text="saved").wait_for()
    assert page.locator("#list li").count() == 0, "and nothing can be chosen from it"
    (row,) = rows(server)
    assert (row["prefix"], row["query"], row["shown"]) == ("lamp", "lamp", [])
    for route in held:
        try:
            route.continue_()
        except Exception:  # the page has aborted this request
            pass


def test_escape_closes_the_list_of_an_empty_box(page):
    box = page.locator("#query")
    box.focus()
    assert page.locator("#list").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#list").is_visible()
    assert box.get_attribute("aria-expanded") == "false"


def test_a_new_list_has_nothing_chosen(page):
    type_in(page, "la")
    page.keyboard.press("ArrowDown")
    box = page.locator("#query")
    assert box.get_attribute("aria-activedescendant")
    box.press_sequentially("m")
    page.locator("#list li", has_text="la0m0").first.wait_for()
    assert box.get_attribute("aria-activedescendant") is None


def test_text_of_an_input_method_is_sent_when_it_is_finished(page, server):
    asked = []
    page.on("request", lambda request: asked.append(request) if "suggest" in request.url else 0)
    box = page.locator("#query")
    box.focus()
    session = page.context.new_cdp_session(page)
    for composed in ("t", "tu", "tuo", "tuo xie"):
        session.send(
            "Input.imeSetComposition",
            {"text": composed, "selectionStart": len(composed), "selectionEnd": len(composed)},
        )
    page.keyboard.press("ArrowDown")
    assert not asked, "letters of a composition are no prefix"
    session.send("Input.insertText", {"text": "拖鞋"})
    page.locator("#list li", has_text="拖鞋").first.wait_for()
    assert box.input_value() == "拖鞋" and len(asked) == 1


def test_lists_side_by_side_and_why(page):
    type_in(page, "la")
    page.locator("text=Side by side").click()
    assert page.locator("#other li").count() == 10
    assert "la popular 0" in page.locator("#other li").first.text_content()
    assert page.locator("#list li .moved").first.text_content() == "new"
    page.locator("text=Most popular").first.click()
    assert texts(page)[0] == "la popular 0"
    page.locator("summary").click()
    assert page.locator("#related li").count() == 2
    assert page.locator("#related code").all_text_contents() == ["7-1", "7-2"]
    assert page.locator("#scores li").first.locator(".number").text_content() == "0.00"
    facts = page.locator("#facts").text_content()
    assert "beam" in facts and "0000" in facts


def test_counts_as_of_now_and_what_is_trending(browser, tmp_path):
    server = Server(tmp_path, "items")
    page = browser.new_context().new_page()
    try:
        for number in range(60):
            body = {"request_id": f"r{number}", "user_id": f"u{number}", "query": "lava lamp"}
            httpx.post(f"{server.url}/feedback", json=body)
        page.goto(server.url)
        type_in(page, "la")
        trend = page.locator("#trending li", has_text="lava lamp")
        for _ in range(50):  # counted within a second
            if trend.count():
                break
            page.locator("#query").fill("l")
            type_in(page, "a")
            page.wait_for_timeout(200)
        assert re.fullmatch(r"lava lamp\d+ now · \d+ usual", trend.text_content())
        page.locator("#list li", has_text="lamp red").click()
        page.locator("#history li", has_text="lamp red").wait_for()
        type_in(page, "la")
        page.locator("summary").click()
        assert page.locator("#used li").first.text_content() == "lamp redjust now"
        heads = page.locator("#counts-head th").all_text_contents()
        assert heads[2:6] == ["ever", "14 d", "3 d", "17 h"] and "ordered" in heads
        row = page.locator("#counts-body tr", has_text="lava lamp")
        assert row.locator("td").nth(1).text_content() == "60"
        assert "like lamp red" in row.text_content()
        assert not page.locator("#related-part").is_visible()
    finally:
        page.context.close()
        server.process.kill()
        server.process.wait(30)


def test_a_script_in_a_query_is_text(page, server):
    attack = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    page.on("dialog", lambda dialog: page.problems.append(dialog.message))
    type_in(page, attack)
    assert texts(page)[0] == attack + "0"
    page.keyboard.press("Enter")
    page.locator("#history li", has_text="<img").wait_for()
    page.locator("summary").click()
    assert page.locator("main img, #list script").count() == 0
    assert page.locator("#searched-text").text_content() == attack


def test_an_old_answer_never_takes_the_place_of_a_newer_one(page):
    """The reply for "l" is held until the one for "la" is on the page."""
    held = []

    def hold(route):
        if '"prefix":"l"' in route.request.post_data:
            held.append(route)
        else:
            route.continue_()

    page.route("**/suggest", hold)
    page.locator("#query").press_sequentially("l")
    page.locator("#query").press_sequentially("a")
    page.locator("#list li", has_text="la0").wait_for()
    for route in held:
        try:
            route.continue_()
        except Exception:  # the page has aborted this request
            pass
    page.wait_for_timeout(500)
    assert held and texts(page)[0] == "la0"


def test_a_dead_server_and_its_return_are_shown(page, server, tmp_path):
    type_in(page, "la")
    server.process.kill()
    server.process.wait(30)
    page.locator("#query").press_sequentially("m")
    trouble = page.locator("#trouble")
    trouble.wait_for()
    assert "does not answer" in trouble.text_content()
    assert page.locator("#state").get_attribute("data-is") == "dead"
    assert page.locator("#query").input_value() == "lam", "the typed text remains"
    again = Server(tmp_path, port=server.port)
    try:
        page.locator("#list li", has_text="lam0").wait_for()
        trouble.wait_for(state="hidden")
    finally:
        again.process.kill()
        again.process.wait(30)


def test_a_service_with_a_key_asks_for_it(browser, tmp_path):
    path = tmp_path / "key"
    path.write_text("opensesame\n")
    server = Server(tmp_path, api_key_file=str(path))
    context = browser.new_context(viewport={"width": 380, "height": 740})
    try:
        page = context.new_page()
        page.goto(server.url)
        page.locator("#key").fill("opensesame")
        page.locator("#key-form button").click()
        page.locator("#list li").first.wait_for()
        assert not page.locator("#trouble").is_visible()
        width = page.locator("body").bounding_box()["width"]
        assert width <= 380, "fits a phone"
    finally:
        context.close()
        server.process.kill()
        server.process.wait(30)
