"""Settings: which source goes first, and what is refused in which words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kitbash_ray import config
from kitbash_ray.config import Settings, child_environment, load_settings, no_color, ray_auth
from kitbash_ray.errors import ConfigError

#: Names, and values as the first `.env` of this project had them, and what they mean.
SEED = [
    ("REDIS_HOST", "localhost", "localhost"),
    ("REDIS_PORT", "6379", 6379),
    ("CARTRIDGES_DIR", "/data/cartridges", Path("/data/cartridges")),
    ("BITNET_TYPE", "local", "local"),
    ("BITNET_COMMAND", "python -m bitnet_worker", "python -m bitnet_worker"),
    ("BITNET_HOST", "localhost", "localhost"),
    ("BITNET_PORT", "6379", 6379),
    ("BITNET_AUTO_SPAWN", "true", True),
    ("BITNET_TIMEOUT", "2000", 2000),
    ("CARTRIDGE_TYPE", "local", "local"),
    ("CARTRIDGE_COMMAND", "python -m cartridge_worker", "python -m cartridge_worker"),
    ("CARTRIDGE_HOST", "localhost", "localhost"),
    ("CARTRIDGE_PORT", "6379", 6379),
    ("CARTRIDGE_AUTO_SPAWN", "true", True),
    ("CARTRIDGE_TIMEOUT", "2000", 2000),
    ("KOBOLD_TYPE", "remote", "remote"),
    ("KOBOLD_HOST", "localhost", "localhost"),
    ("KOBOLD_PORT", "5555", 5555),
    ("KOBOLD_AUTO_SPAWN", "false", False),
    ("KOBOLD_TIMEOUT", "5000", 5000),
    ("DIAGNOSTIC_LEVEL", "info", "info"),
    ("LOG_TO_FILE", "true", True),
    ("LOG_FILE", "/var/log/kitbash.log", Path("/var/log/kitbash.log")),
]


def dotenv(content: str) -> None:
    Path(".env").write_text(content)


def yaml(content: str, path: str = "kitbash.yaml") -> None:
    Path(path).write_text(content)


@pytest.mark.parametrize(("name", "given", "meant"), SEED)
@pytest.mark.parametrize("source", ["environment", ".env", "yaml"])
def test_the_names_of_the_first_env_file_still_work(
    source: str, name: str, given: str, meant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "environment":
        monkeypatch.setenv(name, given)
    elif source == ".env":
        dotenv(f'{name}="{given}"\n')
    else:
        yaml(f"{name.lower()}: {given}\n")
    assert getattr(load_settings(), name.lower()) == meant


def test_the_whole_first_env_file_loads_and_says_what_has_no_effect() -> None:
    dotenv("".join(f'{name}="{given}"  # as it was\n' for name, given, _ in SEED))
    assert set(load_settings().without_effect()) == {
        "BITNET_COMMAND",
        "CARTRIDGE_TYPE",
        "CARTRIDGE_COMMAND",
        "CARTRIDGE_HOST",
        "CARTRIDGE_PORT",
    }


def test_without_any_source_the_defaults_hold() -> None:
    settings = load_settings()
    assert settings.kitbash_port == 8000
    assert settings.without_effect() == []
    assert settings.embedded_redis


def test_options_go_before_the_environment_that_before_env_file_that_before_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    yaml("kitbash_port: 8001\nkobold_port: 9001\nbitnet_port: 7001\nkitbash_replicas: 2\n")
    dotenv("KITBASH_PORT=8002\nKOBOLD_PORT=9002\nBITNET_PORT=7002\n")
    monkeypatch.setenv("KITBASH_PORT", "8003")
    monkeypatch.setenv("KOBOLD_PORT", "9003")
    settings = load_settings(kitbash_port=8004)
    assert (settings.kitbash_port, settings.kobold_port, settings.bitnet_port, settings.kitbash_replicas) == (
        8004,
        9003,
        7002,
        2,
    )


def test_an_option_that_was_not_given_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITBASH_PORT", "8003")
    assert load_settings(kitbash_port=None).kitbash_port == 8003


def test_the_yaml_file_here_goes_before_the_one_in_the_configuration_folder(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "kitbash"
    folder.mkdir(parents=True)
    yaml("kitbash_port: 8001\n", str(folder / "kitbash.yaml"))
    assert load_settings().kitbash_port == 8001
    yaml("kitbash_port: 8002\n")
    assert load_settings().kitbash_port == 8002


@pytest.mark.parametrize("source", ["environment", ".env"])
def test_a_yaml_file_can_be_named(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml("kitbash_port: 8001\n")
    yaml("kitbash_port: 8005\n", "other.yaml")
    if source == "environment":
        monkeypatch.setenv("KITBASH_CONFIG", "other.yaml")
    else:
        dotenv("KITBASH_CONFIG=other.yaml\n")
    assert load_settings().kitbash_port == 8005


def test_a_yaml_file_can_be_named_by_an_option() -> None:
    yaml("kitbash_port: 8005\n", "other.yaml")
    assert load_settings(kitbash_config=Path("other.yaml")).kitbash_port == 8005


def test_a_named_yaml_file_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITBASH_CONFIG", "/nowhere/kitbash.yaml")
    with pytest.raises(ConfigError, match=r"KITBASH_CONFIG names '/nowhere/kitbash.yaml', which is no file"):
        load_settings()


def test_a_named_yaml_file_that_is_not_there_is_not_called_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITBASH_CONFIG", "/nowhere/kitbash.yaml")
    with pytest.raises(ConfigError, match=r"^KITBASH_CONFIG"):
        load_settings()


@pytest.mark.parametrize(
    ("source", "name", "hint"),
    [
        ("environment", "KITBASH_PROT", "did you mean KITBASH_PORT?"),
        ("environment", "BITNET_TIME_OUT", "did you mean BITNET_TIMEOUT?"),
        ("environment", "GRAIN_SIZE_OF_ALL_THINGS", "the README lists every setting."),
        (".env", "KITBASH_PROT", "did you mean KITBASH_PORT?"),
        (".env", "KOBOLD_MODLE", "did you mean KOBOLD_MODEL?"),
        (".env", "FROBNICATE", "the README lists every setting."),
        ("yaml", "KITBASH_PROT", "did you mean KITBASH_PORT?"),
        ("yaml", "FROBNICATE", "the README lists every setting."),
        ("option", "KITBASH_PROT", "did you mean KITBASH_PORT?"),
    ],
)
def test_an_unknown_setting_is_refused_in_one_sentence(
    source: str, name: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, str] = {}
    if source == "environment":
        monkeypatch.setenv(name, "1")
    elif source == ".env":
        dotenv(f"{name}=1\n")
    elif source == "yaml":
        yaml(f"{name.lower()}: 1\n")
    else:
        given = {name.lower(): "1"}
    with pytest.raises(ConfigError) as raised:
        load_settings(**given)
    assert name in str(raised.value)
    assert str(raised.value).endswith(hint)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["PATH_TO_NOWHERE", "REDIS_SERVICE_HOST", "kitbash_port"])
def test_other_peoples_variables_and_ours_in_lower_case_are_let_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "8000")
    load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KITBASH_PORT", "0"),
        ("KITBASH_PORT", "65536"),
        ("KITBASH_PORT", "eight"),
        ("BITNET_TIMEOUT", "0"),
        ("BITNET_TIMEOUT", "2s"),
        ("BITNET_TYPE", "remotely"),
        ("BITNET_AUTO_SPAWN", "perhaps"),
        ("DIAGNOSTIC_LEVEL", "loud"),
        ("KITBASH_MAX_ERROR", "0"),
        ("KITBASH_MAX_ERROR", "1"),
        ("KITBASH_MAX_ERROR", "nan"),
        ("KITBASH_REPLICAS", "-1"),
        ("KITBASH_TOKEN", "short"),
        ("KOBOLD_GPU_LAYERS", "-2"),
        ("REDIS_DB", "-1"),
    ],
)
def test_a_malformed_value_is_refused_in_one_sentence_that_names_the_setting(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^Setting {name} is malformed") as raised:
        load_settings()
    assert "\n" not in str(raised.value)


def test_a_malformed_token_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KITBASH_TOKEN", "s3cret")
    with pytest.raises(ConfigError) as raised:
        load_settings()
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("content", [b"a: [\n", b"\xff\xfe\x00", b"- a\n- b\n", b"hello", b"a: 1\n\tb: 2"])
def test_broken_yaml_is_refused_in_one_sentence(content: bytes) -> None:
    Path("kitbash.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load_settings()
    assert "\n" not in str(raised.value)


def test_an_env_file_that_is_no_text_is_refused_in_one_sentence() -> None:
    Path(".env").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings()


@pytest.mark.parametrize(
    "name",
    ["cartridges_dir", "embedding_model", "log_file", "kitbash_state_dir", "kitbash_cache_dir"],
)
@pytest.mark.parametrize(
    ("given", "meant"), [("x/y", "{here}/x/y"), ("~/y", "{home}/y"), ("/x/../y", "/y"), ("./x", "{here}/x")]
)
def test_a_relative_path_becomes_absolute(
    name: str, given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv(name.upper(), given)
    assert getattr(load_settings(), name) == Path(meant.format(here=tmp_path, home="/home/ada"))


def test_a_model_is_a_file_that_is_there_or_a_name(tmp_path: Path) -> None:
    (tmp_path / "here.gguf").touch()
    assert load_settings(kobold_model="here.gguf").kobold_model == str(tmp_path / "here.gguf")
    assert load_settings(kobold_model="owner/name/there.gguf").kobold_model == "owner/name/there.gguf"
    assert load_settings(kobold_model="~/there.gguf").kobold_model == str(Path.home() / "there.gguf")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("localhost", "http://localhost:5001"),
        ("https://models.example/api", "https://models.example/api"),
        ("http://10.0.0.7:8080/", "http://10.0.0.7:8080"),
    ],
)
def test_an_engines_host_may_be_a_whole_url(host: str, url: str) -> None:
    assert load_settings(kobold_host=host).kobold_url == url


def test_an_empty_model_path_means_no_model() -> None:
    dotenv("BITNET_MODEL=\n")
    assert load_settings().bitnet_model is None


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "unix://{state}/redis.sock"),
        ({"redis_url": "rediss://h:1/2"}, "rediss://h:1/2"),
        ({"redis_host": "h"}, "redis://h:6379/0"),
        ({"redis_host": "h", "redis_port": 1, "redis_db": 2}, "redis://h:1/2"),
        ({"redis_host": "h", "redis_password": "p@s/s:"}, "redis://:p%40s%2Fs%3A@h:6379/0"),
        ({"redis_url": "redis://u", "redis_host": "h"}, "redis://u"),
        ({"redis_port": 1}, "unix://{state}/redis.sock"),
    ],
)
def test_redis_is_the_one_that_was_named_or_a_private_one(given: dict[str, object], url: str) -> None:
    settings = load_settings(**given)
    assert settings.resolved_redis_url == url.format(state=settings.state_dir)
    assert settings.embedded_redis is url.startswith("unix")


@pytest.mark.parametrize("name", ["REDIS_URL", "REDIS_HOST"])
def test_an_empty_redis_address_means_the_private_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "")
    settings = load_settings()
    assert settings.resolved_redis_url.startswith("unix://")
    assert settings.embedded_redis


def test_state_and_cache_lie_where_the_xdg_folders_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert load_settings().state_dir == tmp_path / "state" / "kitbash"
    assert load_settings().cache_dir == tmp_path / "c" / "kitbash"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert load_settings().cache_dir == Path("/home/ada/.cache/kitbash")


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().kitbash_port = 1


def test_settings_survive_the_way_to_another_process() -> None:
    settings = load_settings(kitbash_port=8123, bitnet_model="m.gguf")
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_a_child_gets_this_environment_and_what_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "1")
    assert child_environment(TWO="2") == {**os.environ, "TWO": "2"}


@pytest.mark.parametrize(("value", "wanted"), [(None, False), ("", False), ("1", True), ("0", True)])
def test_no_color_is_heeded(value: str | None, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_COLOR", value)
    assert no_color() is wanted


def test_ray_is_asked_for_a_token_exactly_when_ray_start_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ray_auth() == "disabled"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("ab" * 32)
    assert ray_auth() == "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    assert ray_auth() == "disabled"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "ab" * 32)
    assert ray_auth() == "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "Disabled")
    assert ray_auth() == "disabled"


def test_a_file_that_docker_mounts_as_a_secret_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SECRETS", tmp_path)
    (tmp_path / "redis_password").write_text("from a file\n")
    (tmp_path / "ray_token").write_text("no setting of ours")
    assert load_settings().redis_password == "from a file"
    monkeypatch.setenv("REDIS_PASSWORD", "from the environment")
    assert load_settings().redis_password == "from the environment"
