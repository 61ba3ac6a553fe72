"""Tenants by a header: what the middleware reads, and what reaches SGLang's request whatever the client says itself."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI, Request

from tokencake_sglang.server.identity import PATHS, AgentIdentityMiddleware, attach_metadata
from tokencake_sglang.server.tenants import MAX_NAME, tenant_of

HASHED = "#" + "0123456789abcdef"


@pytest.mark.parametrize(("headers", "tenant"), [
    ({"X-Tenant": "acme"}, "acme"), ({"x-tenant": "  acme "}, "acme"), ({"x-tenant": ""}, None), ({}, None),
    ({"x-other": "acme"}, None), ({"x-tenant": "a" * MAX_NAME}, "a" * MAX_NAME)])
def test_a_tenant_is_what_the_header_says(headers, tenant):
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert tenant_of(pairs, "X-Tenant") == tenant


@pytest.mark.parametrize(("header", "value"), [
    ("authorization", "Bearer sk-1"), ("X-API-Key", "sk-1"), ("x-tenant", "a" * (MAX_NAME + 1)), ("x-tenant", "a\x01")])
def test_a_secret_and_what_is_no_name_is_known_by_its_hash(header, value):
    found = tenant_of([(header.lower().encode(), value.encode())], header)
    assert found.startswith("#") and len(found) == len(HASHED) and value not in found
    assert found == tenant_of([(header.lower().encode(), value.encode())], header)


def send(body: dict, headers: dict, given: object = None, path: str = "/generate", header: str = "x-tenant") -> object:
    """The metadata on SGLang's internal request, which had `given` from the body."""
    app, seen = FastAPI(), []

    async def generate(request: Request):
        internal = SimpleNamespace(agent_metadata=given)
        attach_metadata(None, internal, request)
        seen.append((internal.agent_metadata, await request.body()))
        return {}

    for one in PATHS:
        app.add_api_route(one, generate, methods=["POST"])
    app.add_middleware(AgentIdentityMiddleware, infer=True, tenant_header=header)

    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
            return await client.post(path, json=body, headers=headers)

    assert asyncio.run(go()).status_code == 200
    (metadata, raw), = seen
    assert json.loads(raw) == body
    return metadata


@pytest.mark.parametrize("path", sorted(PATHS))
def test_a_plain_request_is_its_tenants_and_its_body_stays(path):
    assert send({"text": "hi"}, {"x-tenant": "acme"}, path=path) == {"tenant": "acme"}


def test_the_tenant_goes_with_the_identity_of_each_prompt():
    headers = {"x-tenant": "acme", "x-session-id": "s1"}
    assert send({"text": "hi"}, headers) == {"agent_id": "s1", "tenant": "acme"}
    given = [{"agent_id": "a"}, None]
    acme = {"tenant": "acme"}
    assert send({"text": "hi"}, {"x-tenant": "acme"}, given) == [{"agent_id": "a", **acme}, acme]


@pytest.mark.parametrize("headers", [{"x-tenant": "acme"}, {}])
def test_what_a_client_says_of_tenants_itself_does_not_count(headers):
    given = {"agent_id": "a", "tenant": "somebody else"}
    assert send({"text": "hi"}, headers, given)["tenant"] == headers.get("x-tenant", "")


def test_without_the_setting_no_header_is_a_tenant():
    assert send({"text": "hi"}, {"x-tenant": "acme"}, header="") is None
