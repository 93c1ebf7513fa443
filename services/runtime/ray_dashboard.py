"""The way to a Ray cluster's dashboard, where its Jobs API and Serve's REST API are."""

import httpx2


def dashboard_client(
    url: str, *, token: str | None, timeout_s: float, transport: httpx2.AsyncBaseTransport | None = None
) -> httpx2.AsyncClient:
    """A client of the dashboard at `url`, e.g. `http://127.0.0.1:8265`. The caller closes it.

    `token` is Ray's bearer token where the cluster asks for one; `transport` stands in for the network.
    """
    return httpx2.AsyncClient(
        base_url=url,
        headers={"authorization": f"Bearer {token}"} if token else {},
        timeout=timeout_s,
        transport=transport,
        trust_env=False,
    )
