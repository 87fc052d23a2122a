"""Images in the chat view, in a real browser on a server with a vision model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_browser import open_page
from tests.e2e.test_browser_chat import messages, say
from tests.e2e.test_media import mtmd_folder  # noqa: F401
from tests.e2e.webdriver import Browser, browser  # noqa: F401
from tests.media_files import picture, wav
from tests.support import ServerProcess, wait_until


@pytest.fixture
def seeing(
    serve: Callable[..., ServerProcess],
    mtmd_folder: Path,
    tiny_bpe_model: Path,  # noqa: F811
    mmproj_mlp: Path,
) -> ServerProcess:
    """A model that sees."""
    return serve(
        "-m", tiny_bpe_model, "--mmproj", mmproj_mlp, "--no-mmproj-offload", "-t", "1", "-c", "2048", "-n", "24"
    )


def test_images_go_with_the_message_also_those_that_only_the_browser_knows(
    seeing,
    browser: Browser,  # noqa: F811
    tmp_path: Path,
):
    open_page(browser, seeing)
    (tmp_path / "cat.png").write_bytes(picture(1))
    (tmp_path / "tone.wav").write_bytes(wav(0.1))
    browser.upload("#attach-file", tmp_path / "tone.wav")
    wait_until(lambda: "tone.wav" in browser.text("#toasts"), "the refusal of a sound")
    browser.upload("#attach-file", tmp_path / "cat.png")
    wait_until(lambda: browser.run("return document.querySelectorAll('.chip').length") == 1, "the first chip")
    browser.run("""const canvas = document.createElement('canvas');
        canvas.width = canvas.height = 56;
        canvas.getContext('2d').fillRect(0, 0, 30, 30);
        canvas.toBlob((blob) => {
          const files = new DataTransfer();
          files.items.add(new File([blob], 'dog.webp', { type: 'image/webp' }));
          document.querySelector('.view.chat').dispatchEvent(new DragEvent('drop', { dataTransfer: files,
              bubbles: true, cancelable: true }));
        }, 'image/webp');""")
    wait_until(lambda: browser.run("return document.querySelectorAll('.chip').length") == 2, "the second chip")
    say(browser, "the dog")
    assert messages(browser)[1][0] == "assistant" and messages(browser)[1][1]
    kinds = browser.run("return [...document.querySelectorAll('.message img')].map((one) => one.src.slice(0, 15))")
    assert kinds == ["data:image/png;"] * 2
