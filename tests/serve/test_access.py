"""Access over HTTP: keys, origins, hosts, limits, the page, logs and metrics."""

import shutil
import subprocess

import pytest

from onesug_jax.errors import UserError
from onesug_jax.serve.server import ServerConfig
from tests.serve.asking import feedback, field_of, suggest


def test_with_a_key_everything_but_the_page_and_health_needs_it(client, tmp_path):
    path = tmp_path / "key"
    path.write_text("opensesame\n")
    api = client(api_key_file=str(path), host="0.0.0.0")
    for open_path in ("/", "/docs", "/app.js", "/health", "/ready", "/openapi.json"):
        assert api.get(open_path).status_code == 200, open_path
    with_text = [("POST", "/suggest"), ("POST", "/feedback"), ("GET", "/metrics")]
    for method, closed in [*with_text, ("GET", "/users/u"), ("DELETE", "/users/u"), ("GET", "/x")]:
        reply = api.request(method, closed, headers={"x-api-key": "wrong"})
        assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
    for headers in ({"x-api-key": "opensesame"}, {"authorization": "Bearer opensesame"}):
        assert api.get("/metrics", headers=headers).status_code == 200
    assert api.get("/metrics", headers={"x-api-key": b"opensesam\xe9"}).status_code == 401


def test_other_machines_need_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("ONESUG_API_KEY", raising=False)
    assert ServerConfig().key() is None
    with pytest.raises(UserError, match="api_key_file"):
        ServerConfig(host="0.0.0.0").key()
    assert ServerConfig(host="0.0.0.0", without_key=True).key() is None
    monkeypatch.setenv("ONESUG_API_KEY", "k")
    assert ServerConfig(host="0.0.0.0").key() == "k"
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        ServerConfig(api_key_file=str(tmp_path / "empty")).key()
    with pytest.raises(UserError, match="nowhere"):
        ServerConfig(api_key_file=str(tmp_path / "nowhere")).key()


def test_pages_of_other_origins_are_refused_unless_allowed(client):
    api = client(origins=["https://shop.example"])
    for origin, expected in [
        ("http://127.0.0.1:8000", 200),
        ("https://shop.example", 200),
        ("https://evil.example", 403),
        ("null", 403),
    ]:
        reply = api.post("/suggest", json={}, headers={"origin": origin})
        assert reply.status_code == expected, origin
    ask = {"access-control-request-method": "POST", "origin": "https://shop.example"}
    reply = api.options("/suggest", headers=ask)
    assert reply.headers["access-control-allow-origin"] == "https://shop.example"
    assert api.options("/suggest", headers={**ask, "origin": "https://x"}).status_code == 403


def test_a_foreign_host_name_is_refused(client):
    api = client(hosts=["suggest.internal"])
    for host, expected in [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("suggest.internal:80", 200),
        ("evil.example", 421),
        ("", 421),
    ]:
        assert api.get("/health", headers={"host": host}).status_code == expected, host


# ------------------------------------------------------------------ limits, page, logs


def test_a_body_too_large_is_refused_announced_or_not(client):
    api = client(body_bytes=1000)
    headers = {"content-type": "application/json"}
    large = b'{"prefix": "' + b"a" * 2000 + b'"}'
    assert api.post("/suggest", content=large, headers=headers).status_code == 413
    reply = api.post("/suggest", content=iter([large[:900], large[900:]]), headers=headers)
    assert reply.status_code == 413 and field_of(reply.json()) == "body"


def test_the_page_and_its_files_are_served_and_nothing_else(client):
    api = client()
    page = api.get("/")
    assert page.headers["content-type"].startswith("text/html") and 'role="combobox"' in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in (
        "/index.html",
        "/../pyproject.toml",
        "/..%2f..%2fpyproject.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/web/app.js",
        "/app.js/",
        "/app.js%00",
        "/.%5c.%5capp.js",
        "//etc/passwd",
        "/static/../app.py",
    ):
        reply = api.get(path, follow_redirects=False)
        assert reply.status_code in (404, 307), path
        assert "onesug_jax" not in reply.text and "root:" not in reply.text


@pytest.mark.parametrize("name", ["app.js", "docs.js"])
def test_the_scripts_have_valid_syntax(name, project_root):
    if not shutil.which("node"):
        pytest.skip("needs node to check the syntax of scripts")
    script = project_root / "onesug_jax" / "serve" / "web" / name
    subprocess.run(["node", "--check", str(script)], check=True)


def test_no_page_requests_another_host(client):
    api = client()
    for path in ("/", "/docs", "/app.js", "/docs.js", "/style.css"):
        text = api.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "//cdn" not in text, path
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text, path


def test_the_interface_describes_itself(client):
    api = client().get("/openapi.json").json()
    assert set(api["paths"]) == {
        "/suggest",
        "/feedback",
        "/users/{user_id}",
        "/health",
        "/ready",
        "/metrics",
    }
    body = api["components"]["schemas"]["SuggestBody"]["properties"]
    assert body["prefix"]["maxLength"] == 64 and body["k"]["maximum"] == 64
    assert {"413", "422", "503"} <= set(api["paths"]["/suggest"]["post"]["responses"])


def test_logs_contain_no_text_by_default(client):
    api = client(log=True)
    suggest(api, prefix="secret", history=["private"])
    api.get("/users/somebody")
    lines = "\n".join(api.lines)
    assert "POST /suggest 200" in lines and "GET /users/{user_id:path} 200" in lines
    assert not any(word in lines for word in ("secret", "private", "somebody"))
    with_text = client(log=True, log_text=True, store=api.store)
    suggest(with_text, prefix="open")
    assert "'open'" in "\n".join(with_text.lines)


def test_metrics_contain_no_text_of_users(client):
    api = client()
    suggest(api, prefix="secret")
    suggest(api, prefix="secret")
    feedback(api, user_id="somebody", query="private")
    api.get("/nowhere/secret")
    text = api.get("/metrics").text
    for line in (
        'onesug_answers_total{cached="false",level="beam"} 1.0',
        'onesug_answers_total{cached="true",level="beam"} 1.0',
        'onesug_feedback_total{result="untrusted"} 1.0',
        'onesug_http_requests_total{route="/suggest",status="200"} 2.0',
        'onesug_http_requests_total{route="other",status="404"} 1.0',
        'onesug_version_in_use{version="0000"} 1.0',
    ):
        assert line in text
    assert not any(word in text for word in ("secret", "private", "somebody"))
