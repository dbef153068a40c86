"""The page in a real browser: a streamed answer, a dropped picture, a stop, an edit, text that looks like markup."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cellmd
from live_server import Live, until
from processors.media_files import film_file, sound_file, tone

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CELLMD_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert path is not None, "no browser: install chromium, or set CELLMD_CHROMIUM to one"
    with sync_playwright() as playwright:
        # A microphone that beeps, and nobody who has to allow it.
        sound = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *sound])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(path: Path) -> Iterator[Live]:
    with cellmd.load(path, threads=1, context=2048) as model:
        live = Live(model)
        yield live
        live.close()


@pytest.fixture
def page(browser: Any, served: Live) -> Iterator[Any]:
    """The page, just opened; at the end: nothing was asked of another host, and nothing went wrong in it."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    elsewhere: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: elsewhere.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(served.url)
    until(lambda: page.evaluate("document.title === 'tiny'"))
    yield page
    context.close()
    allowed = (served.url, "data:", "blob:")
    assert not [url for url in elsewhere if not url.startswith(allowed)]
    assert not wrong


def say(page: Any, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def answered(page: Any, n: int = 1) -> str:
    """The text of the n-th answer, once it is complete."""
    until(lambda: page.evaluate(f"document.querySelectorAll('li.assistant').length >= {n}"))
    until(lambda: page.evaluate("document.getElementById('stop').hidden"))
    return str(page.locator("li.assistant .body").nth(n - 1).inner_text())


def limit(page: Any, tokens: int) -> None:
    page.click("#show-settings")
    page.fill("[name=max_completion_tokens]", str(tokens))
    page.fill("[name=temperature]", "0")
    page.click("#settings button[value=close]")


def at_length(page: Any) -> None:
    """Answers go on until they are cut or stopped."""
    form = {"type": "regex", "regex": "([a-z]{1,9} ){4000}"}

    def longer(route: Any) -> None:
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "response_format": form}))

    page.route("**/v1/chat/completions", longer)


def test_a_streamed_answer_with_its_rate(page: Any) -> None:
    limit(page, 20)
    say(page, "hello world")
    assert answered(page)
    assert "20 tokens" in page.inner_text("li.assistant .tools")
    assert "tokens/s" in page.inner_text("li.assistant .tools")
    page.reload()  # kept in the browser
    assert page.inner_text("li.user .body") == "hello world"
    page.click("#new")
    assert page.locator("#messages li").count() == 0
    page.locator("#list li button").first.click()
    assert page.inner_text("li.user .body") == "hello world"


def test_a_dropped_picture(page: Any, served: Live) -> None:
    limit(page, 5)
    file = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(file, "png")
    page.evaluate(
        """(data) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "grey.png", { type: "image/png" }));
            const drop = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
            document.querySelector("main").dispatchEvent(drop);
        }""",
        base64.b64encode(file.getvalue()).decode(),
    )
    page.wait_for_selector("#attached li")
    assert "grey.png" in page.inner_text("#attached li")
    before = served.counts.prompt_tokens
    say(page, "what is this")
    assert answered(page) is not None
    assert page.locator("li.user img").count() == 1
    assert page.evaluate("document.querySelector('li.user img').naturalWidth") == 60
    assert served.counts.prompt_tokens - before > 30  # the picture's places among them
    page.set_input_files("#files", files=[{"name": "note.txt", "mimeType": "text/plain", "buffer": b"x"}])
    until(lambda: page.evaluate("document.getElementById('status').textContent.includes('no picture')"))


def test_a_recording_from_the_microphone(page: Any, served: Live) -> None:
    limit(page, 5)
    page.click("#record")
    until(lambda: page.get_attribute("#record", "aria-pressed") == "true")
    page.wait_for_timeout(1500)
    page.click("#record")
    page.wait_for_selector("#attached li")
    before = served.counts.prompt_tokens
    say(page, "what is this")
    answered(page)
    assert page.locator("li.user audio").count() == 1
    assert page.locator("li.error").count() == 0
    assert served.counts.prompt_tokens - before > 50  # 25 places a second of sound


def test_sounds_and_films_are_attached(page: Any, served: Live) -> None:
    limit(page, 5)
    files = [
        {"name": "beep.wav", "mimeType": "audio/wav", "buffer": sound_file("wav", tone(1, 16_000)[None], 16_000)},
        {"name": "film.mp4", "mimeType": "video/mp4", "buffer": film_file("mp4", n_frames=3)},
    ]
    page.set_input_files("#files", files=files)
    until(lambda: page.locator("#attached li").count() == 2)
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "what is this")
    parts = asked.value.post_data_json["messages"][-1]["content"]
    assert [part["type"] for part in parts] == ["input_audio", "video_url", "text"]
    answered(page)
    assert page.locator("li.error").count() == 0
    assert page.locator("li.user audio").count() == page.locator("li.user video").count() == 1


def test_what_the_settings_say_is_asked(page: Any) -> None:
    page.click("#show-settings")
    for name, value in {"system": "be brief", "temperature": "0.5", "top_p": "0.9", "top_k": "7", "seed": "3"}.items():
        page.fill(f"[name={name}]", value)
    page.fill("[name=max_completion_tokens]", "4")
    page.click("#settings button[value=close]")
    page.click("label.chip")
    for _ in range(2):
        with page.expect_request("**/v1/chat/completions") as asked:
            say(page, "hello")
        answered(page)
        body = asked.value.post_data_json
        assert body["messages"][0] == {"role": "system", "content": "be brief"}
        chosen = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "max_completion_tokens": 4}
        assert {name: body.get(name) for name in chosen} == chosen
        assert body["chat_template_kwargs"] == {"enable_thinking": True}
        page.reload()  # settings are kept, too
        page.click("#new")


def test_a_stopped_stream(page: Any, served: Live) -> None:
    limit(page, 1500)
    with served.slowed():
        say(page, "hello world")
        until(lambda: page.evaluate("document.querySelector('li.assistant .body')?.textContent.length > 5"))
        page.click("#stop")
        until(lambda: served.counts.running == 0)
        text = answered(page)
    assert text
    assert "stopped" in page.inner_text("li.assistant .tools")
    limit(page, 5)
    page.click("li.assistant button:has-text('Again')")
    until(lambda: page.evaluate("document.querySelector('li.assistant .tools').textContent.includes('tokens')"))
    assert page.locator("li.assistant").count() == 1


def test_what_is_kept(page: Any, served: Live) -> None:
    """Pictures too; a deleted conversation is not; one that is left goes on meanwhile."""
    limit(page, 60)
    at_length(page)
    with served.slowed():
        say(page, "first")
        until(lambda: served.counts.running == 1)
        page.click("#new")
        assert page.is_visible("#welcome")
        assert page.is_visible("#send")
        say(page, "second")
        until(lambda: served.counts.running == 2)
        page.click("#list button:has-text('first')")
        assert page.is_visible("#stop")
        assert answered(page)
    assert "60 tokens" in page.inner_text("li.assistant .tools")
    page.unroute("**/v1/chat/completions")  # which cannot change the large body that follows
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)).save(file, "png")
    assert len(file.getvalue()) > 6 << 20  # more than a browser's local storage takes
    page.set_input_files("#files", files=[{"name": "noise.png", "mimeType": "image/png", "buffer": file.getvalue()}])
    page.wait_for_selector("#attached li")
    say(page, "a picture")
    answered(page, 2)
    page.reload()
    until(lambda: page.evaluate("document.querySelector('li.user img')?.naturalWidth === 1500"))
    assert page.locator("#list li").count() == 2
    page.click("#list button:has-text('second')")
    assert answered(page)
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#list [aria-label='Delete first']")
    until(lambda: page.locator("#list li").count() == 1)
    page.reload()
    page.wait_for_selector("#list li")
    assert page.inner_text("#list li") == "second"


def test_the_end_stays_in_sight_until_one_scrolls_up(page: Any, served: Live) -> None:
    limit(page, 1500)
    at_length(page)
    box = "const box = document.getElementById('messages');"
    from_end = f"(() => {{ {box} return box.scrollHeight - box.scrollTop - box.clientHeight; }})()"
    page.set_viewport_size({"width": 400, "height": 500})
    with served.slowed():
        say(page, "hello world")
        until(lambda: page.evaluate("document.getElementById('messages').scrollTop > 100"))
        assert page.evaluate(from_end) < 60
        page.evaluate("document.getElementById('messages').scrollTop = 0")
        page.wait_for_timeout(300)
        assert page.evaluate("document.getElementById('messages').scrollTop") == 0
        page.click("#to-end")
        assert page.evaluate(from_end) < 60
        page.keyboard.press("Escape")
        until(lambda: served.counts.running == 0)


def test_edit_sends_another_question(page: Any) -> None:
    limit(page, 3)
    say(page, "hello")
    answered(page)
    page.click("li.user button:has-text('Edit')")
    assert page.input_value("#text") == "hello"
    say(page, "say one")
    answered(page)
    assert page.inner_text("li.user .body") == "say one"
    assert page.locator("#messages li").count() == 2
    page.press("#text", "ArrowUp")  # the last question, and Escape leaves it as it was
    assert page.input_value("#text") == "say one"
    page.press("#text", "Escape")
    assert page.input_value("#text") == ""
    assert page.locator("#messages li").count() == 2


def test_a_models_text_is_never_markup(page: Any) -> None:
    text = "\n".join(
        [
            "# A title",
            "<img src=x onerror=alert(1)> **bold** *slanted* `code <b>` [a](javascript:alert(1)) [b](https://b.example/x)",
            "- one\n- two\n  1. inner",
            "| a | b |\n|---|---|\n| 1 | <i>2</i> |",
            "```python\nprint('<script>')\n```",
            "> quoted",
            "***both*** _low_ ~~gone~~ snake_case_name https://c.example/d_e. \\*plain\\*",
            "1. first\n\n   further\n\n2. second\n   ```\n   in = 1\n   ```",
            "| n |\n|--:|\n| 7 |",
            "```\nnever closed",
        ]
    )
    event = {
        "choices": [
            {"index": 0, "delta": {"content": text, "reasoning_content": "<b>why</b>"}, "finish_reason": "stop"}
        ]
    }
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            body=f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n", content_type="text/event-stream"
        ),
    )
    say(page, "<b>hello</b>")
    answered(page)
    assert page.inner_text("li.user .body") == "<b>hello</b>"
    body = page.locator("li.assistant .body")
    for wrong in ("img", "script", "b", "i"):
        assert body.locator(wrong).count() == 0
    links = [a.get_attribute("href") for a in body.locator("a").all()]
    assert links == ["https://b.example/x", "https://c.example/d_e"]
    assert body.locator("h3").inner_text() == "A title"
    assert body.locator("strong").all_inner_texts() == ["bold", "both"]
    assert body.locator("em").all_inner_texts() == ["slanted", "both", "low"]
    assert body.locator("del").inner_text() == "gone"
    assert "snake_case_name" in body.inner_text()
    assert "*plain*" in body.inner_text()
    assert body.locator("ol > li p").inner_text() == "further"
    assert body.locator("td.right").inner_text() == "7"
    assert body.locator("p code").inner_text() == "code <b>"
    assert body.locator("ul > li").count() == 2
    assert body.locator("ul ol li").inner_text() == "inner"
    assert body.locator("td").nth(1).inner_text() == "<i>2</i>"
    assert body.locator("pre").first.inner_text() == "print('<script>')"
    assert body.locator("li pre").inner_text() == "in = 1"
    assert body.locator("pre").last.inner_text() == "never closed"
    body.locator(".code button").first.click()
    until(lambda: body.locator(".code button").first.inner_text() == "Copied")
    details = page.locator("li.assistant details")
    assert details.get_attribute("open") is None  # folded
    details.locator("summary").click()
    assert details.locator("span").inner_text() == "<b>why</b>"


def test_phones_and_keyboards(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert not page.is_visible("#side")
    page.click("#show-list")
    assert page.is_visible("#side")
    page.click("#new")
    assert not page.is_visible("#side")
    page.press("#text", "Shift+Enter")
    assert page.locator("#messages li").count() == 0
    page.click("#theme")
    theme = page.evaluate("document.documentElement.dataset.theme")
    page.click("#theme")
    assert {theme, page.evaluate("document.documentElement.dataset.theme")} == {"dark", "light"}
    nameless = "[...document.querySelectorAll('button')].filter(b => !(b.textContent.trim() || b.ariaLabel)).length"
    assert page.evaluate(nameless) == 0
