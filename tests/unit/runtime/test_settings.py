"""Settings: what an operator may set, what is refused, and where images may come from."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.contracts.backbones import BackboneName
from services.contracts.errors import SourceNotAllowed
from services.contracts.jobs import WeightsUri
from services.runtime.settings import Settings, check_source_allowed, is_loopback, settings_table


def test_without_any_setting_everything_is_local_and_under_one_folder(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert settings.database_url == f"sqlite+aiosqlite:///{tmp_path}/rekindle.db"
    assert settings.bucket_uri == f"file://{tmp_path}/bucket"
    assert settings.host == "127.0.0.1"
    assert not settings.api_keys_required
    assert settings.local_sources_allowed
    assert settings.base_model() is None


def test_a_relative_home_is_made_absolute_where_others_read_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings(home=Path("here")).bucket_uri == f"file://{tmp_path}/here/bucket"
    assert Settings(home=Path("here")).database_url == f"sqlite+aiosqlite:///{tmp_path}/here/rekindle.db"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REKINDLE_BUCKET", "s3://mine/rekindle/")
    monkeypatch.setenv("REKINDLE_ALLOWED_SOURCES", "s3://pets/, s3://plants/public")
    monkeypatch.setenv("REKINDLE_RAY_TOKEN", "very-secret")
    settings = Settings()
    assert settings.bucket_uri == "s3://mine/rekindle"
    assert settings.allowed_sources == ("s3://pets/", "s3://plants/public")
    assert settings.ray_token is not None
    assert settings.ray_token.get_secret_value() == "very-secret"


def test_secrets_are_not_shown() -> None:
    settings = Settings.model_validate({"ray_token": "very-secret", "database_url": "postgresql://me:very-secret@db/x"})
    assert "very-secret" not in repr(settings)
    assert "very-secret" not in str(settings)


def test_a_refused_value_is_not_shown() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"port": "very-secret"})
    assert "very-secret" not in str(caught.value)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_only_loopback_addresses_are_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_open_address_needs_keys_and_reads_no_local_files() -> None:
    settings = Settings(host="0.0.0.0")
    assert settings.api_keys_required
    assert not settings.local_sources_allowed


def test_keys_cannot_be_switched_off_on_an_open_address() -> None:
    with pytest.raises(ValidationError, match=r"bind 127\.0\.0\.1"):
        Settings(host="0.0.0.0", require_api_keys=False)


def test_the_base_model_takes_the_backbones_own_size_and_a_file_with_its_hash() -> None:
    sha256 = "a" * 64
    base = Settings(base_weights="s3://w/m.h5", base_weights_sha256=sha256).base_model()
    assert base is not None
    assert base.weights == WeightsUri(uri="s3://w/m.h5", sha256=sha256)
    assert (base.backbone, base.image_size) == (BackboneName.MOBILENET_V2, 224)
    named = Settings(base_weights="imagenet", base_image_size=160).base_model()
    assert named is not None
    assert (named.weights, named.image_size) == ("imagenet", 160)


# --- sources ---


@pytest.mark.parametrize(
    ("uri", "prefixes"),
    [
        ("s3://pets/cats/", ("s3://",)),
        ("s3://pets/cats/1.jpg", ("s3://pets/cats",)),
        ("s3://pets/cats", ("s3://pets/cats/",)),
        ("s3://pets/cats/", ("s3://other/", "s3://pets")),
        ("s3://pets/odd#name?.jpg", ("s3://pets/",)),
    ],
)
def test_a_source_under_an_allowed_prefix_is_read(uri: str, prefixes: tuple[str, ...]) -> None:
    check_source_allowed(uri, Settings(allowed_sources=prefixes))


@pytest.mark.parametrize(
    ("uri", "prefixes"),
    [
        ("s3://pets/cats-private/", ("s3://pets/cats",)),
        ("s3://pets-private/", ("s3://pets",)),
        ("s3://pets/cats/../dogs/", ("s3://pets/cats/",)),
        ("s3://pets/dogs/", ()),
        ("S3://pets/", ("s3://",)),
        ("s3:///pets/", ("s3://",)),
        ("s3://pets/a\x00b", ("s3://",)),
        ("http://169.254.169.254/latest/meta-data/", ("s3://", "http://")),
        ("gs://pets/", ("gs://",)),
        ("/etc/passwd", ("/",)),
        ("pets", ("s3://",)),
        ("", ("s3://",)),
        ("file://fileserver/share/", ("s3://",)),
    ],
)
def test_any_other_source_is_refused(uri: str, prefixes: tuple[str, ...]) -> None:
    with pytest.raises(SourceNotAllowed):
        check_source_allowed(uri, Settings(allowed_sources=prefixes))


def test_local_folders_are_read_only_where_the_operator_allows_it() -> None:
    check_source_allowed("file:///data/pets/", Settings())
    check_source_allowed("file:///data/pets/", Settings(host="0.0.0.0", allow_local_sources=True))
    for settings in (Settings(host="0.0.0.0"), Settings(allow_local_sources=False)):
        with pytest.raises(SourceNotAllowed, match="upload the images"):
            check_source_allowed("file:///data/pets/", settings)


# --- documentation ---


def test_every_setting_is_documented() -> None:
    table = settings_table()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"| `REKINDLE_{name.upper()}` |" in table
    assert all(line.count(" | ") == 2 for line in table.splitlines()[2:])
    assert "| `REKINDLE_PORT` | `8080` |" in table
    assert str(Path.cwd()) not in table
