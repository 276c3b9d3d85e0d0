"""The page in a real browser, light and dark, on a desktop and on a phone; not run without one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from opfuse.config import Config
from opfuse.pipeline import run

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), ""
)
MODELS = Path(__file__).resolve().parents[2] / "models"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SCHEMES = {"dark": 0, "light": 1}
# What no reader can see: what sticks out of the page, or of a box that does not scroll, and text
# that is wider than the box that it is drawn in.
CHECK = """<script>
window.onload = () => {
  const out = [];
  document.querySelectorAll("details").forEach(part => { part.open = true; });
  const width = document.documentElement.clientWidth;
  for (const part of document.querySelectorAll("body *:not(svg *)")) {
    const box = part.getBoundingClientRect();
    const inside = part.closest(".scroll");
    if (box.width && box.right > width + 1 && (!inside || inside === part)) {
      out.push("cut off: " + part.tagName + "." + part.className);
    }
    const style = getComputedStyle(part);
    if (style.overflowX === "hidden" && part.scrollWidth > part.clientWidth) {
      out.push("hidden: " + part.tagName + "." + part.className);
    }
  }
  for (const text of document.querySelectorAll("svg text:not(.mark)")) {
    const room = text.parentNode.querySelector("rect").getBoundingClientRect();
    if (text.getBoundingClientRect().width > room.width + 1) {
      out.push("label: " + text.textContent);
    }
  }
  const colours = getComputedStyle(document.body);
  const told = {out: out, width: width, ink: colours.color, paper: colours.backgroundColor};
  parent.postMessage(told, "*");
};
</script>"""
# A window is at least 500 pixels wide; a frame in it may be as narrow as a phone.
FRAME = """<!doctype html><script>onmessage = event => {
  document.body.innerHTML = "<pre>" + JSON.stringify(event.data) + "</pre>";
};</script><body><iframe src="PAGE" style="width: WIDTHpx; height: HEIGHTpx; border: 0"></iframe>"""


@pytest.fixture(scope="session", params=["llama", "vit", "bert"])
def page(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    run(Config(MODELS / f"{request.param}.onnx", reports=(path,)), "explain")
    path.write_text(path.read_text().replace("</body>", CHECK + "</body>"))
    return path


def opened(page: Path, size: tuple[int, int], scheme: int) -> tuple[dict, str]:
    """What the page tells of itself, and what the browser logged of it."""
    frame = page.with_name("frame.html")
    text = FRAME.replace("PAGE", page.name).replace("WIDTH", str(size[0]))
    frame.write_text(text.replace("HEIGHT", str(size[1])))
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
               "--hide-scrollbars", "--window-size=1400,1000", "--enable-logging=stderr",
               f"--blink-settings=preferredColorScheme={scheme}",
               f"--user-data-dir={page.parent / 'profile'}", frame.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    *_, told = re.findall(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    return json.loads(told), "\n".join(re.findall(r".*CONSOLE.*", done.stderr))


def brightness(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


@pytest.mark.skipif(not BROWSER, reason="not run: there is no chromium")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_cut_off(page, size, scheme):
    told, console = opened(page, SIZES[size], SCHEMES[scheme])
    assert console == ""
    assert told["width"] == SIZES[size][0]
    assert told["out"] == []
    darker, lighter = ("paper", "ink") if scheme == "dark" else ("ink", "paper")
    assert brightness(told[lighter]) - brightness(told[darker]) > 450
