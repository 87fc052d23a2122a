"""The completion view and the server view, in a real browser on a real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny_models
from tests.e2e.test_browser import ANSWER, open_page
from tests.e2e.webdriver import Browser, browser  # noqa: F401
from tests.support import ServerProcess, wait_until

N_CTX = 65536  # room for far more tokens than can be made before the click on stop


@pytest.fixture
def server(serve: Callable[..., ServerProcess], recite_model: Path, tmp_path: Path) -> ServerProcess:
    """A server that recites, with all that the server view shows."""
    folder = tmp_path / "slots"
    folder.mkdir()
    return serve("-m", recite_model, "-t", "1", "-c", "4096", "-np", "2", "--metrics", "--slot-save-path", folder)


def complete(browser: Browser, text: str) -> None:  # noqa: F811
    """Type a text and wait for its continuation."""
    browser.clear("#prompt")
    browser.type("#prompt", text)
    browser.click("#send")
    wait_until(lambda: browser.is_enabled("#take"), "the completion to end")


def option(browser: Browser, name: str, value: str) -> None:  # noqa: F811
    browser.run(
        """const input = document.querySelector(`.complete [data-option=${arguments[0]}]`); input.value = arguments[1];
        input.dispatchEvent(new Event('change'));""",
        name,
        value,
    )


def output(browser: Browser) -> str:  # noqa: F811
    return browser.run("return document.querySelector('#output').textContent")


# ---------------------------------------------------------------------------------------- completion


@pytest.mark.both_browsers
@pytest.mark.covers("F01")
def test_page_streams_a_completion(server, browser: Browser):
    open_page(browser, server, "#complete")
    complete(browser, "count: one")
    assert output(browser) == "count: one" + "".join(tiny_models.RECITE_WORDS[1:])
    assert "tokens" in browser.text("#timings")
    assert browser.is_enabled("#send") and not browser.is_enabled("#stop")
    browser.click("#take")
    assert browser.value("#prompt") == output(browser)
    open_page(browser, server, "#complete")
    browser.refresh()
    wait_until(lambda: browser.value("#prompt").startswith("count: one two"), "the text after a reload")


@pytest.mark.covers("F01")
def test_stop_button_ends_the_completion_and_frees_the_slot(serve, browser: Browser, tmp_path: Path):
    model = tiny_models.tiny_llama(tmp_path / "model.gguf", n_ctx_train=N_CTX)
    server = serve("-m", model, "-c", N_CTX, "-t", "1")
    open_page(browser, server, "#complete")
    option(browser, "n_predict", str(N_CTX))
    option(browser, "ignore_eos", "true")
    browser.click("#send")
    wait_until(lambda: len(output(browser)) > 100, "text to appear")
    browser.click("#stop")
    wait_until(lambda: server.get("/health").json()["slots_processing"] == 0, "the slot to be idle")
    assert len(output(browser).split()) < N_CTX // 2
    wait_until(lambda: browser.is_enabled("#send") and not browser.is_enabled("#stop"), "the buttons")


@pytest.mark.covers("F01")
def test_options_show_the_servers_defaults_and_only_changes_are_sent(server, browser: Browser):
    defaults = server.get("/props").json()["default_generation_settings"]
    open_page(browser, server, "#complete")
    wait_until(lambda: browser.run("return document.querySelector('[data-option=top_k]').placeholder"), "the defaults")
    shown = browser.run("""return Object.fromEntries([...document.querySelectorAll('.complete input[data-option]')]
        .map((one) => [one.name, one.placeholder]))""")
    assert {
        name: text
        for name, text in shown.items()
        if name not in ("n_predict", "samplers", "dry_sequence_breakers", "logit_bias")
        and float(text) != pytest.approx(defaults[name])
    } == {}
    assert shown["samplers"] == ", ".join(defaults["samplers"])
    option(browser, "n_predict", "3")
    option(browser, "stop", " three")
    complete(browser, "count: one")
    assert output(browser) == "count: one two"
    used = next(slot for slot in server.get("/slots").json() if slot["task_id"] >= 0)
    assert (used["n_predict"], used["stop"], used["top_k"]) == (3, [" three"], defaults["top_k"])
    browser.click(".complete .reset")
    complete(browser, "count: one")
    assert output(browser).endswith(" end")


@pytest.mark.covers("W06")
def test_a_number_out_of_range_is_explained_and_nothing_runs(server, browser: Browser):
    open_page(browser, server, "#complete")
    option(browser, "mirostat", "7")
    browser.click("#send")
    wait_until(lambda: browser.run("return document.activeElement.name") == "mirostat", "the field in view")
    assert "0 to 2" in browser.text("[data-option=mirostat] ~ .error, .field:has([data-option=mirostat]) .error")
    assert browser.value("[data-option=mirostat]") == "7" and output(browser) == ""
    browser.clear("[data-option=mirostat]")
    complete(browser, "count: one")
    assert output(browser).endswith(" end")


@pytest.mark.covers("W06")
def test_settings_are_not_saved_with_a_number_that_cannot_be_read(server, browser: Browser):
    open_page(browser, server)
    browser.click("#settings")
    browser.click("dialog details:has(.options) summary")
    browser.type("dialog [data-option=temperature]", "9")
    browser.run("for (const one of document.querySelectorAll('dialog details')) one.open = false")
    browser.click("dialog button.main")
    wait_until(lambda: browser.run("return document.activeElement.name") == "temperature", "the field in view")
    assert browser.exists("dialog[open]")
    browser.clear("dialog [data-option=temperature]")
    browser.type("dialog [data-option=temperature]", "0.5\ue007")
    wait_until(lambda: not browser.exists("dialog[open]"), "the dialog's end")
    assert '"sampling":{"temperature":0.5}' in browser.run("return localStorage.getItem('llama_srv.prefs')")


def test_presets_are_kept(server, browser: Browser):
    open_page(browser, server, "#complete")
    option(browser, "n_predict", "2")
    browser.click(".complete [aria-label='Save as preset']")
    browser.type("dialog input", "Two <b>")
    browser.press("\ue007")
    browser.click(".complete .reset")
    open_page(browser, server, "#complete")
    browser.run("""const s = document.querySelector('.complete .presets select');
        s.value = [...s.options].find((one) => one.textContent === 'Two <b>').value;
            s.dispatchEvent(new Event('change'));""")
    complete(browser, "count: one")
    assert output(browser) == "count: one two three"


def test_a_gap_is_filled_in_the_middle(serve, browser: Browser, tiny_bpe_fim_model: Path):
    server = serve("-m", tiny_bpe_fim_model, "-t", "1")
    open_page(browser, server, "#complete")
    option(browser, "n_predict", "4")
    browser.clear("#prompt")
    browser.type("#prompt", "once upon")
    browser.click("#gap")
    browser.type("#prompt", " the end")
    browser.click("#send")
    wait_until(lambda: browser.is_enabled("#take"), "the completion to end")
    text = output(browser)
    assert text.startswith("once upon") and text.endswith(" the end") and len(text) > len("once upon the end")
    assert "once upon" in server.get("/slots").json()[0]["prompt"]


@pytest.mark.covers("F01")
def test_grammar_and_schema_are_checked_and_used(server, browser: Browser):
    open_page(browser, server, "#complete")
    choose = (
        "const s = document.querySelector('#constraint'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))"
    )

    def verdict(kind: str, text: str) -> str:
        browser.run(choose, kind)
        browser.run("document.querySelector('#rule').value = arguments[0]", text)
        browser.click("#check")
        wait_until(lambda: browser.text("#verdict"), "the verdict")
        return browser.text("#verdict")

    assert verdict("json_schema", "{").startswith("Not JSON")
    assert "thing" in verdict("json_schema", '{"type": "thing"}')
    assert "grammar" in verdict("grammar", "root ::= (").lower()
    assert verdict("json_schema", '{"enum": ["a"]}').startswith("Good")
    assert verdict("grammar", 'root ::= " four" " two"').startswith("Good")
    complete(browser, "x")
    assert output(browser) == "x four two"
    assert len(browser.console_errors()) <= 1  # the refused grammar


def test_tokens_show_their_probabilities_and_alternatives(server, browser: Browser):
    open_page(browser, server, "#complete")
    browser.click("#probs")
    option(browser, "n_predict", "4")
    complete(browser, "count: one")
    assert output(browser) == "count: one two three four five"
    tokens = browser.run(
        "return [...document.querySelectorAll('.token')].map((one) => [one.textContent, one.className, one.tabIndex])"
    )
    assert [text for text, _, _ in tokens] == [" two", " three", " four", " five"]
    assert [index for *_, index in tokens] == [0, -1, -1, -1]
    browser.run("document.querySelectorAll('.token')[0].focus()")
    browser.press("\ue014")  # to the next token
    browser.press("\ue007")
    wait_until(
        lambda: browser.run("return document.querySelector('.alternatives').matches(':popover-open')"), "the menu"
    )
    choices = browser.run(
        "return [...document.querySelectorAll('.alternatives button')].map((one) => one.firstChild.textContent)"
    )
    assert choices[0] == "·three" and len(choices) == 8
    browser.run(
        "[...document.querySelectorAll('.alternatives button')].find((one) => !one.disabled && one.firstChild.textContent !== '·three').click()"
    )
    wait_until(lambda: browser.is_enabled("#take"), "the other continuation")
    assert output(browser).startswith("count: one two") and not output(browser).startswith("count: one two three")


# ---------------------------------------------------------------------------------------- server view


@pytest.mark.both_browsers
def test_the_server_view_shows_slots_and_draws_metrics(server, browser: Browser):
    open_page(browser, server, "#server")
    wait_until(lambda: browser.run("return document.querySelectorAll('.card').length") == 2, "both slots")
    server.complete("count: one", temperature=0)
    wait_until(lambda: "count: one two three" in browser.text(".slots"), "the prompt and what followed in its slot")

    def has_lines() -> bool:
        # A rate needs two samples with a request between them, and the page takes its first when it likes.
        server.complete("count: one", temperature=0)
        return browser.run("""return [...document.querySelectorAll('canvas')].every((one) => {
            const { data } = one.getContext('2d').getImageData(0, 0, one.width, one.height);
            return new Set(new Uint32Array(data.buffer)).size > 2; })""")

    wait_until(has_lines, "lines in all charts", every=0.2)
    wait_until(lambda: "recite" in (facts := browser.text(".facts")) and "2,048" in facts, "the model's facts")


def test_slots_have_no_buttons_where_they_cannot_be_saved(serve, browser: Browser, recite_model: Path):
    server = serve("-m", recite_model, "-t", "1")
    open_page(browser, server, "#server")
    wait_until(lambda: browser.exists(".card"), "the slots")
    assert browser.run("return [...document.querySelectorAll('.card button')].some((one) => one.offsetParent)") is False


def test_slots_are_saved_erased_and_restored(server, browser: Browser):
    server.complete("count: one", temperature=0, id_slot=0)
    open_page(browser, server, "#server")
    wait_until(lambda: browser.exists(".card"), "the slots")

    def act(n: int) -> None:
        browser.run("document.querySelectorAll('.card')[0].querySelectorAll('button')[arguments[0]].click()", n)
        browser.run("document.querySelector('dialog .row.end button:last-child').click()")
        wait_until(lambda: "Done, " in browser.text("#toasts"), "the answer")
        browser.run("document.querySelector('#toasts').replaceChildren()")

    act(0)
    act(2)
    act(1)
    again = server.complete("count: one", temperature=0, id_slot=0)
    assert again["timings"]["cache_n"] > 0 and again["content"] == ANSWER.removeprefix(" one")


def test_lora_scales_follow_their_sliders(serve, browser: Browser, tiny_spm_model: Path, tiny_lora: Path):
    server = serve("-m", tiny_spm_model, "-t", "1", "--lora", tiny_lora)
    open_page(browser, server, "#server")
    wait_until(lambda: browser.exists(".lora input"), "the slider")
    browser.run(
        "const s = document.querySelector('.lora input'); s.value = 0.25; s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change'))"
    )
    wait_until(lambda: server.get("/lora-adapters").json()[0]["scale"] == 0.25, "the new scale")
