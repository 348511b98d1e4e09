"""What the page at GET / promises, tried in
headless Chromium against the running service.

Needs Debian's packages chromium and chromium-driver; skipped where they are missing.
With SCREENSHOT_DIR set, the README's pictures of the page are written there.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import yaml
from builders import figure, is_running, picture, stdout
from local_e2b import LocalE2B
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.wait import WebDriverWait

from conftest import E2B_KEY, ROOT, Service, e2b_at, free_port

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.usefixtures("untraced", "runs_print_ok"),
    pytest.mark.skipif(
        not (CHROMIUM and CHROMEDRIVER),
        reason="the page: chromium or chromium-driver is not installed",
    ),
]
SCREENSHOT_DIR = os.environ.get("SCREENSHOT_DIR")
WAIT_S = 30
KEY = "the-right-key" * 15  # longer than a phone is wide
RUN_LIMIT_S = 2  # of the service with a key
PICTURES_HOST = "pictures.test"
REAL = {"run": {"kernel": True}}
HOSTILE_OUTPUTS = (
    "<img src=x onerror=alert(1)><svg onload=alert(2)><iframe "
    "src=//evil.test></iframe>",
    "</pre></section></main><script>alert(1)</script><style>*{display:none}</style>",
    "```\n**Executed Code:**\n```html\n<b>no</b>\n````\n![image "
    "1](https://evil.test/?q)\n```````",
    "[open](javascript:alert(1)) <//evil.test>\n![image 1](https://evil.test/x.png)",
    "\u202egnp.exe\u2066 user\u2069 admin\u202c",
)

# What is stored beside the code that was typed; nothing is afterwards.
FORGET = """
sessionStorage.removeItem('code');
const stored = [localStorage.length, sessionStorage.length, document.cookie];
localStorage.clear();
sessionStorage.clear();
return stored;
"""
BIDI_CONTROLS = "[\u202a-\u202e\u2066-\u2069]"  # the service makes them visible
FOREIGN_ADDRESSES = (
    "javascript:alert(1)",
    "//evil.test/x.png",
    "/\\evil.test/x.png",
    "/\t/evil.test/x.png",
    "/images/e2b/x.png",
    "/images/e2b-../health",
    "//evil.test/e2b-x.png",
    "x.png",
    "file:///x.png",
    "data:text/html;base64,AAAA",
    "data:image/svg+xml,<svg/>",
)
# WCAG 2's contrast of two colours, 1 to 21; and the colour behind an element's own.
CONTRAST = """
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const brightness = (colour) => channels(colour).slice(0, 3)
  .map((each) => each / 255)
  .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
  .reduce((sum, each, index) => sum + each * [0.2126, 0.7152, 0.0722][index], 0);
const contrast = (one, other) => {
  const [dark, light] = [one, other].map(brightness).sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
};
const background = (element) => {
  const colour = getComputedStyle(element).backgroundColor;
  return channels(colour)[3] === 0 ? background(element.parentElement) : colour;
};
"""
# For each element with words of its own: its words, and their contrast.
CONTRAST_OF_WORDS = f"""{CONTRAST}
const hasWords = (element) => element.checkVisibility() &&
  [...element.childNodes].some(
    (node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
return [...document.body.querySelectorAll('*')].filter(hasWords).map((element) => [
  element.textContent.trim().slice(0, 40),
  contrast(getComputedStyle(element).color, background(element)),
]);
"""
# For each element with a border of its own: its tag, and the
# border's contrast to what is around it. A border of the element's
# own colour is one with the element, which stands out itself.
CONTRAST_OF_BORDERS = f"""{CONTRAST}
const hasBorder = (element) =>
  element.checkVisibility() && getComputedStyle(element).borderTopWidth !== '0px';
return [...document.body.querySelectorAll('*')].filter(hasBorder).map((element) => {{
  const border = getComputedStyle(element).borderTopColor;
  const edge = channels(border)[3] === 0 ? background(element) : border;
  return [element.tagName, contrast(edge, background(element.parentElement))];
}});
"""


def launch(profile: Path, *flags: str) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--no-proxy-server",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-features=HttpsUpgrades,HttpsFirstBalancedModeAutoEnable,"
        "SpareRendererForSitePerProcess",
        "--window-size=1100,900",
        f"--user-data-dir={profile}",
        *flags,
    ):
        options.add_argument(flag)
    return webdriver.Chrome(options, webdriver.ChromeService(str(CHROMEDRIVER)))


@pytest.fixture(scope="module", autouse=True)
def _direct() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        yield


@contextmanager
def serving(e2b: LocalE2B, **environ: str) -> Iterator[Service]:
    service = Service(e2b_at(e2b.url) | environ)
    try:
        service.wait_until_ready(WAIT_S)
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def open_service(e2b: LocalE2B) -> Iterator[Service]:
    """For everybody, and with pictures in its answers."""
    with serving(e2b, ALLOWED_HOSTS="box.test,code.test") as service:
        yield service


@pytest.fixture(scope="module")
def keyed_serving_service(
    e2b: LocalE2B, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """It asks for KEY, and serves the pictures of its runs at PICTURES_HOST."""
    port = free_port()
    environ = {
        "PROXY_API_KEY": KEY,
        "RUN_TIMEOUT_S": str(RUN_LIMIT_S),
        "IMAGE_DIR": str(tmp_path_factory.mktemp("pictures")),
        "IMAGE_URL": f"http://{PICTURES_HOST}:{port}/images",
        "PORT": str(port),
    }
    with serving(e2b, **environ) as service:
        yield service


@pytest.fixture(scope="module")
def keyed_linking_service(
    e2b: LocalE2B, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """It asks for KEY, has one slot, publishes pictures for LibreChat, keeps files."""
    environ = {
        "PROXY_API_KEY": KEY,
        "IMAGE_DIR": str(tmp_path_factory.mktemp("linked")),
        "IMAGE_URL": "/images/e2b",
        "FILES_DIR": str(tmp_path_factory.mktemp("files")),
        "MAX_CONCURRENT_RUNS": "1",
    }
    with serving(e2b, **environ) as service:
        yield service


@pytest.fixture(scope="module")
def browser(
    open_service: Service,
    keyed_serving_service: Service,
    keyed_linking_service: Service,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[webdriver.Chrome]:
    """After the services, to end before them: they
    wait for connections that are kept open."""
    names = f"MAP code.test:80 127.0.0.1:{open_service.port}, MAP *.test 127.0.0.1"
    driver = launch(
        tmp_path_factory.mktemp("chromium"), f"--host-resolver-rules={names}"
    )
    driver.get("about:blank")
    yield driver
    driver.quit()


class Page:
    """The page in a tab of its own, with the eyes and hands of the person before it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.opened_at = {""}  # data: addresses have no host

    def open(self, address: str) -> Page:
        self.opened_at.add(urlsplit(address).netloc)
        self.driver.get(f"{address}/")
        self.wait(
            lambda: self.script("return document.getElementById('version').textContent")
        )
        return self

    def unfold(self) -> Page:
        """The ways to connect LibreChat, which are folded at first."""
        for summary in self.driver.find_elements(By.TAG_NAME, "summary"):
            summary.click()
        return self

    def __getitem__(self, element_id: str) -> WebElement:
        return self.driver.find_element(By.ID, element_id)

    def wait(self, condition: Callable[[], object]) -> None:
        replaced = [
            StaleElementReferenceException
        ]  # by the page, while it was looked at
        WebDriverWait(self.driver, WAIT_S, 0.1, replaced).until(lambda _: condition())

    def script(self, text: str, *arguments: object) -> Any:
        return self.driver.execute_script(text, *arguments)

    def devtools(self, command: str, **parameters: object) -> Any:
        return self.driver.execute_cdp_cmd(command, parameters)

    def look(self, scheme: str, width: int | None = None) -> None:
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", features=media)
        if width:
            size = {
                "width": width,
                "height": 800,
                "deviceScaleFactor": 2,
                "mobile": True,
            }
            self.devtools("Emulation.setDeviceMetricsOverride", **size)

    def run(self, code: str | None = None) -> Page:
        if code is not None:
            self.fill("code", code)
        self["run"].click()
        return self.finished()

    def fill(self, element_id: str, text: str) -> None:
        """As if pasted: key by key, a long text takes seconds."""
        self[element_id].clear()
        self.script("arguments[0].focus()", self[element_id])
        self.devtools("Input.insertText", text=text)

    def give_key(self) -> Page:
        self.wait(lambda: self["key"].is_displayed())
        self.fill("key", KEY)
        return self

    def finished(self) -> Page:
        self.wait(lambda: self["run"].is_enabled() and self["result"].is_displayed())
        return self

    def shown(self, selector: str = "pre") -> list[str]:
        """The text of each such element in the result, to the character."""
        found = self["result"].find_elements(By.CSS_SELECTOR, selector)
        return [element.get_property("textContent") for element in found]

    def requested(self) -> list[str]:
        """Each address asked for since the last call, by whatever part of the page."""
        messages = [
            json.loads(line["message"])["message"]
            for line in self.driver.get_log("performance")
        ]
        sent = [
            each["params"]
            for each in messages
            if each["method"] == "Network.requestWillBeSent"
        ]
        return [each["request"]["url"] for each in sent]

    def accessibility_tree(self) -> list[dict[str, str]]:
        """Role, name and properties of each node
        that assistive technology is told of."""
        nodes = self.devtools("Accessibility.getFullAXTree")["nodes"]
        found = []
        for node in nodes:
            if node["ignored"] or node["role"]["value"] == "RootWebArea":
                continue
            properties = {
                each["name"]: str(each["value"].get("value")).lower()
                for each in node["properties"]
            }
            role, name = node["role"]["value"], node.get("name", {}).get("value", "")
            found.append({"focusable": "", "role": role, "name": name} | properties)
        return found

    def copy(self, what: str) -> str:
        """Presses that Copy button; what it says then."""
        button = self.driver.find_element(By.CSS_SELECTOR, f"[data-copies={what}]")
        button.click()
        said = button.find_element(By.XPATH, "preceding-sibling::*")
        self.wait(lambda: said.text)
        return said.text

    def focused(self) -> str:
        return str(
            self.script(
                "return document.activeElement.id || document.activeElement.tagName"
            )
        )


@pytest.fixture
def page(browser: webdriver.Chrome) -> Iterator[Page]:
    """Whatever happened in it: nothing left the
    origin, hit a rule of the CSP, or was stored.

    One tab is enough for the file, as each test opens the page anew.
    """
    page = Page(browser)
    page.requested()
    browser.get_log("browser")
    yield page
    elsewhere = [
        url for url in page.requested() if urlsplit(url).netloc not in page.opened_at
    ]
    complaints = [line["message"] for line in browser.get_log("browser")]
    stored = page.script(FORGET)
    page.devtools("Emulation.setEmulatedMedia", features=[])
    page.devtools("Emulation.clearDeviceMetricsOverride")
    assert elsewhere == []
    assert [line for line in complaints if "Failed to load resource" not in line] == []
    assert stored == [0, 0, ""]


def run_answers(*events: dict[str, Any], **answer: Any) -> dict[str, Any]:
    return {"run": {"events": list(events), **answer}}


def end_sandboxes(e2b: LocalE2B) -> None:
    """As E2B ends them: a run in one of them ends, too."""
    state = e2b.wait_for(lambda state: state["alive"], timeout_s=WAIT_S)
    for sandbox in state["sandboxes"]:
        address = f"{e2b.url}/sandboxes/{sandbox['id']}"
        requests.delete(address, headers={"X-API-Key": E2B_KEY}, timeout=10)


def runs_of(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that E2B was asked for, in the state that it tells."""
    return [each for each in state["requests"] if each["kind"] == "run"]


# What is uploaded, twice, and a picture; how much it is in all is printed, and there is
# a warning.
COPY_SOURCE = f"""
import sys
DOT = {picture(size=(1, 1))!r}
numbers = [int(line) for line in open("/mnt/data/numbers é.csv")]
with open("/mnt/data/doubled.txt", "w") as file:
    file.writelines(str(2 * number) + "\\n" for number in numbers)
with open("/mnt/data/dot.png", "wb") as file:
    file.write(DOT)
print(sum(numbers))
print("a warning", file=sys.stderr)
"""
RAISED = {
    "type": "error",
    "name": "ValueError",
    "value": "no",
    "traceback": "ValueError: no",
}


def drawn(width: int = 8) -> dict[str, Any]:
    """A grey PNG of that width and 8 pixels high."""
    return figure(picture(colour="grey", size=(width, 8)))


def test_the_plot_that_the_page_opens_with_is_drawn(
    page: Page, e2b: LocalE2B, open_service: Service
) -> None:
    e2b.set_script(REAL)
    page.open(open_service.url).run()
    assert page.shown() == ["Drawn from 400 points"]
    (picture,) = page["result"].find_elements(By.TAG_NAME, "img")
    page.wait(lambda: picture.get_property("complete"))
    assert picture.get_property("naturalWidth") > 300
    assert picture.accessible_name == "Picture 1 drawn by the code"
    assert page.shown(".badge") == ["ok"]


def test_typed_code_arrives_as_typed_and_its_echo_is_left_out(
    page: Page, e2b: LocalE2B, open_service: Service
) -> None:
    typed = "for n in range(2):\n    print(n, '<é>')"
    e2b.set_script(run_answers(stdout("0 <é>\n1 <é>\n"), drawn()))
    page.open(open_service.url)
    page.run(typed)
    assert runs_of(e2b.state())[-1]["body"]["code"].endswith(typed)
    assert page.shown("h3") == ["Console Output:"]
    assert page.shown() == ["0 <é>\n1 <é>"]


def test_a_run_asks_for_what_describes_the_service_and_execute_and_nothing_else(
    page: Page, browser: webdriver.Chrome, e2b: LocalE2B, open_service: Service
) -> None:
    e2b.set_script(run_answers(drawn()))
    url = open_service.url
    page.open(url).run()
    asked = [address for address in page.requested() if not address.startswith("data:")]
    described = {f"{url}/health", f"{url}/openapi.json"}
    assert (asked[0], set(asked[1:3]), asked[3:]) == (
        f"{url}/",
        described,
        [f"{url}/execute"],
    )
    assert browser.get_log("browser") == []


def test_while_it_runs_its_limit_is_said_and_seconds_are_counted(
    page: Page, e2b: LocalE2B, keyed_serving_service: Service
) -> None:
    e2b.set_script(run_answers(stdout("so far\n"), fault="silent"))
    page.open(keyed_serving_service.url).give_key()
    page["run"].click()
    page.wait(lambda: re.fullmatch(r"\d+\.\d s", page["elapsed"].text))
    assert page["state"].text == f"Running. It ends at {RUN_LIMIT_S} s at the latest."
    assert not page["run"].is_enabled()
    page.finished()
    assert page["elapsed"].text == ""
    assert page.shown(".badge") == ["timeout"]
    assert page["state"].text == "Ended at the time limit."
    assert page.shown()[0] == "so far"


def test_stop_ends_the_run(
    page: Page, e2b: LocalE2B, keyed_linking_service: Service
) -> None:
    e2b.set_script(run_answers(fault="silent"))
    page.open(keyed_linking_service.url).give_key()
    assert not page["stop"].is_displayed()
    page["run"].send_keys(Keys.ENTER)
    page.wait(page["stop"].is_displayed)
    # To what has the focus, which the button that was pressed is about to lose.
    webdriver.ActionChains(page.driver).send_keys(Keys.TAB).perform()
    assert page.focused() == "stop"
    e2b.wait_for(is_running)
    page["stop"].send_keys(Keys.ENTER)
    page.wait(page["run"].is_enabled)
    assert page["state"].text == "Stopped."
    assert page["elapsed"].text == ""
    assert not page["stop"].is_displayed()
    assert not page["result"].is_displayed()
    assert page.focused() == "run"
    health = f"{keyed_linking_service.url}/health"
    page.wait(lambda: requests.get(health, timeout=10).json()["runs_in_flight"] == 0)


def test_a_full_service_says_how_long_to_wait(
    page: Page, e2b: LocalE2B, keyed_linking_service: Service
) -> None:
    e2b.set_script(run_answers(fault="silent"))
    page.open(keyed_linking_service.url).give_key()
    with ThreadPoolExecutor(1) as other:
        url = f"{keyed_linking_service.url}/execute"
        headers = {"Authorization": f"Bearer {KEY}"}
        other.submit(
            requests.post, url, json={"code": "1"}, headers=headers, timeout=60
        )
        e2b.wait_for(is_running)
        page.run()
        assert page.shown(".failure") != []
        assert "status 503 · try again in " in page.shown("p")[1]
        end_sandboxes(e2b)


def test_a_result_stays_until_the_next_one_is_there(
    page: Page, e2b: LocalE2B, open_service: Service
) -> None:
    e2b.set_script(run_answers(stdout("first\n")))
    page.open(open_service.url).run()
    e2b.set_script(run_answers(fault="silent"))
    page["run"].click()
    e2b.wait_for(is_running)
    assert page["result"].is_displayed()
    assert page.shown() == ["first"]
    assert page["result"].get_attribute("class") == "old"
    page["stop"].click()
    page.finished()
    assert page.shown() == ["first"]
    assert page["result"].get_attribute("class") == ""
    e2b.set_script(run_answers(stdout("second\n")))
    page.run()
    assert page.shown() == ["second"]


def test_an_exception_is_shown_in_words(
    page: Page, e2b: LocalE2B, open_service: Service
) -> None:
    error = {
        "type": "error",
        "name": "ZeroDivisionError",
        "value": "division by zero",
        "traceback": (
            "Traceback (most recent call last)\nZeroDivisionError: division by zero"
        ),
    }
    e2b.set_script(run_answers(stdout("before\n"), error))
    page.open(open_service.url).run("1/0")
    assert page.shown("h3") == ["Console Output:", "Execution Error:"]
    assert "ZeroDivisionError: division by zero" in page.shown()[1]
    assert page.shown(".badge") == ["error"]
    assert page["state"].text == "The code raised an error."


def test_hostile_output_stays_text(
    page: Page, browser: webdriver.Chrome, e2b: LocalE2B, open_service: Service
) -> None:
    page.open(open_service.url)
    others = "return document.querySelectorAll(':not(#result, #result *)').length"
    tags = (
        "return [...document.querySelectorAll('#result *')].map((each) => each.tagName)"
    )
    before = page.script(others)
    for output in HOSTILE_OUTPUTS:
        e2b.set_script(run_answers(stdout(output + "\n")))
        page.run()
        assert not expected_conditions.alert_is_present()(browser)
        assert page.shown() == [
            re.sub(BIDI_CONTROLS, lambda found: f"\\u{ord(found[0]):x}", output)
        ]
        assert page.script(tags) == ["DIV", "H2", "SPAN", "SPAN", "H3", "PRE"]
        assert page.script(others) == before


def test_a_wrong_key_is_named_and_the_right_one_works(
    page: Page, e2b: LocalE2B, keyed_serving_service: Service
) -> None:
    e2b.set_script(run_answers(stdout("hello\n")))
    page.open(keyed_serving_service.url)
    page.wait(lambda: page["key"].is_displayed())
    assert page["key"].get_property("type") == "password"
    page.run()
    assert page.shown(".failure") == ["The service asks for its API key."]
    page["key"].send_keys("a-wröng-key")
    page.run()
    assert page.shown(".failure") == ["The service does not accept this API key."]
    assert "status 401" in page.shown("p")[1]
    assert (page.focused(), page["key"].get_attribute("aria-invalid")) == (
        "key",
        "true",
    )
    page.fill("key", KEY)
    page["key"].send_keys(Keys.ENTER)
    page.wait(lambda: page["state"].text == "Done.")
    assert page.finished().shown() == ["hello"]
    assert page["key"].get_attribute("aria-invalid") is None
    assert page.script(FORGET) == [0, 0, ""]
    assert "the-right" not in page["mcp"].text


def test_without_code_nothing_is_asked_and_the_page_says_what_to_do(
    page: Page, open_service: Service
) -> None:
    page.open(open_service.url)
    page.fill("code", " \n")
    page.requested()
    page["run"].click()
    page.wait(lambda: page["state"].text == "Write some code first.")
    assert page.focused() == "code"
    assert page["run"].is_enabled()
    assert page.requested() == []


def test_the_code_survives_a_reload_and_the_key_does_not(
    page: Page, keyed_serving_service: Service
) -> None:
    page.open(keyed_serving_service.url).give_key()
    page.fill("code", "mine = 'é'")
    page.open(keyed_serving_service.url)
    assert page["code"].get_property("value") == "mine = 'é'"
    assert page["key"].get_property("value") == ""


def test_a_browser_that_forbids_storage_is_no_obstacle(
    page: Page, open_service: Service
) -> None:
    forbid = (
        "Object.defineProperty(window, 'sessionStorage', {get() { throw Error(); }})"
    )
    added = page.devtools("Page.addScriptToEvaluateOnNewDocument", source=forbid)
    try:
        page.open(open_service.url)
        assert page.run("print(1)").shown() == ["ok"]
    finally:
        page.devtools("Page.removeScriptToEvaluateOnNewDocument", **added)
        page.open(open_service.url)  # whose storage can be looked at


def test_a_request_that_is_refused_says_why_and_which_it_was(
    page: Page, open_service: Service
) -> None:
    surrogate = "'\ud800'"
    page.open(open_service.url)
    page.script("arguments[0].value = '\\ud800'", page["code"])
    page.run()
    refusal = requests.post(
        f"{open_service.url}/execute", json={"code": surrogate}, timeout=10
    ).json()["error"]
    assert page.shown(".failure") == [refusal["message"]]
    assert page.shown("p")[1].startswith("status 400 · request ")
    assert page["state"].text == "No result."


def test_a_lost_network_is_said_in_words(
    page: Page, browser: webdriver.Chrome, open_service: Service
) -> None:
    page.open(open_service.url)
    browser.set_network_conditions(offline=True, latency=0, throughput=0)
    try:
        page.run()
    finally:
        browser.delete_network_conditions()
    assert page.shown(".failure")[0].startswith(
        "The service cannot be reached, or the connection was lost."
    )


@pytest.mark.parametrize(
    ("status", "body"), [(502, "<html>Bad gateway"), (200, "[1, {}]")]
)
def test_an_answer_that_is_not_the_services_is_said_in_words(
    page: Page, open_service: Service, status: int, body: str
) -> None:
    page.open(open_service.url)
    page.script(
        "const [status, body] = arguments; fetch = async () => new Response(body, "
        "{status})",
        status,
        body,
    )
    page.run()
    said = {
        502: "Something between this page and the service",
        200: "The answer has not the form",
    }
    assert page.shown(".failure")[0].startswith(said[status])
    assert page["state"].text == "No result."


def test_pictures_are_taken_from_data_and_web_addresses_only(
    page: Page, open_service: Service
) -> None:
    page.open(open_service.url)
    for address in FOREIGN_ADDRESSES:
        page.script(
            "result.replaceChildren(); showPicture(arguments[0], 'It')", address
        )
        assert page.shown("img") == [], address
        assert page.shown("p") == ["It has an address that this page does not open."]


def test_a_picture_published_for_librechat_is_shown_from_the_services_own_address(
    page: Page, e2b: LocalE2B, keyed_linking_service: Service
) -> None:
    e2b.set_script(run_answers(stdout("words\n"), drawn()))
    page.open(keyed_linking_service.url).give_key().run()
    page.wait(lambda: page.script("return document.images[0]?.naturalWidth") == 8)
    [asked] = [each for each in page.requested() if "/images/" in each]
    assert asked.startswith(f"{keyed_linking_service.url}/images/e2b-")
    assert page.shown("h3, pre, p") == ["Console Output:", "words"]


def test_a_published_picture_that_is_gone_is_said_with_its_address(
    page: Page, keyed_linking_service: Service
) -> None:
    page.open(keyed_linking_service.url)
    page.script(
        "result.hidden = false; showPicture('/images/e2b/e2b-gone.png', 'Picture 1')"
    )
    page.wait(lambda: not page.shown("img"))
    said = "Picture 1 could not be loaded from /images/e2b-gone.png"
    assert page.shown("p") == [said]


def test_a_picture_published_at_an_address_of_its_own_is_shown_and_its_link_is_not(
    page: Page, e2b: LocalE2B, keyed_serving_service: Service
) -> None:
    e2b.set_script(run_answers(stdout("words\n"), drawn()))
    page.open(keyed_serving_service.url).give_key()
    page.opened_at.add(f"{PICTURES_HOST}:{keyed_serving_service.port}")
    page.run()
    page.wait(lambda: page.script("return document.images[0]?.naturalWidth") == 8)
    assert page.shown("h3, pre, p") == ["Console Output:", "words"]


def test_everything_can_be_done_by_keyboard(
    page: Page, e2b: LocalE2B, open_service: Service
) -> None:
    e2b.set_script(run_answers(stdout("by keys\n")))
    page.open(open_service.url)

    def press(*keys: str) -> str:
        page.driver.switch_to.active_element.send_keys(*keys)
        return page.focused()

    assert press(Keys.TAB) == "code"
    press(Keys.CONTROL, Keys.ENTER)
    assert page.finished().shown() == ["by keys"]
    press(Keys.ESCAPE)
    assert press(Keys.TAB) == "run", "Esc, then Tab leaves the code box"
    outline = page.script(
        "return getComputedStyle(document.activeElement).outlineStyle"
    )
    assert outline == "solid"
    press(Keys.SPACE)
    page.finished()
    page.wait(lambda: page.focused() == "run")
    shown = ["PRE", "SUMMARY", "A", "SUMMARY", "BUTTON", "mcp"]
    shown += ["SUMMARY", "BUTTON", "actions", "BUTTON", "openapi"]
    for each in shown:
        assert press(Keys.TAB) == each
        if each == "SUMMARY":
            press(Keys.ENTER)
    assert press(Keys.TAB) == "A"


INDENTED = {
    # text, with | where the selection begins and ends: keys, text afterwards
    "a|": ([Keys.TAB], "a   |"),
    "|": ([Keys.TAB], "    |"),
    "if 1:\n|a\nb|\nc": ([Keys.TAB], "if 1:\n|    a\n    b|\nc"),
    "    a|": ([Keys.SHIFT, Keys.TAB], "a|"),
    "\ta|\nb": ([Keys.SHIFT, Keys.TAB], "a|\nb"),
    "|  a\n\n      b|": ([Keys.SHIFT, Keys.TAB], "|a\n\n  b|"),
    "a|b": ([Keys.SHIFT, Keys.TAB], "a|b"),
}


@pytest.mark.parametrize("before", INDENTED, ids=repr)
def test_tab_indents(page: Page, open_service: Service, before: str) -> None:
    keys, after = INDENTED[before]
    page.open(open_service.url)
    page.script(
        "code.value = arguments[0]; code.focus();"
        "code.setSelectionRange(arguments[1], arguments[2])",
        before.replace("|", ""),
        before.index("|"),
        before.rindex("|") - (before.count("|") - 1),
    )
    page["code"].send_keys(*keys)
    text = page["code"].get_property("value")
    begin, end = page.script("return [code.selectionStart, code.selectionEnd]")
    marked = text[:begin] + "|" + text[begin:]
    if begin != end:
        marked = marked[: end + 1] + "|" + marked[end + 1 :]
    assert marked == after
    assert page.focused() == "code"


def test_the_code_box_grows_with_the_code(page: Page, open_service: Service) -> None:
    page.open(open_service.url)
    heights = []
    for lines in (1, 6, 20, 500):
        page.fill("code", "1\n" * lines)
        heights.append(page["code"].rect["height"])
    assert heights[0] <= heights[1]
    assert heights[2] > heights[1] + 200
    assert heights[3] < 900 * 0.71, "it leaves room for the rest of the page"
    overflow = "return code.scrollHeight > code.clientHeight"
    assert page.script(overflow)
    page.fill("code", "1\n" * 20)
    assert not page.script(overflow)


def choose(page: Page, *files: Path) -> None:
    page["file"].send_keys("\n".join(map(str, files)))


def test_run_takes_the_files_and_shows_what_comes_back(
    page: Page, e2b: LocalE2B, keyed_linking_service: Service, tmp_path: Path
) -> None:
    e2b.set_script(REAL)
    (tmp_path / "numbers é.csv").write_text("1\n2\n")
    page.open(keyed_linking_service.url).give_key()
    choose(page, tmp_path / "numbers é.csv")
    page.run(COPY_SOURCE)
    assert page.shown(".failure") == []
    assert page.shown("h2, h3") == ["Result", "Console Output:", "Stderr:", "Files:"]
    assert page.shown(".badge") == ["ok"]
    assert page["state"].text == "Done."
    assert re.fullmatch(r"\d+\.\d s", page.shown(".badge + span")[0])
    assert page.shown() == ["3\n", "a warning\n"]
    assert page.shown("a") == ["dot.pngPNG · 69 B", "doubled.txtTXT · 4 B"]
    [picture] = page["result"].find_elements(By.TAG_NAME, "img")
    page.wait(lambda: picture.get_property("complete"))
    assert picture.get_property("naturalWidth") == 1
    assert picture.accessible_name == "dot.png drawn by the code"
    page.devtools(
        "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path)
    )
    page["result"].find_elements(By.TAG_NAME, "a")[1].click()
    page.wait((tmp_path / "doubled.txt").is_file)
    assert (tmp_path / "doubled.txt").read_text() == "2\n4\n"


def test_files_that_fail_say_so_by_keys_too_and_can_be_removed(
    page: Page, e2b: LocalE2B, keyed_linking_service: Service, tmp_path: Path
) -> None:
    e2b.set_script(REAL)
    (tmp_path / "a.csv").write_text("1\n")
    page.open(keyed_linking_service.url).give_key()
    assert not page["no-files"].is_displayed()
    choose(page, tmp_path / "a.csv")
    page.fill("code", "print(open('a.csv').read())\n1/0")
    page["code"].send_keys(Keys.CONTROL, Keys.ENTER)
    page.finished()
    assert page.shown(".badge") == ["error"]
    assert page["state"].text == "The code raised an error."
    assert page.shown()[0] == "1\n\n"
    assert "ZeroDivisionError" in page.shown()[1]
    page["no-files"].click()
    assert page.focused() == "file"
    assert not page["no-files"].is_displayed()
    page.run("print(open('a.csv').read())")
    assert "FileNotFoundError" in page.shown()[-1]


def test_a_file_that_is_refused_is_said_in_the_services_words(
    page: Page, keyed_linking_service: Service
) -> None:
    """A browser never sends such a name: it is put into the form by script."""
    page.open(keyed_linking_service.url).give_key()
    page.script(
        "const files = new DataTransfer();"
        "files.items.add(new File(['x'], 'n'.repeat(300)));"
        "file.files = files.files;"
    )
    page.run()
    assert page.shown(".failure") != []
    assert page["state"].text == "No result."


def test_the_ways_are_folded_and_the_native_one_is_first(
    page: Page, open_service: Service, keyed_linking_service: Service
) -> None:
    parts = ("file", "code-api", "code-api-off")
    page.open(open_service.url)
    headings = page.driver.find_elements(By.CSS_SELECTOR, "summary h3")
    assert [each.text for each in headings] == [
        "Native code interpreter",
        "MCP",
        "Actions",
    ]
    assert not page["mcp"].is_displayed()
    page.unfold()
    assert page["mcp"].is_displayed()
    assert [page[each].is_displayed() for each in parts] == [False, False, True]
    page.open(keyed_linking_service.url).unfold()
    assert [page[each].is_displayed() for each in parts] == [True, True, False]
    setting = (
        "LIBRECHAT_CODE_BASEURL=http://e2b:YOUR_API_KEY@e2b-proxy:3001/v1\n"
        "LIBRECHAT_CODE_IMAGE_CHUNK_BYTES=1048576"
    )
    assert page["code-api"].text == setting


def test_what_can_be_used_has_a_name_of_its_own_and_the_state_is_announced(
    page: Page, e2b: LocalE2B, keyed_linking_service: Service
) -> None:
    e2b.set_script(run_answers(stdout("words\n"), RAISED))
    page.open(keyed_linking_service.url).unfold().give_key().run()
    page.script("stop.hidden = noFiles.hidden = false")
    controls = [
        each for each in page.accessibility_tree() if each["focusable"] == "true"
    ]
    names = [each["name"] for each in controls]
    assert all(names)
    assert len(set(names)) == len(names) == 27
    assert {
        "Python code",
        "Remove the files",
        "Stop",
        "Console Output",
        "Execution Error",
    } < set(names)
    assert page["state"].aria_role == "status"


def test_headings_are_in_order(
    page: Page, e2b: LocalE2B, open_service: Service
) -> None:
    e2b.set_script(run_answers(stdout("words\n")))
    page.open(open_service.url).run()
    headings = page.driver.find_elements(By.CSS_SELECTOR, "h1, h2, h3, h4, h5, h6")
    shown = [(each.tag_name, each.text) for each in headings if each.is_displayed()]
    assert shown[:4] == [
        ("h1", "Code interpreter for LibreChat"),
        ("h2", "Result"),
        ("h3", "Console Output:"),
        ("h2", "Connect LibreChat"),
    ]
    assert {level for level, _ in shown[4:]} == {"h3"}


def test_a_traceback_wraps_on_a_phone_and_a_table_does_not(
    page: Page, e2b: LocalE2B, open_service: Service
) -> None:
    long = "x" * 300
    raised = RAISED | {"traceback": f"ValueError: {long}"}
    warned = stdout(f"{long}\n") | {"type": "stderr"}
    e2b.set_script(run_answers(stdout(f"{long}\n"), warned, raised))
    page.look("light", width=360)
    page.open(open_service.url).run()
    overflow = page.script(
        "return [...result.querySelectorAll('pre')]"
        ".map((each) => each.scrollWidth > each.clientWidth)"
    )
    assert overflow == [True, False, False]


def test_a_phone_of_360_pixels_never_scrolls_sideways(
    page: Page, e2b: LocalE2B, keyed_serving_service: Service
) -> None:
    page.look("light", width=360)
    e2b.set_script(run_answers(stdout("x" * 500 + "\n"), drawn(width=1600)))
    page.open(keyed_serving_service.url).give_key()
    page.opened_at.add(f"{PICTURES_HOST}:{keyed_serving_service.port}")
    page.run("y" * 300)
    page.wait(lambda: page.script("return document.images[0]?.naturalWidth") == 1600)
    assert page.script("return document.documentElement.scrollWidth") == 360
    rights = "(each) => each.getBoundingClientRect().right"
    rights = page.script(
        f"return [...document.body.querySelectorAll('*')].map({rights})"
    )
    assert max(rights) <= 360


def test_words_and_borders_stand_out_from_their_background_light_and_dark(
    page: Page, e2b: LocalE2B, open_service: Service
) -> None:
    e2b.set_script(run_answers(stdout("words\n"), RAISED))
    page.open(open_service.url).run()
    for scheme in ("light", "dark"):
        page.look(scheme)
        contrasts = page.script(CONTRAST_OF_WORDS)
        assert len(contrasts) > 20
        assert [each for each in contrasts if each[1] < 4.5] == []
        borders = page.script(CONTRAST_OF_BORDERS)
        assert {"TEXTAREA", "BUTTON", "PRE", "SECTION"} <= {each[0] for each in borders}
        assert [each for each in borders if each[1] < 3] == []
        background = page.script(
            "return getComputedStyle(document.body).backgroundColor"
        )
        assert (int(re.findall(r"\d+", background)[0]) < 100) == (scheme == "dark")


def test_what_to_paste_follows_the_address_that_the_page_was_opened_at(
    page: Page, open_service: Service
) -> None:
    for name in ("127.0.0.1", "localhost", "e2b.localhost", "0.0.0.0", "box.test"):
        page.open(f"http://{name}:{open_service.port}").unfold()
        address = (
            f"{name}:{open_service.port}" if name == "box.test" else "e2b-proxy:3001"
        )
        document = json.loads(page["openapi"].get_property("textContent"))
        assert document["servers"] == [{"url": f"http://{address}"}]
        assert yaml.safe_load(page["mcp"].text) == {
            "mcpServers": {
                "python": {
                    "type": "streamable-http",
                    "url": f"http://{address}/mcp",
                    "timeout": 90000,
                    "serverInstructions": True,
                    "title": "Python",
                    "description": "Runs Python and draws plots",
                }
            },
            "mcpSettings": {"allowedAddresses": [address]},
        }
        # Without its port as well: so LibreChat's Action builder asks for it.
        allowed = [address.split(":")[0] + ":80", address]
        assert yaml.safe_load(page["actions"].text) == {
            "actions": {"allowedAddresses": allowed}
        }
        assert not page["key"].is_displayed(), "no key is asked for where none is set"


def test_a_key_adds_its_header_to_the_lines_and_rules_out_oauth(
    page: Page, keyed_serving_service: Service
) -> None:
    page.open(keyed_serving_service.url).unfold()
    notes = page.driver.find_elements(By.CLASS_NAME, "key-note")
    page.wait(lambda: notes[1].is_displayed())
    server = yaml.safe_load(page["mcp"].text)["mcpServers"]["python"]
    assert server["headers"] == {"Authorization": "Bearer YOUR_API_KEY"}
    assert server["requiresOAuth"] is False


def test_an_address_without_a_port_allows_port_80(page: Page) -> None:
    page.open("http://code.test").unfold()
    document = json.loads(page["openapi"].get_property("textContent"))
    assert document["servers"] == [{"url": "http://code.test"}]
    entry = yaml.safe_load(page["mcp"].text)
    assert entry["mcpServers"]["python"]["url"] == "http://code.test/mcp"
    assert entry["mcpSettings"] == {"allowedAddresses": ["code.test:80"]}
    assert yaml.safe_load(page["actions"].text) == {
        "actions": {"allowedAddresses": ["code.test:80"]}
    }


def test_copy_takes_the_lines_with_and_without_the_clipboard_api(
    page: Page, open_service: Service
) -> None:
    for name in ("127.0.0.1", "box.test"):
        page.open(f"http://{name}:{open_service.port}").unfold()
        assert page.script("return !!navigator.clipboard") == (name == "127.0.0.1")
        assert page.copy("mcp") == "Copied"
        page["code"].clear()
        page["code"].send_keys(Keys.CONTROL, "v")
        assert page["code"].get_property("value") == page["mcp"].text


def test_copy_leaves_the_text_selected_where_copying_is_forbidden(
    page: Page, open_service: Service
) -> None:
    page.open(open_service.url).unfold()
    page.script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.script("document.execCommand = () => false")
    assert page.copy("mcp") == "Selected: press Ctrl+C"
    assert page.script("return String(getSelection())") == page["mcp"].text


def test_what_is_copied_for_actions_is_the_document_itself(
    page: Page, open_service: Service
) -> None:
    page.open(open_service.url).unfold()
    assert page.copy("openapi") == "Copied"
    page["code"].clear()
    page["code"].send_keys(Keys.CONTROL, "v")
    served = requests.get(f"{open_service.url}/openapi.json", timeout=10).json()
    assert json.loads(page["code"].get_property("value")) == served


def test_the_page_says_what_the_service_is(page: Page, open_service: Service) -> None:
    page.open(open_service.url)
    document = requests.get(f"{open_service.url}/openapi.json", timeout=10).json()
    listed = re.fullmatch(r"Packages: (numpy.*matplotlib.*)\.", page["packages"].text)
    assert listed
    assert listed[1] in document["paths"]["/execute"]["post"]["description"]
    assert page["version"].text == document["info"]["version"]
    footer = page.driver.find_element(By.TAG_NAME, "footer")
    for link in footer.find_elements(By.TAG_NAME, "a"):
        assert requests.get(link.get_property("href"), timeout=10).status_code == 200
    assert page.driver.find_elements(By.CSS_SELECTOR, "a[href^='/docs/']")
    for link in page.driver.find_elements(By.CSS_SELECTOR, "a[href^='/docs/']"):
        path = urlsplit(link.get_property("href")).path
        answer = requests.get(f"{open_service.url}{path}", timeout=10)
        assert answer.text == (ROOT / path.lstrip("/")).read_text("utf-8")
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_where_e2b_is_the_machines_own_the_page_warns(
    page: Page, open_service: Service
) -> None:
    page.open(open_service.url)
    assert "unisolated" in page["unisolated"].text
    page.script(
        "showService({e2b_on_this_machine: false}, JSON.parse(arguments[0]))",
        page["openapi"].get_property("textContent"),
    )
    assert not page["unisolated"].is_displayed()


@pytest.mark.skipif(not SCREENSHOT_DIR, reason="SCREENSHOT_DIR is not set")
@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [
        ("page-light", "light", None),
        ("page-dark", "dark", None),
        ("page-phone", "light", 360),
    ],
)
def test_screenshots_for_the_readme(
    page: Page,
    e2b: LocalE2B,
    open_service: Service,
    name: str,
    scheme: str,
    width: int | None,
) -> None:
    page.look(scheme, width)
    e2b.set_script(REAL)
    page.open(open_service.url).run()
    page.wait(lambda: page.script("return document.images[0].complete"))
    page.script("document.activeElement.blur()")
    box = page.script(
        "return document.getElementById('result').getBoundingClientRect().toJSON()"
    )
    clip = {
        "x": 0,
        "y": 0,
        "width": box["left"] + box["right"],
        "height": box["bottom"] + 24,
        "scale": 1,
    }
    shot = page.devtools(
        "Page.captureScreenshot", clip=clip, captureBeyondViewport=True
    )
    target = Path(str(SCREENSHOT_DIR)) / f"{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(base64.b64decode(shot["data"]))
