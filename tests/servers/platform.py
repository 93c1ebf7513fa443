"""Both gateways in one application, as `services.local.app` joins them, with Ray and Serve played by the test."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from services.inference.main import build_parts as build_inference
from services.local.ports import free_ports
from services.runtime.app import create_app
from services.runtime.database import Database
from services.runtime.gateway import join
from services.runtime.objects import open_store
from services.runtime.settings import Settings
from services.training.main import build_parts as build_training
from services.training.models import queries
from tests.servers.fake_ray import FakeRay
from tests.servers.serve_fake import FakeServe, running
from tests.servers.training import TrainingGateway, make_manifest

TRUNK = "a"
BASE_TRUNK = "b"


@dataclass
class Platform(TrainingGateway):
    """The started application. Serve has the trunks of `make_manifest`, and of `base`."""

    serve: FakeServe

    async def serve_version(self, model_name: str, version: int, trunk: str = TRUNK, *, listed: bool = False) -> None:
        """Serve can load the version; with `listed`, the database has it as well."""
        self.serve.versions[model_name, version] = trunk * 64
        if listed:
            async with self.database.transaction() as session:
                await queries.insert_version(session, make_manifest(version, model_name, trunk=trunk))


@asynccontextmanager
async def running_platform(folder: Path, database_url: str, **options: Any) -> AsyncGenerator[Platform, None]:
    """The application on a local bucket, with the model `base`. `options` are settings."""
    serve = FakeServe()
    serve.deployed = {TRUNK * 64, BASE_TRUNK * 64}
    with running(serve, free_ports(1)[0]) as serve_url:
        values = {
            "reconcile_interval_s": 0.05,
            "lease_s": 2,
            "predict_deadline_s": 10,
            "serve_url": serve_url,
            "spare_driver": False,
        }
        bucket = (folder / "bucket").as_uri()
        settings = Settings(home=folder / "home", bucket=bucket, database_url=database_url, **values | options)
        database, store, ray = Database(database_url), open_store(bucket), FakeRay()
        parts = join([build_training(settings, database, store, ray), build_inference(settings, database, store)])
        app = create_app(
            service="rekindle",
            title="t",
            description="d",
            version="0",
            settings=settings,
            routers=parts.routers,
            database=database,
            tags=parts.tags,
            lifespan=parts.lifespan,
        )
        async with app.router.lifespan_context(app):
            transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://rekindle", timeout=30) as client:
                platform = Platform(app, client, ray, store, database, settings, folder, serve)
                await platform.serve_version("base", 1, BASE_TRUNK, listed=True)
                yield platform


@pytest.fixture
async def platform(tmp_path: Path, empty_sqlite_url: str) -> AsyncIterator[Platform]:
    """Both gateways on SQLite."""
    async with running_platform(tmp_path, empty_sqlite_url) as started:
        yield started
