"""The files for Docker Compose next to LibreChat's own two: what they make together.

A model of Compose's merge shows it everywhere, and Compose itself where it is there.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
from dataclasses import fields
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from config import Config
from conftest import ROOT

# Shortened from LibreChat's docker-compose.yml and deploy-compose.yml, in whose folder
# ours are used: the forms of the entries are LibreChat's, and so are the lines of .env.
LIBRECHAT = """
services:
  api:
    container_name: LibreChat
    ports:
      - "${PORT}:${PORT}"
    depends_on:
      - mongodb
      - rag_api
    image: librechat
    restart: always
    user: "${UID}:${GID}"
    environment:
      - HOST=0.0.0.0
      - HTTPS_PROXY=${HTTPS_PROXY:-}
    volumes:
      - type: bind
        source: ./.env
        target: /app/.env
      - ./images:/app/client/public/images
      - librechat-data:/app/data
  mongodb:
    image: mongo
  rag_api:
    image: rag
    env_file:
      - .env
volumes:
  librechat-data:
"""
LIBRECHAT_DEPLOYED = """
services:
  api:
    container_name: LibreChat-API
    ports:
      - 3080:3080
    depends_on:
      - mongodb
      - rag_api
    image: librechat-api
    restart: always
    env_file:
      - .env
    environment:
      - HOST=0.0.0.0
    volumes:
      - type: bind
        source: ./librechat.yaml
        target: /app/librechat.yaml
      - ./images:/app/client/public/images
  client:
    image: nginx
    depends_on:
      - api
  mongodb:
    image: mongo
  meilisearch:
    image: meilisearch
    env_file:
      - .env
  rag_api:
    image: rag
    env_file:
      - .env
"""
LIBRECHATS = {"docker-compose.yml": LIBRECHAT, "deploy-compose.yml": LIBRECHAT_DEPLOYED}
LIBRECHATS_ENV = "PORT=3080\nHOST=localhost\n"
PICTURES = "compose.pictures.yaml"
# The forms are those of LibreChat's docker-compose.override.yml.example.
OWN_OVERRIDE = """
services:
  api:
    image: my-librechat
    depends_on:
      - redis
    volumes:
      - ./librechat.yaml:/app/librechat.yaml
      - ./mine:/mine
  redis:
    image: redis
  e2b-proxy:
    environment:
      - ALLOW_INTERNET=false
      - FILES_DIR=
    stop_grace_period: 90s
"""
# What LibreChat's .env has for itself; ours goes by another name there.
OTHER_NAMES = {"HOST": "E2B_PROXY_HOST", "PORT": "E2B_PROXY_PORT"}
# Read by E2B's SDK, not by us.
READ_BY_THE_SDK = {"E2B_DOMAIN", "E2B_SANDBOX_URL", "HTTPS_PROXY", "NO_PROXY"}


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


def ours(name: str = "compose.yaml") -> dict[str, Any]:
    """Our own service, as the file has it."""
    found: dict[str, Any] = document(name)["services"]["e2b-proxy"]
    return found


def environment(name: str = "compose.yaml") -> dict[str, str | None]:
    """The variables that the file names; None for one that is passed on as it is."""
    lines = [line.partition("=") for line in ours(name)["environment"]]
    return {variable: value if sign else None for variable, sign, value in lines}


def all_settings() -> set[str]:
    """The names of all variables that the service reads."""
    names = {field.name.upper() for field in fields(Config)}
    secrets = {
        f"{field.name.upper()}_FILE" for field in fields(Config) if not field.repr
    }
    return names | secrets


# --- a model of the merge


def normal(value: Any, key: str = "") -> Any:
    """What Compose merges by name, as it stands in these files, with its names."""
    if isinstance(value, dict):
        return {name: normal(each, name) for name, each in value.items()}
    if key == "depends_on":
        return {name: {"condition": "service_started"} for name in value}
    if key == "environment":
        return dict(line.partition("=")[::2] for line in value)
    if key == "volumes" and value:
        return {target_of(entry): entry for entry in value}
    return value


def target_of(volume: Any) -> str:
    return str(volume["target"] if isinstance(volume, dict) else volume.split(":")[1])


def merge(base: Any, over: Any, key: str = "") -> Any:
    """How Compose merges an override, for what stands in these files."""
    if not isinstance(base, dict):
        return over
    if key == "volumes":  # one of the same target is replaced as a whole
        return base | over
    changed = {
        name: merge(base[name], each, name) if name in base else each
        for name, each in over.items()
    }
    return base | changed


def merged(override: str, librechat: str = LIBRECHAT) -> dict[str, Any]:
    """The services of the model, merged in the order of COMPOSE_FILE."""
    documents = {
        "docker-compose.yml": yaml.safe_load(librechat),
        "e2b-proxy/compose.yaml": document("compose.yaml"),
        "docker-compose.override.yml": yaml.safe_load(override),
    }
    names = compose_file_on_the_pages().split(":")
    in_order = [normal(documents[name]) for name in names]
    return dict(reduce(merge, in_order)["services"])


def compose_file_on_the_pages() -> str:
    """COMPOSE_FILE as each page has it for LibreChat's docker-compose.yml."""
    pages = ("README.md", "docs/librechat.md", "compose.yaml", ".env.example")
    texts = [(ROOT / page).read_text("utf-8") for page in pages]
    without_pictures = [text.replace(f"e2b-proxy/{PICTURES}:", "") for text in texts]
    found = [
        re.findall(r"COMPOSE_FILE=(docker[\w.:/-]+)", text) for text in without_pictures
    ]
    assert all(found)
    [value] = set(chain(*found))
    return str(value)


def command_that_makes_an_override() -> str:
    """The command for those who have no override, as each page has it."""
    pages = ("README.md", "docs/librechat.md")
    texts = [(ROOT / page).read_text("utf-8") for page in pages]
    [command] = {re.findall("test -e .*override.yml", text)[0] for text in texts}
    return str(command)


@pytest.mark.parametrize("librechat", LIBRECHATS.values(), ids=LIBRECHATS)
def test_the_merged_api_starts_after_us_and_keeps_what_librechat_gave_it(
    librechat: str,
) -> None:
    before = normal(yaml.safe_load(librechat))["services"]["api"]
    api = merged("services: {}", librechat)["api"]
    # No other condition: a service that does not come up keeps LibreChat down by it.
    assert api["depends_on"] == {
        name: {"condition": "service_started"}
        for name in ("mongodb", "rag_api", "e2b-proxy")
    }
    ours = api["volumes"].pop("/app/librechat.yaml")
    assert ours["source"] == "./librechat.yaml"
    before["volumes"].pop("/app/librechat.yaml", None)
    assert api["volumes"] == before["volumes"]
    changed = {name for name in api if api[name] != before.get(name)}
    assert changed == {"depends_on"}


def test_the_operators_override_has_the_last_word() -> None:
    services = merged(OWN_OVERRIDE)
    ours = services["e2b-proxy"]
    assert ours["environment"]["ALLOW_INTERNET"] == "false"
    assert ours["environment"]["FILES_DIR"] == ""
    assert ours["environment"].keys() >= {"E2B_API_KEY", "PROXY_API_KEY"}
    assert ours["stop_grace_period"] == "90s"
    api = services["api"]
    assert api["image"] == "my-librechat"
    assert api["depends_on"].keys() == {"mongodb", "rag_api", "e2b-proxy", "redis"}
    assert api["volumes"].keys() >= {"/app/librechat.yaml", "/mine", "/app/.env"}


def test_an_override_is_made_where_there_is_none_and_left_alone_where_there_is(
    tmp_path: Path,
) -> None:
    file = tmp_path / "docker-compose.override.yml"
    for before, after in ((None, "services: {}\n"), (OWN_OVERRIDE, OWN_OVERRIDE)):
        if before:
            file.write_text(before)
        subprocess.run(
            ["sh", "-c", command_that_makes_an_override()], cwd=tmp_path, check=True
        )
        assert file.read_text() == after


# --- what the files say


def test_each_setting_comes_from_env() -> None:
    """Whoever edits compose.yaml to set one can no longer pull."""
    variables = environment()
    pictures = environment(PICTURES)
    assert set(variables) | set(pictures) == all_settings() | READ_BY_THE_SDK
    assert set(pictures) == {"IMAGE_DIR", "IMAGE_URL", "IMAGE_TTL_HOURS"}
    given = {
        variable: value
        for variable, value in (variables | pictures).items()
        if value is not None
    }
    assert given == {
        "E2B_API_KEY": "${E2B_API_KEY?put E2B_API_KEY=... into the .env file next to "
        "LibreChat's docker-compose.yml}",
        "HOST": "${E2B_PROXY_HOST:-0.0.0.0}",
        "PORT": "${E2B_PROXY_PORT:-3001}",
        "FILES_DIR": "${FILES_DIR-/files}",
        "IMAGE_DIR": "/images",
        "IMAGE_URL": "${IMAGE_URL:-/images/e2b}",
    }


def test_the_example_of_env_has_each_setting_with_its_default() -> None:
    text = (ROOT / ".env.example").read_text()
    shown = dict(re.findall(r"^#?([A-Z0-9_]+)=(.*)$", text, re.M))
    settings = {OTHER_NAMES.get(name, name) for name in all_settings()}
    of_compose = {"COMPOSE_FILE", "E2B_PROXY_STOP_GRACE_PERIOD"}
    of_librechat = {"LIBRECHAT_CODE_BASEURL", "LIBRECHAT_CODE_IMAGE_CHUNK_BYTES"}
    assert set(shown) == settings | READ_BY_THE_SDK | of_compose | of_librechat
    for field in fields(Config):
        name = field.name.upper()
        in_image = {"HOST": "0.0.0.0", "FILES_DIR": "/files", "IMAGE_DIR": "/images"}
        in_image |= {"IMAGE_URL": "/images/e2b"}
        default = in_image.get(name, field.default)
        if isinstance(default, bool):
            default = str(default).lower()
        assert shown[OTHER_NAMES.get(name, name)] == str(default), name
    required = re.findall(r"^([A-Z0-9_]+)=", text, re.M)
    assert required == ["E2B_API_KEY", "COMPOSE_FILE", *sorted(of_librechat)]


def test_our_service_is_the_popular_one_locked_down() -> None:
    whole = document("compose.yaml")
    assert set(whole) == {"services", "volumes"}
    assert set(whole["services"]) == {"api", "e2b-proxy"}
    ours = whole["services"]["e2b-proxy"]
    assert ours["build"] == "./e2b-proxy"
    # A new volume has the mode of its folder in the image, which any user may write.
    [volume] = ours["volumes"]
    name, _, folder = volume.partition(":")
    assert environment()["FILES_DIR"] == f"${{FILES_DIR-{folder}}}"
    assert whole["volumes"] == {name: None}
    assert f"RUN mkdir --mode=1777 {folder}\n" in (ROOT / "Dockerfile").read_text()
    assert not {"networks", "env_file", "ports", "privileged", "user"} & set(ours)
    assert "${PORT" not in (ROOT / "compose.yaml").read_text()
    assert ours["read_only"] is True
    assert ours["tmpfs"] == ["/tmp"]
    assert ours["cap_drop"] == ["ALL"]
    assert ours["security_opt"] == ["no-new-privileges:true"]


def test_docker_waits_longer_than_gunicorn_lets_runs_finish(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("E2B_API_KEY", "x")
    monkeypatch.setenv("FILES_DIR", str(tmp_path))
    settings = runpy.run_path(str(ROOT / "gunicorn.conf.py"))
    grace = re.fullmatch(r"\$\{\w+:-(\d+)s\}", ours()["stop_grace_period"])
    assert grace
    assert int(grace[1]) > settings["graceful_timeout"]


def test_the_second_file_publishes_pictures_into_librechats_folder() -> None:
    service = ours(PICTURES)
    assert set(document(PICTURES)) == {"services"}
    [volume] = service["volumes"]
    assert (volume["source"], volume["target"]) == ("./images/e2b", "/images")
    assert volume["bind"] == {"create_host_path": False}
    assert service["user"] == "${UID:-1000}:${GID:-1000}"
    settings = {"E2B_API_KEY": "x", "IMAGE_DIR": "/tmp", "IMAGE_URL": "/images/e2b"}
    assert Config.from_env(settings).image_url == "/images/e2b"


# --- Compose itself


def docker_compose(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker", "compose", *arguments],
        cwd=folder,
        env={
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "HOME", "DOCKER_CONFIG")
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """LibreChat's folder, with both of its files, this repository and no override."""
    if not shutil.which("docker") or docker_compose(tmp_path, "version").returncode:
        pytest.skip(
            "docker compose is not installed: the merge was shown by a model of it only"
        )
    for name, text in LIBRECHATS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "e2b-proxy").mkdir()
    for name in ("compose.yaml", PICTURES):
        shutil.copy(ROOT / name, tmp_path / "e2b-proxy")
    return tmp_path


def write_env(folder: Path, *lines: str, compose_file: str = "") -> None:
    compose_file = compose_file or compose_file_on_the_pages()
    own = "".join(f"{line}\n" for line in lines)
    env = f"{LIBRECHATS_ENV}COMPOSE_FILE={compose_file}\n{own}"
    (folder / ".env").write_text(env)


def resolved(folder: Path, *arguments: str) -> dict[str, Any]:
    """The services as Compose would start them."""
    finished = docker_compose(folder, *arguments, "config", "--format=json")
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(finished.stdout)["services"])


def given(service: dict[str, Any]) -> dict[str, str]:
    """The variables that the container gets: none for a name that nothing says."""
    found = service["environment"].items()
    return {name: value for name, value in found if value is not None}


IN_EVERY_CONTAINER = {"HOST": "0.0.0.0", "PORT": "3001", "FILES_DIR": "/files"}


@pytest.mark.parametrize("name", LIBRECHATS)
@pytest.mark.parametrize("pictures", [False, True], ids=["alone", "with pictures"])
@pytest.mark.parametrize("override", ["", OWN_OVERRIDE], ids=["bare", "overridden"])
def test_compose_merges_it_like_the_model(
    folder: Path, name: str, pictures: bool, override: str
) -> None:
    compose_file = compose_file_on_the_pages().replace("docker-compose.yml", name)
    if pictures:
        compose_file = compose_file.replace(
            "compose.yaml", f"compose.yaml:e2b-proxy/{PICTURES}"
        )
    write_env(folder, compose_file=compose_file)
    refused = docker_compose(folder, "config")
    assert refused.returncode != 0
    assert "docker-compose.override.yml: no such file" in refused.stderr
    if override:
        (folder / "docker-compose.override.yml").write_text(override)
    subprocess.run(
        ["sh", "-c", command_that_makes_an_override()], cwd=folder, check=True
    )
    refused = docker_compose(folder, "config")
    assert refused.returncode != 0
    assert "put E2B_API_KEY=... into the .env file" in refused.stderr
    write_env(folder, "E2B_API_KEY=the-key", compose_file=compose_file)
    services = resolved(folder)
    model = merged(override or "services: {}", LIBRECHATS[name])
    api = services["api"]
    conditions = {k: v["condition"] for k, v in api["depends_on"].items()}
    assert set(conditions) == set(model["api"]["depends_on"])
    assert set(conditions.values()) == {"service_started"}
    targets = [volume["target"] for volume in api["volumes"]]
    assert sorted(targets) == sorted(model["api"]["volumes"])
    assert api["image"] == model["api"]["image"]
    ours = services["e2b-proxy"]
    environ = IN_EVERY_CONTAINER | {"E2B_API_KEY": "the-key"}
    if override:
        environ |= {"ALLOW_INTERNET": "false", "FILES_DIR": ""}
    if pictures:
        environ |= {"IMAGE_DIR": "/images", "IMAGE_URL": "/images/e2b"}
    assert given(ours) == environ
    assert ours["stop_grace_period"] == ("1m30s" if override else "2m50s")
    assert ours["build"]["context"] == str(folder / "e2b-proxy")
    assert ours["networks"] == api["networks"]
    assert ours.get("user") == ("1000:1000" if pictures else None)


def test_compose_takes_each_setting_from_env_and_an_empty_one_is_unset(
    folder: Path,
) -> None:
    (folder / "docker-compose.override.yml").write_text("services: {}\n")
    shown = re.findall(r"^#([A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.M)
    in_container = {there: name for name, there in OTHER_NAMES.items()}
    names = set(shown) - {"IMAGE_DIR", "E2B_PROXY_STOP_GRACE_PERIOD"}
    compose_file = compose_file_on_the_pages().replace(
        "compose.yaml", f"compose.yaml:e2b-proxy/{PICTURES}"
    )
    lines = [f"{name}=of-{name}" for name in names]
    lines += ["E2B_API_KEY=x", "E2B_PROXY_STOP_GRACE_PERIOD=600s"]
    write_env(folder, *lines, compose_file=compose_file)
    service = resolved(folder)["e2b-proxy"]
    wanted = {in_container.get(name, name): f"of-{name}" for name in names}
    wanted |= {"E2B_API_KEY": "x", "IMAGE_DIR": "/images"}
    assert given(service) == wanted
    assert service["stop_grace_period"] == "10m0s"
    empty = [f"{name}=" for name in names]
    write_env(folder, *empty, "E2B_API_KEY=x", compose_file=compose_file)
    left = {k: v for k, v in given(resolved(folder)["e2b-proxy"]).items() if v}
    wanted = {"E2B_API_KEY": "x", "HOST": "0.0.0.0", "PORT": "3001"}
    wanted |= {"IMAGE_DIR": "/images", "IMAGE_URL": "/images/e2b"}
    assert left == wanted
    # The service takes what is empty as unset.
    assert Config.from_env(dict.fromkeys(names, "") | {"E2B_API_KEY": "x"})


def test_the_key_may_be_a_secret_of_dockers(folder: Path) -> None:
    page = (ROOT / "docs/librechat.md").read_text("utf-8")
    [recipe] = re.findall(r"```yaml\n(services:\n[^`]*\nsecrets:\n[^`]*)```", page)
    [path] = re.findall(r"^E2B_API_KEY_FILE=(\S+)$", page, re.M)
    (folder / "docker-compose.override.yml").write_text(recipe)
    write_env(folder, "E2B_API_KEY=", f"E2B_API_KEY_FILE={path}")
    service = resolved(folder)["e2b-proxy"]
    keys = {"E2B_API_KEY": "", "E2B_API_KEY_FILE": path}
    assert given(service) == IN_EVERY_CONTAINER | keys
    [secret] = service["secrets"]
    assert path == f"/run/secrets/{secret['source']}"


def test_f_makes_compose_ignore_compose_file_and_naming_all_helps(folder: Path) -> None:
    """As with the scripts that LibreChat has for its deploy-compose.yml."""
    (folder / "docker-compose.override.yml").write_text("services: {}\n")
    write_env(folder, "E2B_API_KEY=x")
    assert "e2b-proxy" not in resolved(folder, "-f", "deploy-compose.yml")
    page = (ROOT / "docs/librechat.md").read_text("utf-8")
    [named] = re.findall(r"docker compose ((?:-f \S+ ){3})up", page)
    assert "e2b-proxy" in resolved(folder, *named.split())


def test_the_recipe_for_replicas_merges_and_shares_one_folder(folder: Path) -> None:
    recipe = (ROOT / "deploy/compose.replicas.yaml").read_text()
    [compose_file] = re.findall(r"COMPOSE_FILE=(\S+)", recipe)
    (folder / "docker-compose.override.yml").write_text("services: {}\n")
    (folder / "e2b-proxy/deploy").mkdir()
    shutil.copy(ROOT / "deploy/compose.replicas.yaml", folder / "e2b-proxy/deploy")
    write_env(folder, "E2B_API_KEY=x", compose_file=compose_file)
    services = resolved(folder)
    assert services["e2b-proxy"]["deploy"]["replicas"] == 3
    [files] = services["e2b-proxy"]["volumes"]
    assert (files["type"], files["target"]) == ("volume", "/files")
    balancer = services["e2b-replicas"]
    [conf] = balancer["volumes"]
    assert conf["source"] == str(folder / "e2b-proxy/deploy/replicas.conf")
    assert balancer["networks"] == services["api"]["networks"]
    grace = services["e2b-proxy"]["stop_grace_period"]
    assert balancer["stop_grace_period"] == grace


def test_compose_in_the_clone_alone_says_what_it_wants(folder: Path) -> None:
    refused = docker_compose(folder / "e2b-proxy", "config")
    assert refused.returncode != 0
    assert "next to LibreChat's docker-compose.yml" in refused.stderr
