"""An installed Chromium, driven without a screen."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--force-device-scale-factor=1", "--lang=en", "--disable-dev-shm-usage",
)  # fmt: skip


def find_browser() -> tuple[str, str] | None:
    """Return the paths of Chromium and its driver, if both are installed."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return None if browser is None or driver is None else (browser, driver)


@contextmanager
def open_browser(profile: Path, width: int = 1280, height: int = 900) -> Iterator[Chrome]:
    found = find_browser()
    assert found is not None, "expected chromium and chromedriver on the path; install both (Debian: chromium-driver)"
    options = ChromeOptions()
    options.binary_location = found[0]
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=ChromeService(found[1]))
    try:
        browser.set_script_timeout(60)
        browser.set_page_load_timeout(60)
        yield browser
    finally:
        browser.quit()


def show_as(browser: Chrome, *, scheme: str = "light", width: int = 1280, height: int = 900) -> None:
    """Set the size of the page, and whether the system prefers light or dark."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "UTC"})
