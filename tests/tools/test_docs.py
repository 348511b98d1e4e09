"""What the README and the pages in docs/ say is what the code says."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from e2b import ConnectionConfig
from prometheus_client import REGISTRY

import metrics
from code_api.languages import LANGUAGES
from config import Config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(ROOT.glob("docs/*.md"))]
MAX_README_WORDS = 1100  # a newcomer reads it in five minutes


def rows_of_table(page: str, head: str) -> list[list[str]]:
    """The cells of the table that begins with the row `head`, without its head."""
    below = (ROOT / page).read_text("utf-8").split(f"\n{head}\n", 1)[1]
    rows = below.split("\n\n", 1)[0].splitlines()[1:]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows
    ]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in this language, without their indentation."""
    text = (ROOT / page).read_text("utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.M | re.S)
    return [re.sub(rf"(?m)^{indent}", "", block) for indent, block in found]


def shown_default(name: str, default: object) -> str:
    if name == "e2b_api_key":
        return "required"
    if default in ("", None):
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`"


def test_the_table_of_settings_has_each_setting_with_its_default() -> None:
    rows = rows_of_table("docs/settings.md", "| variable | default | meaning |")
    in_docs = {row[0]: row[1] for row in rows}
    in_code = {
        f"`{field.name.upper()}`": shown_default(field.name, field.default)
        for field in fields(Config)
    }
    assert in_docs == in_code


def test_the_table_of_metrics_has_each_metric() -> None:
    assert metrics.RUNS
    rows = rows_of_table("docs/operating.md", "| metric | meaning |")
    in_code = set()
    for family in REGISTRY.collect():
        if family.name.startswith("e2b_proxy_"):
            in_code.add(family.name + ("_total" if family.type == "counter" else ""))
    assert {row[0].strip("`") for row in rows} == in_code


def test_the_table_of_files_has_each_file_of_the_service() -> None:
    rows = rows_of_table(
        "docs/development.md", "| file | what happens there | imported |"
    )
    in_docs = {name for row in rows for name in re.findall(r"`(.+?)`", row[0])}
    modules = {path.name for path in ROOT.glob("*.py")}
    folders = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    assert in_docs == (modules | folders) - {"test_proxy.py", "conftest.py"}


def test_the_hosts_for_a_firewall_are_those_that_the_sdk_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("E2B_DOMAIN", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    sdk = ConnectionConfig(api_key="x")
    sandbox_url = sdk.get_sandbox_url("id", sdk.domain, 49999)
    page = (ROOT / "docs/operating.md").read_text("utf-8")
    below = page.split("## The way out", 1)[1].split("\n## ", 1)[0]
    for url in (sdk.api_url, sandbox_url):
        assert f"`{urlsplit(url).hostname}`" in below
    own = ConnectionConfig(api_key="x", domain="e2b.example")
    own_url = own.get_sandbox_url("id", own.domain, 49999)
    assert urlsplit(own_url).hostname == "49999-id.e2b.example"


def test_the_list_of_languages_has_each_language() -> None:
    page = " ".join((ROOT / "docs/librechat.md").read_text("utf-8").split())
    sentence = page.split("**Languages**:", 1)[1].split("`E2B_TEMPLATE`", 1)[0]
    named = {word.strip(",;") for word in sentence.split()}
    assert {language.title for language in LANGUAGES.values()} <= named


def test_the_readme_is_short() -> None:
    words = (ROOT / "README.md").read_text("utf-8").split()
    assert len(words) < MAX_README_WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(
        r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text("utf-8")
    ):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.M)
            assert anchor in map(anchor_of, headings)


def anchor_of(heading: str) -> str:
    """GitHub's name for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_each_librechat_yaml_has_the_same_server_and_addresses() -> None:
    [in_readme] = blocks("README.md", "yaml")
    entry, whole = [
        block for block in blocks("docs/librechat.md", "yaml") if "mcpServers" in block
    ]
    server = yaml.safe_load(in_readme)["mcpServers"]["python"]
    assert yaml.safe_load(entry)["mcpServers"]["python"] == server
    document = yaml.safe_load(whole)
    assert document["version"]
    assert document["mcpServers"]["python"] == server
    assert document["mcpSettings"] == {"allowedAddresses": ["e2b-proxy:3001"]}
    addresses = ["e2b-proxy:80", "e2b-proxy:3001"]
    assert document["actions"] == {"allowedAddresses": addresses}
