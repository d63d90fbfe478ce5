"""Opens the built site in headless Chromium, at the widths of a desktop and of a phone, and says what is wrong.

    mkdocs build --strict && python docs/tools/check_site.py --screenshots screenshots

Needs Chromium and its driver (Debian: chromium, chromium-driver), and selenium, of the extra `browser`. Every page
is looked at for errors in the console, requests that leave this machine, images that are missing, formulas that are not
drawn, and content that makes the page scroll sideways; on the front page the search must find something.
"""

import argparse
import functools
import http.server
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

from selenium import webdriver
from selenium.webdriver.common.by import By

SITE = pathlib.Path(__file__).parents[2] / "site"
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}

PROBLEMS = r"""
const found = [], width = arguments[0];  // of the window; that of a phone may have zoomed out
for (const image of document.images) {
  if (!image.complete || !image.naturalWidth) found.push("missing image " + image.src);
}
if (document.documentElement.scrollWidth > width) {
  const wide = [...document.querySelectorAll("article *")].filter(
    element => element.getBoundingClientRect().right > width + 1);
  found.push("scrolls sideways: " + document.documentElement.scrollWidth + " pixels of " + width
    + (wide.length ? ", " + wide[0].outerHTML.slice(0, 120) : ""));
}
for (const formula of document.querySelectorAll("math")) {
  const box = formula.getBoundingClientRect();
  if (formula.checkVisibility() && (box.width < 2 || box.height < 2)) found.push("no formula " + formula.textContent);
}
const text = document.createTreeWalker(document.querySelector("article") || document.body, NodeFilter.SHOW_TEXT);
while (text.nextNode()) {
  if (/\\[(\[]|\$\$/.test(text.currentNode.data) && !text.currentNode.parentElement.closest("code, pre"))
    found.push("formula not converted: " + text.currentNode.data.slice(0, 80));
}
for (const entry of performance.getEntriesByType("resource")) {
  if (!entry.name.startsWith(location.origin) && !entry.name.startsWith("data:")) found.push("loads " + entry.name);
}
return found;
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screenshots", type=pathlib.Path, help="folder for a picture of each page at each width")
    parser.add_argument("--only", default="", help="only pages whose address contains this")
    options = parser.parse_args()
    pages = [page for page in sorted(SITE.rglob("*.html")) if page.name != "404.html" and options.only in str(page)]
    if not pages:
        parser.error(f"there are no pages in {SITE}: run `mkdocs build --strict` first")
    with tempfile.TemporaryDirectory() as profile:
        address, driver = serve(), browser(profile)
        try:
            problems = list(look(driver, address, pages, options.screenshots))
        finally:
            driver.quit()
    print(*problems, sep="\n")
    print(f"{len(pages)} pages at {len(WIDTHS)} widths: {len(problems)} problems")
    raise SystemExit(bool(problems))


def serve() -> str:
    """Serves the site on a free port of this machine, in a thread that ends with the process."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def browser(profile: str) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for name in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "hide-scrollbars",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{name}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    # Named, so that selenium does not look for one in the network.
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def look(
    driver: webdriver.Chrome, address: str, pages: list[pathlib.Path], screenshots: pathlib.Path | None
) -> Iterator[str]:
    """Yields what is wrong with each page at each width."""
    for device, (width, height) in WIDTHS.items():
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": device == "phone"}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for page in pages:
            name = page.relative_to(SITE).as_posix().removesuffix("index.html")
            driver.get(f"{address}/{name}")
            # Pictures that would load when they come into sight.
            driver.execute_script("for (const image of document.images) image.loading = 'eager'")
            deadline = time.monotonic() + 10
            while not driver.execute_script(
                "return document.readyState === 'complete' && [...document.images].every(image => image.complete)"
            ):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            found = driver.execute_script(PROBLEMS, width)
            found += [f"console: {entry['message']}" for entry in driver.get_log("browser") if entry["level"] != "INFO"]
            if not name:
                found += search(driver, device)
            yield from (f"{device} /{name}: {problem}" for problem in found)
            if screenshots:
                screenshots.mkdir(parents=True, exist_ok=True)
                target = screenshots / f"{name.strip('/').replace('/', '-') or 'home'}-{device}.png"
                driver.get(f"{address}/{name}")
                driver.save_screenshot(str(target))


def search(driver: webdriver.Chrome, device: str) -> list[str]:
    """Returns what is wrong with the search."""
    driver.execute_script("document.querySelector('[data-md-toggle=search]').click()")
    time.sleep(0.5)
    driver.find_element(By.CSS_SELECTOR, "[data-md-component=search-query]").send_keys("certified radius")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if driver.find_elements(By.CSS_SELECTOR, ".md-search-result__item a"):
            return []
        time.sleep(0.1)
    return ["the search finds nothing"]


if __name__ == "__main__":
    main()
