"""Where the command line finds the server."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.client.client import DEFAULT_URL


class CliSettings(BaseSettings):
    """Read from `REKINDLE_URL` and `REKINDLE_API_KEY`; the options `--url` and `--api-key` win."""

    model_config = SettingsConfigDict(env_prefix="REKINDLE_", frozen=True, extra="ignore", hide_input_in_errors=True)

    url: str = Field(default=DEFAULT_URL, description="Base URL of the server.")
    api_key: SecretStr | None = Field(default=None, description="API key, where the server needs one.")
