"""Pages in headless Chromium."""

import contextlib
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait


@contextlib.contextmanager
def opened(path):
    """Chromium with the page open; to load it takes longest."""
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs chromium and chromedriver on the PATH (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,1000",
                     "use-angle=swiftshader", "enable-unsafe-swiftshader"):  # fmt: skip
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
        browser.get(path.as_uri())
        yield browser


def wait_for(browser, condition, what):
    WebDriverWait(browser, 60, 0.1).until(lambda _: condition(), what)


def cameras(browser, scenes):
    """Where the scenes are seen from; None before all are drawn."""
    return browser.execute_script(
        "const drawn = arguments[0].map(id => document.getElementById(id)._fullLayout?.scene?._scene);"
        "return drawn.every(Boolean) ? drawn.map(scene => Object.values(scene.getCamera().eye)) : null",
        scenes,
    )


def assert_quiet(browser):
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
