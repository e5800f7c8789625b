"""The HTML page in a real browser: no console errors, search, folding, keys."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fgcompile.report import diff
from tests.report.models import Encoder

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--window-size=1200,1400",
]
PROBE = """
<script>
const log = [];
addEventListener("error", (event) => log.push("error: " + event.message));
addEventListener("DOMContentLoaded", () => {
  const get = (id) => document.getElementById(id);
  const shown = (where) => document.querySelectorAll(where + ":not([hidden])").length;
  const type = (text) => {
    get("search").value = text;
    get("search").dispatchEvent(new Event("input"));
  };
  const facts = {};
  facts.ready = document.body.dataset.ready;
  facts.changedOnly = shown("#bars li");
  get("only").click();
  facts.all = shown("#bars li");
  type("layer.3 mlp");
  facts.found = shown("#groups tbody tr");
  facts.count = get("count").textContent;
  type("clip");
  facts.opened = document.querySelector("details[data-searched]").open;
  type("nothing like this");
  facts.none = shown("[data-text]");
  type("");
  const bars = Array.from(document.querySelectorAll("#bars li"));
  const first = bars.find((bar) => bar.dataset.groups);
  first.focus();
  facts.together = document.querySelectorAll("#bars .together").length;
  facts.status = get("status").textContent;
  first.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true}));
  facts.moved = bars.indexOf(document.activeElement) - bars.indexOf(first);
  document.dispatchEvent(new KeyboardEvent("keydown", {key: "/", bubbles: true}));
  facts.slash = document.activeElement.id;
  document.activeElement.blur();
  const colour = () => getComputedStyle(document.body).backgroundColor;
  const before = colour();
  get("theme").click();
  facts.themes = before !== colour();
  facts.wide = document.documentElement.scrollWidth > innerWidth;
  facts.log = log;
  const out = document.createElement("pre");
  out.id = "facts";
  out.textContent = JSON.stringify(facts);
  document.body.append(out);
});
</script>
"""


@pytest.fixture(scope="module")
def page() -> str:
    layers = 24
    kept = {layer: range(layer % 5 + 4) for layer in range(layers)}
    heads = {layer: range(layer % 3 + 1) for layer in range(layers)}
    before = Encoder(layers=layers).build()
    after = Encoder(
        layers=layers, channels=kept, heads=heads, insert_after_gelu=[2, 7]
    ).build()
    return diff(before, after).to_html()


@pytest.fixture(scope="module")
def browser() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium on the path; the Debian package chromium has it")


def run(
    browser: str, folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_a_page_of_24_layers_is_small_and_needs_no_network(page):
    assert len(page.encode()) < 1_000_000
    assert "default-src 'none'" in page
    addresses = re.findall(r"(?:https?:)?//[\w.-]+", page)
    assert addresses == []


def test_search_folding_keys_and_themes_work_without_console_errors(
    page, browser, tmp_path
):
    path = tmp_path / "page.html"
    path.write_text(page.replace("</title>", f"</title>{PROBE}"), encoding="utf-8")
    done = run(browser, tmp_path, "--dump-dom", path.as_uri())
    match = re.search(r'<pre id="facts">(.*?)</pre>', done.stdout)
    assert match is not None, done.stderr
    facts = json.loads(match[1].replace("&gt;", ">").replace("&amp;", "&"))
    assert facts.pop("all") > facts.pop("changedOnly") > 24
    assert facts.pop("status").startswith("encoder.layer.0.attention.key: ")
    assert facts == {
        "ready": "yes",
        "found": 1,
        "count": facts["count"],
        "opened": True,
        "none": 0,
        "together": 4,
        "moved": 1,
        "slash": "search",
        "themes": True,
        "wide": False,
        "log": [],
    }
    assert facts["count"].endswith("rows match")
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_is_drawn(page, browser, tmp_path, width):
    image_module = pytest.importorskip("PIL.Image")
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    path.write_text(page, encoding="utf-8")
    done = run(
        browser,
        tmp_path,
        f"--window-size={width},5000",
        f"--screenshot={picture}",
        path.as_uri(),
    )
    assert "CONSOLE" not in done.stderr
    with image_module.open(picture) as image:
        colours = image.convert("RGB").getcolors(1 << 24)
    counts = {colour: count for count, colour in colours}
    assert counts.get((0x4C, 0x7F, 0xB8), 0) > 1000, "the bars of what stays"
    assert counts.get((0xD9, 0xA2, 0x9A), 0) > 1000, "the bars of what goes"
