"""One frozen tree of settings: `SIMILIS_` prefix, `__` between levels, `..._FILE` for secrets in files.

Read only by the edges and by `shared.runtime`. `.env.example` lists every setting; a test compares the two.
"""

import os
import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from shared.wording import must

_POSTGRES = re.compile(
    r"postgresql(\+psycopg)?://([^:@/\s]+(:[^@\s]*)?@)?([^:@/?\s]*|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/\S*)?"
)
_ADDRESS = (
    "the URL must have the form postgresql+psycopg://user:password@host:port/database; "
    "percent-encode special characters in the password"
)
_REDIS = re.compile(
    r"rediss?://([^@/\s]*@)?([^:@/?\s]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/\S*)?|redis\+socket:///\S+|sentinel://\S+"
)

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_AE_TITLE = r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$"
_HTTP = r"^https?://[^\s@?#]+$"
_HTTP_OR_NONE = r"^(https?://[^\s@?#]+)?$"
_URL = "must be an http:// or https:// address without user, password, `?` and `#`"
#: The message of a refusal, in place of the pattern.
_WRITTEN = {
    _NAME: "must have 1 to 64 characters: letters, digits, '.', '_', '-'; it starts with a letter or digit",
    _AE_TITLE: "must have 1 to 16 printable ASCII characters, no backslash, and no space at either end",
    _HTTP: _URL,
    _HTTP_OR_NONE: _URL,
}


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise PydanticCustomError("relative", "must be an absolute path")
    return path


#: A path in a list: only a setting that is one path may be relative to where the command is called.
Absolute = Annotated[Path, AfterValidator(_absolute)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Database(_Part):
    url: SecretStr = SecretStr("")  #: postgresql+psycopg://user:password@host/similis
    pool_size: int = Field(default=8, ge=1, le=100)

    @field_validator("url")
    @classmethod
    def _reads(cls, url: SecretStr) -> SecretStr:
        """Check the address here: the driver's own error message would quote a part of the password."""
        secret = url.get_secret_value()
        if secret and not _POSTGRES.fullmatch(secret):
            raise PydanticCustomError("address", _ADDRESS)
        return url


class Broker(_Part):
    url: SecretStr = SecretStr("")  #: redis://... or redis+socket:///path

    @field_validator("url")
    @classmethod
    def _reads(cls, url: SecretStr) -> SecretStr:
        secret = url.get_secret_value()
        if secret and not _REDIS.fullmatch(secret):
            raise PydanticCustomError(
                "address", "the URL must have the form redis://:password@host:6379/0 or redis+socket:///path"
            )
        return url


class Qdrant(_Part):
    url: str = ""  #: http(s)://host:grpc-port, or unix:///path for the embedded vectors process
    api_key: SecretStr = SecretStr("")
    timeout_s: float = Field(default=10.0, gt=0)
    canary_s: float = Field(default=300.0, ge=0)  #: between two rounds of the recall canary; 0: no canary


class Api(_Part):
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    #: the address that callers use, if a proxy stands in front
    public_url: str = Field(default="", pattern=_HTTP_OR_NONE)
    require_key: bool = True  #: may be switched off on loopback only
    max_upload_mb: int = Field(default=512, ge=1)
    max_store_mb: int = Field(default=8192, ge=1)  #: of one STOW-RS request, which is streamed to the disk
    max_k: int = Field(default=200, ge=1, le=10_000)
    rate_per_s: float = Field(default=50.0, gt=0)  #: per key, token bucket
    burst: int = Field(default=200, ge=1)


class Dicom(_Part):
    host: str = "127.0.0.1"
    port: int = Field(default=11112, ge=0, le=65535)
    ae_title: str = Field(default="SIMILIS", pattern=_AE_TITLE)
    peers: Path | None = None  #: file with the allowed senders; without one, only this machine may send
    processes: int = Field(default=2, ge=1, le=64)
    max_instance_mb: int = Field(default=512, ge=1)  #: at most 512: no larger file is decoded (`Limits.file_bytes`)
    associations: int = Field(default=64, ge=1)
    associations_per_address: int = Field(default=8, ge=1)
    association_s: float = Field(default=3600.0, gt=0)
    idle_s: float = Field(default=60.0, gt=0)
    pdu_s: float = Field(default=5.0, gt=0)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None  #: if set, senders must present a certificate signed by it
    metrics_port: int = Field(default=0, ge=0, le=65535)  #: 0: none


class DicomwebSource(_Part):
    """Another archive that backfills may pull from."""

    name: str = Field(pattern=_NAME)
    url: str = Field(pattern=_HTTP)
    user: str = ""
    password_file: Absolute | None = None
    token_file: Absolute | None = None
    ca_file: Absolute | None = None  #: certificate authorities that are trusted in place of the machine's own


class Intake(_Part):
    store: Path | None = None  #: where files that are sent to us are kept; default home/blobs
    reserve_mb: int = Field(default=2048, ge=0)  #: no sent file is taken in below this and below 5 % of free space
    admission: Path | None = None  #: file of the site's admission rules
    roots: tuple[Absolute, ...] = ()  #: folders that scans may read; empty: none, unless `any_root`
    any_root: bool = False
    dicomweb_sources: tuple[DicomwebSource, ...] = ()
    any_source: bool = False  #: backfills may pull from any address
    batch: int = Field(default=8, ge=1, le=64)
    lease_s: float = Field(default=10.0, gt=0)
    max_failures: int = Field(default=5, ge=1)
    settle_s: float = Field(default=2.0, ge=0)
    watch_interval_s: float = Field(default=5.0, gt=0, le=31 * 86400)  # the doctor knows no longer rest
    same_uid_policy: Literal["never", "same_source", "always"] = "same_source"


class Encoding(_Part):
    runtime: Literal["onnx", "torch"] = "onnx"
    threads: int = Field(default=1, ge=1)


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SIMILIS_", env_nested_delimiter="__", frozen=True, extra="forbid", env_ignore_empty=True,
        hide_input_in_errors=True,  # the value of a misspelt setting may be a password
    )  # fmt: skip

    home: Path = Path.home() / ".similis"
    models: Path | None = None  #: where model cards live; default home/models
    pseudonym_key: SecretStr = SecretStr("")  #: `similis up` keeps it in a file in the home
    log_json: bool = True
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    database: Database = Database()
    broker: Broker = Broker()
    qdrant: Qdrant = Qdrant()
    api: Api = Api()
    dicom: Dicom = Dicom()
    intake: Intake = Intake()
    encoding: Encoding = Encoding()

    @field_validator("pseudonym_key")
    @classmethod
    def _long(cls, key: SecretStr) -> SecretStr:
        if 0 < len(key.get_secret_value().encode()) < 32:  # empty: not set
            raise PydanticCustomError("short", "must have at least 32 bytes")
        return key

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, level: object) -> object:
        return level.upper() if isinstance(level, str) else level

    @property
    def models_dir(self) -> Path:
        return self.models or self.home / "models"

    @property
    def blobs_dir(self) -> Path:
        return self.intake.store or self.home / "blobs"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, PlainEnv(settings_cls), SecretFiles(settings_cls)


class PlainEnv(EnvSettingsSource):
    """The environment without the `..._FILE` variables, which would read as unknown settings."""

    def __call__(self) -> dict[str, Any]:
        for part, field in self.settings_cls.model_fields.items():
            for name in getattr(field.annotation, "model_fields", ()):
                right = f"SIMILIS_{part}__{name}".upper()
                if self.env_vars.get(f"similis_{part}"):  # as JSON; `similis up` would find neither its paths nor roots
                    raise SettingsError(f"SIMILIS_{part.upper()}: each setting in it has its own name, such as {right}")
                if (misspelt := f"similis_{part}_{name}") in self.env_vars:  # it would be ignored
                    raise SettingsError(f"{misspelt.upper()}: is written {right}")
        return super().__call__()

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name: value for name, value in super()._load_env_vars().items() if not name.lower().endswith("_file")}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:  # noqa: ANN401
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            named = (name for name, held in self.env_vars.items() if held == value and name.endswith(field_name))
            raise SettingsError(
                f'{next(named, field_name).upper()}: must be JSON; a list is written ["/first", "/second"]'
            ) from None


#: Read by the command line, not a setting of the server: the file with the caller's own API key.
CLIENT_KEY_FILE = "SIMILIS_KEY_FILE"


class SecretFiles(PydanticBaseSettingsSource):
    """`SIMILIS_DATABASE__URL_FILE=/run/secrets/url` sets `database.url` to what the file holds."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        return None, field_name, False  # values are collected in __call__

    def __call__(self) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for name, path in os.environ.items():
            if not (name.startswith("SIMILIS_") and name.endswith("_FILE") and path) or name == CLIENT_KEY_FILE:
                continue
            *parents, leaf = name.removeprefix("SIMILIS_").removesuffix("_FILE").lower().split("__")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            try:
                node[leaf] = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"the file named by {name} cannot be read ({type(error).__name__})") from None
        return tree


def read(program: str, *secrets: str) -> Settings:
    """Return the settings of this process.

    Args:
        secrets: names of those without which the program would start and refuse all work, as if its callers were wrong.

    Raises: `SystemExit` with a one-line message if they are wrong, or one of the secrets is not set.
    """
    try:
        settings = Settings()
    except (ValidationError, SettingsError) as error:
        raise SystemExit(f"{program}: the settings are wrong: {complaint(error)}") from None
    need(program, settings, *secrets)
    return settings


def need(program: str, settings: Settings, *secrets: str) -> None:
    """Raises: `SystemExit`, naming the first of these secrets that is not set."""
    for name in secrets:
        steps = name.removeprefix("SIMILIS_").lower().split("__")
        secret: Any = reduce(getattr, steps, settings)
        if not secret.get_secret_value():
            raise SystemExit(f"{program}: {name} or {name}_FILE is not set")


def complaint(error: ValidationError | SettingsError) -> str:
    """Describe what is wrong, by the settings' names in the environment; their values are never shown."""
    if isinstance(error, SettingsError):
        return str(error.__cause__ if isinstance(error.__cause__, SettingsError) else error)
    wrong = error.errors(include_input=False, include_url=False)
    return "; ".join(f"SIMILIS_{'__'.join(str(part).upper() for part in one['loc'])}: {_said(one)}" for one in wrong)


def _said(one: ErrorDetails) -> str:
    return "there is no such setting" if one["type"] == "extra_forbidden" else must(one, _WRITTEN)
