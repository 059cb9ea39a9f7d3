"""The lab in a real browser: JupyterLab on the loop-back address, driven by Playwright; every control is moved."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

from mirl_study.store import project_root

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[browser]")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium on this machine"),
]
LAB = "00_lottery_lab"
CELLS = [cell.id for cell in nbformat.read(project_root() / "notebooks" / f"{LAB}.ipynb", as_version=4).cells]
SHOTS = {"degrade": "station1", "prune": "station2", "play": "station3", "luck": "station4", "explore": "station5"}
SECONDS = 240  # for what waits for the kernel
ACTION = 20  # seconds for everything else
BENIGN = ("favicon",)  # what a console says that is no fault of ours
PANELS = ("degrade", "prune", "play", "scopes", "luck", "explore", "viewer", "browse")
QUESTIONS = ("gains", "at-once", "holds", "ahead", "reinit", "shuffled", "shared")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab on a copy of the notebooks, with folders of its own; its address, token included."""
    home = tmp_path_factory.mktemp("jupyter")
    shutil.copytree(project_root() / "notebooks", home / "notebooks")
    settings = home / "settings" / "@jupyterlab"
    for name, values in {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }.items():
        path = settings / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    port, token = free_port(), secrets.token_hex(8)
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    folders |= {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = {**os.environ, **{name: str(home / folder) for name, folder in folders.items()}}
    environment |= {"PYTHONPATH": str(project_root()), "OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += [f"--ServerApp.root_dir={home / 'notebooks'}", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    command += [f"--IdentityProvider.token={token}", "--ServerApp.port_retries=0"]
    with (home / "log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/api?token={token}"), child, home / "log")
        yield f"http://127.0.0.1:{port}/lab/tree/{LAB}.ipynb?token={token}"
    finally:
        child.terminate()
        child.wait(30)


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(address, timeout=2).status == 200
    except OSError:
        return False


def wait_for(ready: Callable[[], bool], child: subprocess.Popen, log: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert child.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.3)


@pytest.fixture(scope="module")
def page(server: str):
    """The lab after all its cells have run; at the end, the browser's console must be clean."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.set_default_timeout(1000 * ACTION)
        page.faults = []
        page.on("console", lambda said: said.type == "error" and page.faults.append(f"{said.text} {said.location}"))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.goto(server)
        page.wait_for_function(
            "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
            timeout=1000 * SECONDS,
        )
        for command in ("application:toggle-left-area", "notebook:run-all-cells"):
            page.evaluate(f"window.jupyterapp.commands.execute('{command}').then(() => null)")
        yield page
        browser.close()


def cells(page) -> list[dict]:
    """Execution count and errors of every cell, as the notebook's model has them."""
    return page.evaluate(
        """() => window.jupyterapp.shell.currentWidget.content.widgets.map(cell => {
            const shared = cell.model.sharedModel;
            const outputs = shared.outputs ?? [];
            return {
                code: shared.cell_type === 'code',
                count: shared.execution_count,
                errors: outputs.filter(o => o.output_type === 'error').map(o => `${o.ename}: ${o.evalue}`),
                stderr: outputs.filter(o => o.name === 'stderr').map(o => String(o.text)),
            };
        })"""
    )


def cell(page, name: str):
    return page.locator(".jp-Notebook .jp-Cell").nth(CELLS.index(name))


def clean(page) -> None:
    assert [fault for fault in page.faults if not any(word in fault for word in BENIGN)] == []
    assert [error for one in cells(page) for error in (*one["errors"], *one["stderr"])] == []


def seen(page, name: str) -> tuple[str, str]:
    """What a panel shows: the pixels of its picture, and its words."""
    own = cell(page, name).locator(".jp-OutputArea-output")
    picture = own.locator("img.widget-image")
    source = picture.first.get_attribute("src") if picture.count() else ""
    return source, " ".join(own.locator(".widget-html-content").all_inner_texts())


def changes(page, name: str, act: Callable[[], None]) -> None:
    """Acts, and waits until what the panel shows is another picture or other words."""
    before = seen(page, name)
    act()
    end = time.monotonic() + 20
    while seen(page, name) == before:
        assert time.monotonic() < end, f"{name}: nothing changed"
        page.wait_for_timeout(50)


def test_all_cells_run(page):
    last = max(place for place, one in enumerate(cells(page)) if one["code"])
    page.wait_for_function(
        f"window.jupyterapp.shell.currentWidget.content.widgets[{last}].model.sharedModel.execution_count !== null",
        timeout=1000 * SECONDS,
    )
    page.wait_for_function("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")
    assert all(one["count"] for one in cells(page) if one["code"])
    clean(page)


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_guess_is_answered(name, page):
    own = cell(page, name)
    button = own.locator("button.widget-button", has_text="Reveal")
    assert button.is_disabled()
    own.locator("input[type=radio]").first.focus()
    changes(page, name, lambda: (page.keyboard.press("Space"), button.click()))
    assert "you said" in own.inner_text()
    clean(page)


@pytest.mark.parametrize("name", PANELS)
def test_every_control_changes_something(name, page):
    own = cell(page, name)
    own.scroll_into_view_if_needed()
    assert name == "browse" or own.locator("img.widget-image").first.bounding_box()["width"] > 200
    sliders, lists = own.locator(".noUi-handle"), own.locator("select")
    assert sliders.count() + lists.count() > 0
    for place in range(sliders.count()):
        sliders.nth(place).focus()
        changes(page, name, lambda: page.keyboard.press("ArrowRight"))
    for place in range(lists.count()):
        chosen = lists.nth(place)
        count = chosen.locator("option").count()
        if count > 1:
            index = chosen.evaluate("element => element.selectedIndex")
            changes(page, name, lambda chosen=chosen, to=(index + 1) % count: chosen.select_option(index=to))
    clean(page)


def test_rounds_are_played_by_a_button(page):
    own = cell(page, "play")
    own.locator("button.widget-button", has_text="Restart").click()
    for _ in range(6):
        changes(page, "play", own.locator("button.widget-button", has_text="Play a round").click)
    assert "Round 6:" in own.inner_text()
    clean(page)


def test_a_picture_of_ones_own(page):
    own = cell(page, "viewer")
    photograph = next(iter(sorted((project_root() / "docs" / "img").glob("*.jpg"))), None)
    if photograph is None:
        pytest.skip("there is no photograph to upload")

    with page.expect_file_chooser() as chooser:
        own.locator("button.jupyter-button", has_text="A picture of your own").click()
    chooser.value.set_files(photograph)
    own.get_by_text("no target to compare with").first.wait_for()  # the list is filled first, and shows its first entry
    clean(page)


@pytest.mark.parametrize("name", SHOTS)
def test_a_station_fits_on_a_projector(name, page, tmp_path):
    """1280 x 720: picture, controls and words of a station are seen at once."""
    own = cell(page, name).locator(".jp-OutputArea")
    own.locator(".noUi-handle, select").first.focus()
    if name == "prune":
        page.keyboard.press("Home")
        for _ in range(7):
            changes(page, name, lambda: page.keyboard.press("ArrowRight"))
    own.evaluate("element => element.scrollIntoView({block: 'center'})")
    page.wait_for_timeout(500)
    box = own.bounding_box()
    assert box["height"] <= 605 and box["width"] <= 1280
    target = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    target.mkdir(parents=True, exist_ok=True)
    shot = page.screenshot(path=target / f"lab-{SHOTS[name]}.jpg", type="jpeg", quality=80)
    assert len(shot) > 10_000
    clean(page)
