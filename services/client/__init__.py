"""The Python client: `Rekindle("http://127.0.0.1:8080")`."""

from services.client.client import Rekindle
from services.client.errors import ApiError, ClientError, JobFailed, Unreachable
from services.client.explanations import ExplainedPicture
from services.client.prediction_stream import StreamedImage

__all__ = ["ApiError", "ClientError", "ExplainedPicture", "JobFailed", "Rekindle", "StreamedImage", "Unreachable"]
