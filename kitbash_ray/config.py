"""Every setting, read once: environment > Docker's secrets > `.env` > YAML > the defaults below.

The field names are the environment names in lower case. An unknown or malformed setting
stops the start with one sentence. This is the only module that reads `os.environ`.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import Field, PositiveInt, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from kitbash_ray.errors import ConfigError
from kitbash_ray.redis_url import parse

Milliseconds = Annotated[int, Field(ge=1, le=600_000)]
Port = Annotated[int, Field(ge=1, le=65535)]
Level = Literal["debug", "info", "warning", "error"]

#: An environment variable with one of these prefixes that is no setting is a typing error.
#: REDIS_ is not among them: container platforms put variables of their own there.
OWN_PREFIXES = ("KITBASH_", "BITNET_", "KOBOLD_", "CARTRIDGE_", "GRAIN_", "EMBEDDING_")

#: Accepted so that an older `.env` still starts; Ray starts the actors, so they change nothing.
WITHOUT_EFFECT = ("bitnet_command", "cartridge_type", "cartridge_command", "cartridge_host", "cartridge_port")

PROJECT = Path(__file__).resolve().parent.parent
#: Where Docker puts secrets: files that are named like settings.
SECRETS = Path("/run/secrets")


class Settings(BaseSettings):
    """The settings. `description` is the text of the README's table."""

    model_config = SettingsConfigDict(extra="forbid", env_file=".env", frozen=True)

    redis_url: str | None = Field(
        None,
        description="A Redis to use: `redis://`, `rediss://` or `unix://`, `redis+sentinel://host:port,host:port/service` or `redis+cluster://host:port,host:port`; unset: a private one that `kitbash up` starts",
    )
    redis_host: str | None = Field(None, description="The same as host, with REDIS_PORT, REDIS_DB and REDIS_PASSWORD")
    redis_port: Port = Field(6379, description="Port of REDIS_HOST")
    redis_db: int = Field(0, ge=0, description="Database number of REDIS_HOST")
    redis_password: str | None = Field(None, description="Password of REDIS_HOST")

    cartridges_dir: Path = Field(PROJECT / "cartridges", description="Folder that holds the cartridges")
    embedding_model: Path | None = Field(None, description="Any embedding GGUF; unset: all-MiniLM-L6-v2, made once")
    embedding_threads: PositiveInt = Field(
        2, description="CPU threads for embedding many texts; of MiniLM one reads a question"
    )

    grain_timeout: Milliseconds = Field(500, description="Milliseconds layer 0 may take")
    grain_resource: str = Field("gpu_1060", description="Ray resource of the device that holds the grain router")

    bitnet_type: Literal["local", "remote"] = Field(
        "local",
        description="Layer 1: `local` loads BITNET_MODEL, `remote` asks an OpenAI-compatible server, such as bitnet.cpp's llama-server",
    )
    bitnet_model: str | None = Field(
        None,
        description="Layer 1's model: a GGUF's path or `owner/name/file.gguf` that `kitbash models pull` fetched, remote: its name there; unset: the student of `kitbash distil`, else the one that ships",
    )
    bitnet_host: str = Field("localhost", description="Host of a remote layer 1, or a whole URL")
    bitnet_port: Port = Field(8080, description="Port of a remote layer 1")
    bitnet_key: str | None = Field(None, description="Key of a remote layer 1")
    bitnet_auto_spawn: bool = Field(True, description="Whether `kitbash up` starts layer 1's actor")
    bitnet_timeout: Milliseconds = Field(2000, description="Milliseconds layer 1 may take")
    bitnet_max_tokens: PositiveInt = Field(64, description="Longest answer of layer 1, in tokens")
    bitnet_resource: str = Field(
        "device_b", description="Ray resource of the device that runs layer 1; several, separated by commas: a replica on each"
    )
    bitnet_command: str | None = Field(None, description="No effect: Ray starts the actor")

    cartridge_auto_spawn: bool = Field(True, description="Whether `kitbash up` starts layer 2's actor")
    cartridge_timeout: Milliseconds = Field(2000, description="Milliseconds layer 2 may take")
    cartridge_resource: str = Field("device_b", description="Ray resource of the device that runs layer 2; or several")
    cartridge_type: Literal["local", "remote"] = Field("local", description="No effect: Ray places the actor")
    cartridge_command: str | None = Field(None, description="No effect: Ray starts the actor")
    cartridge_host: str = Field("localhost", description="No effect: Ray finds the actor")
    cartridge_port: Port = Field(6379, description="No effect: Ray finds the actor")

    kobold_type: Literal["local", "koboldcpp", "openai", "remote"] = Field(
        "local",
        description="Layer 4: `local` loads KOBOLD_MODEL, `koboldcpp` (or `remote`) asks a KoboldCpp, `openai` any OpenAI-compatible server",
    )
    kobold_model: str | None = Field(
        None,
        description="Layer 4's model: a GGUF's path or `owner/name/file.gguf` that `kitbash models pull` fetched; openai: its name there",
    )
    kobold_host: str = Field("localhost", description="Host of a KoboldCpp or OpenAI-compatible server, or a whole URL")
    kobold_port: Port = Field(5001, description="Port of a KoboldCpp or OpenAI-compatible server")
    kobold_key: str | None = Field(None, description="Key of an OpenAI-compatible server")
    kobold_queue: int = Field(16, ge=0, description="Questions that may wait for layer 4's model")
    kobold_auto_spawn: bool = Field(True, description="Whether `kitbash up` starts layer 4's actor")
    kobold_timeout: Milliseconds = Field(60_000, description="Milliseconds layer 4 may take")
    kobold_max_tokens: PositiveInt = Field(256, description="Longest answer of layer 4, in tokens")
    kobold_context: PositiveInt | None = Field(
        None, description="Context window of layer 4, in tokens; unset: 4096, or what the server elsewhere tells"
    )
    kobold_gpu_layers: int = Field(0, ge=-1, description="Model layers of layer 4 on the GPU; -1: all")
    kobold_resource: str = Field("device_c", description="Ray resource of the device that runs layer 4; or several")

    kitbash_cloud_url: str | None = Field(
        None, description="An OpenAI-compatible endpoint as layer 5, asked last and for money; unset: there is no layer 5"
    )
    kitbash_cloud_model: str | None = Field(None, description="Layer 5's model there")
    kitbash_cloud_key: str | None = Field(None, description="Layer 5's key")
    kitbash_cloud_prompt_price: float | None = Field(
        None, ge=0, description="Dollars for a million tokens that layer 5 reads; needed with KITBASH_CLOUD_URL"
    )
    kitbash_cloud_answer_price: float | None = Field(
        None, ge=0, description="Dollars for a million tokens that layer 5 writes; needed with KITBASH_CLOUD_URL"
    )
    kitbash_cloud_query_budget: float = Field(0.01, ge=0, description="Dollars that one question may cost at layer 5")
    kitbash_cloud_day_budget: float = Field(0.25, ge=0, description="Dollars that layer 5 may cost on one day (UTC)")
    kitbash_cloud_context: PositiveInt = Field(32_768, description="Context window of layer 5, in tokens")
    kitbash_cloud_max_tokens: PositiveInt = Field(512, description="Longest answer of layer 5, in tokens")
    kitbash_cloud_timeout: Milliseconds = Field(60_000, description="Milliseconds layer 5 may take")

    diagnostic_level: Level = Field(
        "info",
        description="What the feed keeps: `debug` everything, `info` all but token deltas, `warning` what was not answered, `error` failures",
    )
    log_to_file: bool = Field(False, description="Whether commands write a log file")
    log_file: Path = Field(Path("kitbash.log"), description="The log file")

    kitbash_config: Path | None = Field(
        None, description="YAML file with settings; unset: `kitbash.yaml` here, else in the XDG configuration folder"
    )
    kitbash_host: str = Field("127.0.0.1", description="Address the front door is reached at")
    kitbash_port: Port = Field(8000, description="Port of the front door")
    kitbash_dashboard_port: Port = Field(8265, description="Port of the Ray dashboard")
    kitbash_ray_port: Port = Field(6380, description="Port of Ray on the head of several devices; Redis has REDIS_PORT there")
    kitbash_ray_redis_port: Port = Field(
        6381, description="Port of the Redis that keeps Ray's state on the head of several devices; the head alone reaches it"
    )
    kitbash_url: str | None = Field(
        None, description="Front door that the CLI and the client talk to; unset: the one `kitbash up` started"
    )
    kitbash_token: str | None = Field(
        None, min_length=16, description="Front door's token; unset: generated and kept in a file only you can read"
    )
    kitbash_replicas: PositiveInt = Field(1, description="Front-door replicas")
    kitbash_max_in_flight: PositiveInt = Field(64, description="Questions a replica works on at once; more get 429")
    kitbash_queue_workers: int = Field(4, ge=0, description="Queued questions a replica works on at once")
    kitbash_queue_length: PositiveInt = Field(10_000, description="Questions that may wait in the queue; more get 429")
    kitbash_policy: Literal["calibrated", "fixed"] = Field(
        "calibrated", description="How layers are accepted: within the error budget, or by fixed thresholds"
    )
    kitbash_max_error: float = Field(
        0.05, gt=0, lt=1, description="Error budget: the share of accepted answers that may be wrong"
    )
    kitbash_calibration: Path | None = Field(
        None,
        description="A calibration that `kitbash calibrate` made; unset: that of KITBASH_STATE_DIR, else the one that ships",
    )
    kitbash_query_ttl: PositiveInt = Field(86_400, description="Seconds a query stays on the blackboard")
    kitbash_feed_maxlen: PositiveInt = Field(100_000, description="Events the feed keeps")
    kitbash_state_dir: Path | None = Field(
        None, description="Folder for token, sockets and logs; unset: `$XDG_STATE_HOME/kitbash`"
    )
    kitbash_cache_dir: Path | None = Field(None, description="Folder for models and indexes; unset: `$XDG_CACHE_HOME/kitbash`")

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any, info: ValidationInfo) -> Any:
        """`REDIS_URL=` in an environment file means the default."""
        return cls.model_fields[str(info.field_name)].default if value == "" else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        dotenv = DotEnvSettingsSource(settings_cls)
        named = init_settings().get("kitbash_config")
        yaml = YamlConfigSettingsSource(settings_cls, yaml_file=_yaml_file(named, dotenv))
        secrets = [SecretsSettingsSource(settings_cls, secrets_dir=SECRETS)] if SECRETS.is_dir() else []
        return init_settings, env_settings, *secrets, dotenv_settings, yaml

    @field_validator(
        "cartridges_dir",
        "embedding_model",
        "log_file",
        "kitbash_calibration",
        "kitbash_state_dir",
        "kitbash_cache_dir",
    )
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        # Actors run in other folders, where a relative path would mean something else.
        return path and Path(os.path.abspath(path.expanduser()))

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, url: str | None) -> str | None:
        if url:
            parse(url)
        return url

    @field_validator("bitnet_model", "kobold_model", mode="before")
    @classmethod
    def _absolute_if_a_file(cls, model: Any) -> Any:
        if not isinstance(model, str | Path) or not model:
            return model
        path = Path(model).expanduser()
        meant_as_path = path.is_file() or str(model).startswith((".", "~", "/"))
        return os.path.abspath(path) if meant_as_path else str(model)

    @property
    def bitnet_url(self) -> str:
        return _server_url(self.bitnet_host, self.bitnet_port)

    @property
    def kobold_url(self) -> str:
        return _server_url(self.kobold_host, self.kobold_port)

    @property
    def state_dir(self) -> Path:
        return self.kitbash_state_dir or _xdg("XDG_STATE_HOME", ".local/state")

    @property
    def cache_dir(self) -> Path:
        return self.kitbash_cache_dir or _xdg("XDG_CACHE_HOME", ".cache")

    @property
    def resources(self) -> dict[str, tuple[str, ...]]:
        """The Ray resources of each layer's replicas; layer 0 has one grain router."""
        named = {"grain": self.grain_resource, "bitnet": self.bitnet_resource,
                 "cartridge": self.cartridge_resource, "kobold": self.kobold_resource}  # fmt: skip
        return {layer: tuple(part.strip() for part in text.split(",") if part.strip()) for layer, text in named.items()}

    @property
    def embedded_redis(self) -> bool:
        """Whether Redis is the private one that Kitbash starts by itself."""
        return self.redis_url is None and self.redis_host is None

    @property
    def resolved_redis_url(self) -> str:
        if self.redis_url:
            return self.redis_url
        if self.redis_host:
            login = f":{quote(self.redis_password, safe='')}@" if self.redis_password else ""
            return f"redis://{login}{self.redis_host}:{self.redis_port}/{self.redis_db}"
        return f"unix://{self.state_dir / 'redis.sock'}"

    @property
    def url(self) -> str:
        return (self.kitbash_url or f"http://{self.kitbash_host}:{self.kitbash_port}").rstrip("/")

    def without_effect(self) -> list[str]:
        """Names of given settings that change nothing."""
        return [name.upper() for name in WITHOUT_EFFECT if name in self.model_fields_set]


def load_settings(**given: Any) -> Settings:
    """Read the settings; `given` (command-line options) goes before everything else.

    Raises ConfigError with one sentence when a setting is unknown or malformed.
    """
    _refuse_unknown(os.environ)
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # an unreadable or broken .env or YAML file
        raise ConfigError(f"The settings cannot be read: {' '.join(str(error).split())}") from error
    except Exception as error:  # yaml.YAMLError, kept out of the imports of every actor
        raise ConfigError(f"The YAML settings are broken: {' '.join(str(error).split())}") from error


def child_environment(**extra: str) -> dict[str, str]:
    """This process's environment with `extra`, for a process that it starts."""
    return {**os.environ, **extra}


def ray_auth() -> str:
    """Whether Ray is to ask for its token, by the rule of `ray start`: "token" or "disabled".

    RAY_AUTH_MODE decides; without it a token that exists is asked for.
    https://docs.ray.io/en/latest/ray-security/token-auth.html
    """
    if mode := os.environ.get("RAY_AUTH_MODE"):
        return mode.lower()
    return "token" if os.environ.get("RAY_AUTH_TOKEN") or ray_token_file().exists() else "disabled"


def ray_token_file() -> Path:
    """Where Ray looks for its token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def started_by_up() -> bool:
    """Whether this process belongs to a cluster that `kitbash up` started."""
    return CLUSTER_MARK in os.environ


def no_color() -> bool:
    """Whether the person asked for output without colour (https://no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def _refuse_unknown(environment: Any) -> None:
    known = {name.upper() for name in Settings.model_fields}
    for name in environment:
        if name.upper().startswith(OWN_PREFIXES) and name.upper() not in known | INTERNAL:
            raise ConfigError(f"Unknown setting {name} in the environment{_hint(name, known)}")


#: What is in a setting with one of these in its name is not repeated; a URL of Redis may hold a password.
SECRET_NAMES = ("TOKEN", "PASSWORD", "KEY", "REDIS_URL")
#: Set by `kitbash up` for the processes it starts, so that `kitbash down` finds all of them.
CLUSTER_MARK = "KITBASH_CLUSTER_ID"
#: Where benchmarks find data that does not come with Kitbash; no setting of Kitbash itself.
BENCHMARK_DATA = "KITBASH_BENCH_DATA"
INTERNAL = {CLUSTER_MARK, BENCHMARK_DATA}


def _server_url(host: str, port: int) -> str:
    return host.rstrip("/") if "://" in host else f"http://{host}:{port}"


def _hint(name: str, known: set[str]) -> str:
    near = get_close_matches(name.upper(), known, n=1)
    return f": did you mean {near[0]}?" if near else "; the README lists every setting."


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"]).upper()
    if first["type"] == "extra_forbidden":
        known = {field.upper() for field in Settings.model_fields}
        return f"Unknown setting {name}{_hint(name, known)}"
    shown = "" if any(secret in name for secret in SECRET_NAMES) else f" ({first['input']!r})"
    return f"Setting {name} is malformed{shown}: {first['msg'].removeprefix('Value error, ')}."


def _yaml_file(given: Any, dotenv: DotEnvSettingsSource) -> Path | None:
    named = given or os.environ.get("KITBASH_CONFIG") or dotenv.env_vars.get("kitbash_config")
    if named:
        if not Path(named).is_file():
            raise ConfigError(f"KITBASH_CONFIG names {named!r}, which is no file.")
        return Path(named)
    for candidate in (Path("kitbash.yaml"), _xdg("XDG_CONFIG_HOME", ".config") / "kitbash.yaml"):
        if candidate.is_file():
            return candidate
    return None


def _xdg(variable: str, default: str) -> Path:
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / default) / "kitbash"
