"""Headless Chromium for tests of pages: screenshots, PDF, and a script's findings in the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

FINDINGS = """
<script>
window.addEventListener("load", function () {
  var root = document.documentElement, overlaps = [], outside = [];
  document.querySelectorAll("figure svg").forEach(function (svg) {
    var frame = svg.getBoundingClientRect();
    var texts = Array.from(svg.querySelectorAll("text")).map(function (text) {
      return { words: text.textContent, box: text.getBoundingClientRect() };
    }).filter(function (text) { return text.words.trim() && text.box.width; });
    texts.forEach(function (one, index) {
      var a = one.box;
      if (
        a.left < frame.left - 2 || a.right > frame.right + 2 || a.top < frame.top - 2 || a.bottom > frame.bottom + 2
      ) {
        outside.push(one.words);
      }
      texts.slice(index + 1).forEach(function (two) {
        var b = two.box;
        var width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        var height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (width > 2 && height > 0.35 * Math.min(a.height, b.height)) { overlaps.push([one.words, two.words]); }
      });
    });
  });
  var sorted = null, head = document.querySelector("table.sortable thead button");
  if (head) {
    head.click(); head.click();
    sorted = Array.from(head.closest("table").tBodies[0].rows, function (row) { return row.cells[0].textContent; });
  }
  var shown = null, select = document.querySelector(".filter select");
  if (select) {
    select.selectedIndex = 1;
    select.dispatchEvent(new Event("change"));
    shown = Array.from(select.closest("figure").querySelectorAll("tbody tr:not([hidden])"),
      function (row) { return row.dataset.group; });
  }
  console.log("FINDINGS " + JSON.stringify({
    width: root.clientWidth, scroll_width: root.scrollWidth, height: root.scrollHeight,
    background: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    axis: (function (text) { return text && getComputedStyle(text).fill; })(document.querySelector("figure svg text")),
    overlaps: overlaps, outside: outside, sorted: sorted, shown: shown,
    empty_pictures: Array.from(document.images).filter(function (image) { return !image.naturalWidth; }).length,
  }));
});
</script>
"""


def browser() -> str | None:
    """The browser's program, None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def run(page: Path, *options: str, size: tuple[int, int] = (1200, 2000)) -> str:
    """Open a page; returns what the browser logged, the page's console with it."""
    program = browser()
    assert program is not None
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command += [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={size[0]},{size[1]}", *options]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


def console(log: str) -> list[str]:
    """Lines that the page wrote to its console, errors with them."""
    return [match[1] for match in re.finditer(r'CONSOLE[:(]\d+\)?\] "(.*)", source: ', log)]


def findings(page: Path, *, width: int = 1200, dark: bool = False) -> dict[str, Any]:
    """Look at a page through a frame of so many pixels: sizes, colours, texts that overlap, what its script does.

    Raises:
        AssertionError: if the page writes anything else to its console, such as an error.
    """
    copy = page.with_name("looked_at.html")
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{FINDINGS}</body>"), encoding="utf-8")
    frame = page.with_name("frame.html")
    style = f"border:0;width:{width}px;height:3000px"
    frame.write_text(f'<body style="margin:0"><iframe src="{copy.name}" style="{style}"></iframe>', encoding="utf-8")
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    lines = console(run(frame, "--dump-dom", *options, size=(max(width, 600), 3000)))
    found = [line for line in lines if line.startswith("FINDINGS ")]
    assert len(lines) == len(found) == 1, lines
    return json.loads(found[0].removeprefix("FINDINGS ").replace('\\"', '"'))
