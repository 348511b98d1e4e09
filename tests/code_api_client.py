"""What LibreChat's client asks of the code API, without the client."""

from __future__ import annotations

import re
from typing import Any

import requests

from conftest import Service, http

ID = re.compile(r"[A-Za-z0-9_-]{21}")
Ref = dict[str, Any]


class CodeApi:
    """What LibreChat's client does, without the client."""

    def __init__(self, service: Service) -> None:
        self.url = f"{service.url}/v1"

    def post(self, path: str, **fields: Any) -> requests.Response:
        return http.post(f"{self.url}{path}", timeout=250, **fields)

    def exec(
        self, code: str, lang: str = "bash", files: Any = (), **more: Any
    ) -> dict[str, Any]:
        body = {"lang": lang, "code": code, "files": list(files), **more}
        response = self.post("/exec", json=body)
        assert response.status_code == 200, response.text
        reply: dict[str, Any] = response.json()
        assert ID.fullmatch(reply["session_id"])
        return reply

    def upload(self, name: str, data: bytes, **fields: str) -> Ref:
        form = {"kind": "user", "id": "u1", **fields}
        response = self.post("/upload", data=form, files={"file": (name, data)})
        assert response.status_code == 200, response.text
        reply = response.json()
        assert reply["message"] == "success"
        return {
            "id": reply["files"][0]["fileId"],
            "storage_session_id": reply["storage_session_id"],
            "name": name,
            "kind": "user",
            "resource_id": "u1",
        }

    def upload_batch(self, files: dict[str, bytes], **fields: str) -> dict[str, Any]:
        parts = [("file", (name, data)) for name, data in files.items()]
        response = self.post("/upload/batch", data=fields, files=parts)
        assert response.status_code == 200, response.text
        reply: dict[str, Any] = response.json()
        return reply

    def download(self, ref: Ref) -> bytes:
        path = f"/download/{ref['storage_session_id']}/{ref['id']}"
        response = http.get(f"{self.url}{path}", timeout=100)
        assert response.status_code == 200, response.text
        return response.content

    def probe(self, ref: Ref) -> requests.Response:
        path = f"/sessions/{ref['storage_session_id']}/objects/{ref['id']}"
        return http.get(f"{self.url}{path}?kind=user&id=u1", timeout=10)


def named(reply: dict[str, Any]) -> dict[str, Ref]:
    return {ref["name"]: ref for ref in reply["files"]}
