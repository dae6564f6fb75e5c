"""The client: where its configuration comes from, credentials that change, and an end to every wait."""

from __future__ import annotations

import base64
import errno
import gc
import gzip
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netpol.errors import ApiError, Cut, Silence
from netpol.kube import client as module
from netpol.kube.client import Client, configured
from tests.kube.fake import Answer, FakeServer, bare, head, page, silent, status, watch
from tests.referees import require

PATH = "/api/v1/pods"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that answers as the test says."""
    with FakeServer() as fake:
        yield fake


def ask(client: Client) -> int:
    return client.ask("GET", PATH).code


def plugin(folder: Path, body: str, name: str = "plugin") -> dict[str, Any]:
    """A user whose credentials an exec plugin gives: a Python program with this body."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport json, os, sys\n{body}\n")
    path.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path), "interactiveMode": "Never"}}


def gives(status: str) -> str:
    """A program that prints credentials; `status` is Python."""
    return f'print(json.dumps({{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {status}}}))'


@pytest.mark.parametrize(
    ("kind", "protobuf"),
    [
        ("application/vnd.kubernetes.protobuf;stream=watch", True),
        ("Application/vnd.Kubernetes.Protobuf ; charset=x", True),
        ("application/vnd.kubernetes.protobuf", True),
        ("application/json", False),
        ("application/vnd.kubernetes.protobuf+json", False),
        ("", False),
    ],
)
def test_the_form_of_a_watch(server: FakeServer, tmp_path: Path, kind: str, protobuf: bool) -> None:
    """What the server says it is, whatever was asked for; protobuf is asked for only where it may be."""
    server.answer(PATH, *[Answer(head(200, Content_Type=kind), (b"x",))] * 2)
    client = Client(configured(server.kubeconfig(tmp_path)))
    for asked in (True, False):
        with client.watch(PATH, (), 5, protobuf=asked) as stream:
            assert stream.protobuf == protobuf
    accepted = ["application/vnd.kubernetes.protobuf,application/json", "application/json"]
    assert [one.headers["accept"] for one in server.asked] == accepted


# -- configuration -----------------------------------------------------------------------------------------------------


def test_a_kubeconfig(server: FakeServer, tmp_path: Path) -> None:
    """Its server, its token; requests say who asks."""
    server.answer(PATH, page("1"))
    client = Client(configured(server.kubeconfig(tmp_path, {"token": "secret"})))
    answer = client.ask("GET", PATH, (("limit", "5"), ("continue", "a/b=c&d")))
    assert json.loads(answer.body)["metadata"] == {"resourceVersion": "1"}
    (asked,) = server.asked
    assert asked.headers["authorization"] == "Bearer secret"
    assert asked.headers["user-agent"].startswith("netpol/")
    assert asked.query == {"limit": "5", "continue": "a/b=c&d"}
    assert client.server == server.url


def test_the_context_that_is_asked_for(server: FakeServer, tmp_path: Path) -> None:
    """Not the current one; one that is not there is an error."""
    path = server.kubeconfig(tmp_path, {"token": "current"})
    config = json.loads(Path(path).read_text())
    config["contexts"].append({"name": "other", "context": {"cluster": "fake", "user": "else"}})
    config["users"].append({"name": "else", "user": {"token": "other"}})
    config["contexts"].append({"name": "lost", "context": {"cluster": "fake", "user": "nobody"}})
    Path(path).write_text(json.dumps(config))
    server.answer(PATH, page("1"))
    assert ask(Client(configured(path, "other"))) == 200
    assert server.asked[0].headers["authorization"] == "Bearer other"
    for context, words in (("none", "none"), ("lost", "nobody")):
        with pytest.raises(ApiError, match=f"configuration: .*{words}"):
            ask(Client(configured(path, context)))
    assert len(server.asked) == 1


def test_kubeconfigs_of_the_environment(server: FakeServer, tmp_path: Path) -> None:
    """$KUBECONFIG names several, which are one."""
    path = Path(server.kubeconfig(tmp_path, {"token": "a"}))
    config = json.loads(path.read_text())
    (tmp_path / "users").write_text(json.dumps({"users": config.pop("users")}))
    path.write_text(json.dumps(config))
    server.answer(PATH, page("1"))
    client = Client(configured(environ={"KUBECONFIG": f"{path}:{tmp_path}/users", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}))
    assert ask(client) == 200
    assert server.asked[0].headers["authorization"] == "Bearer a"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(None, "there is no such file", id="no file"),
        pytest.param("", "", id="empty"),
        pytest.param("[1", "", id="no YAML"),
        pytest.param("5", "", id="a number"),
        pytest.param("{}", "", id="no contexts"),
        pytest.param('{"current-context": "a", "contexts": [{"name": "a"}]}', "context", id="a context without a cluster"),
        pytest.param("contexts: 5\ncurrent-context: a", "", id="contexts that are none"),
    ],
)
def test_a_kubeconfig_that_is_none(tmp_path: Path, text: str | None, words: str) -> None:
    """An error that says so, whatever is wrong."""
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ApiError, match=f"configuration: .*{words}"):
        ask(Client(configured(str(path))))


# -- credentials -------------------------------------------------------------------------------------------------------


def test_a_token_file_is_read_for_each_request(server: FakeServer, tmp_path: Path) -> None:
    """A rotated token is used at once, and wins over one in the kubeconfig; a file that is gone or empty is an error, not anonymous."""
    token = tmp_path / "token"
    token.write_text("one\n")
    server.answer(PATH, page("1"), page("1"), page("1"))
    client = Client(configured(server.kubeconfig(tmp_path, {"tokenFile": "token", "token": "old"})))
    assert ask(client) == 200
    token.write_text("two")
    assert ask(client) == 200
    token.write_text(" \n")
    with pytest.raises(ApiError, match=r"configuration: the token file .*token is empty"):
        ask(client)
    token.unlink()
    with pytest.raises(ApiError, match=r"configuration: .*token: No such file"):
        ask(client)
    token.write_text("three")
    assert ask(client) == 200
    assert [one.headers["authorization"] for one in server.asked] == ["Bearer one", "Bearer two", "Bearer three"]


@pytest.mark.parametrize("user", [{"token": "se\ncret"}, {"tokenFile": "token"}, {"token": "secrét"}])
def test_a_token_that_is_none(server: FakeServer, tmp_path: Path, user: dict[str, str]) -> None:
    """The error does not show it."""
    (tmp_path / "token").write_text("se\x00cret")
    with pytest.raises(ApiError, match="configuration: the token holds characters that no token has") as caught:
        ask(Client(configured(server.kubeconfig(tmp_path, user))))
    assert "cret" not in str(caught.value)
    assert server.asked == []


def test_an_answer_401_loads_everything_anew(server: FakeServer, tmp_path: Path) -> None:
    """A kubeconfig that somebody wrote again counts from the next request on."""
    server.tokens = {"new"}
    server.answer(PATH, page("1"))
    client = Client(configured(server.kubeconfig(tmp_path, {"token": "old"})))
    assert ask(client) == 401
    server.kubeconfig(tmp_path, {"token": "new"})
    assert ask(client) == 200
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param("sys.exit('no login')", "returned 1.*no login", id="fails"),
        pytest.param("print('hello')", "decode", id="no JSON"),
        pytest.param(gives("{}"), "plugin gave neither a token nor a certificate", id="gives nothing"),
        pytest.param(gives("{'clientCertificateData': 'x'}"), "gave neither", id="a certificate without its key"),
        pytest.param(gives("'x'"), "gave no status", id="text"),
        pytest.param("print('[]')", "gave no status", id="a list"),
        pytest.param('print(\'{"apiVersion": "v9", "kind": "ExecCredential", "status": {}}\')', "version v9", id="another version"),
        pytest.param(gives("{'token': 'a', 'expirationTimestamp': 'soon'}"), "soon", id="an expiry that is none"),
    ],
)
def test_an_exec_plugin_that_fails(server: FakeServer, tmp_path: Path, body: str, words: str) -> None:
    """It is an error in its own words, and nothing is asked without credentials."""
    client = Client(configured(server.kubeconfig(tmp_path, plugin(tmp_path, body))))
    with pytest.raises(ApiError, match=f"(?s)configuration: .*{words}"):
        ask(client)
    assert server.asked == []


def test_an_exec_plugin_that_is_not_there(server: FakeServer, tmp_path: Path) -> None:
    """The error names it."""
    user = plugin(tmp_path, "")
    user["exec"]["command"] = "/nowhere/plugin"
    with pytest.raises(ApiError, match=r"configuration: .*/nowhere/plugin"):
        ask(Client(configured(server.kubeconfig(tmp_path, user))))


def test_an_exec_plugin_runs_again_when_its_token_runs_out(server: FakeServer, tmp_path: Path) -> None:
    """Once while the token is good; and again after an answer 401."""
    count = "n = open('count', 'a'); n.write('.'); n.close(); n = len(open('count').read())\n"
    expires = "'2020-01-01T00:00:00Z' if n == 1 else '2999-01-01T00:00:00Z'"
    body = count + gives(f"{{'token': f'token-{{n}}', 'expirationTimestamp': {expires}}}")
    server.answer(PATH, *[page("1")] * 3)
    client = Client(configured(server.kubeconfig(tmp_path, plugin(tmp_path, body))))
    assert [ask(client) for _ in range(3)] == [200, 200, 200]
    server.tokens = {"token-3"}
    server.answer(PATH, page("1"))
    assert [ask(client) for _ in range(2)] == [401, 200]
    tokens = [one.headers["authorization"].removeprefix("Bearer ") for one in server.asked]
    assert tokens == ["token-1", "token-2", "token-2", "token-2", "token-3"]


# -- answers -----------------------------------------------------------------------------------------------------------


def test_refusals_are_answers(server: FakeServer, tmp_path: Path) -> None:
    """With their code, their body, and Retry-After where it is a number of seconds."""
    server.answer(PATH, status(429, "TooManyRequests", Retry_After="7"), bare(503, Retry_After="Fri, 31 Dec 1999 23:59:59 GMT"))
    client = Client(configured(server.kubeconfig(tmp_path)))
    first, second = client.ask("GET", PATH), client.ask("GET", PATH)
    assert (first.code, json.loads(first.body)["reason"], first.retry_after) == (429, "TooManyRequests", 7.0)
    assert (second.code, second.retry_after) == (503, None)


def test_nothing_is_tried_again_or_followed(server: FakeServer, tmp_path: Path) -> None:
    """One request each: no retries, no redirects, which would take our token elsewhere."""
    server.answer(PATH, Answer(None), bare(500), bare(301, Location=f"{server.url}/other"), Answer(head(200), (b"x",), whole=False))
    client = Client(configured(server.kubeconfig(tmp_path)))
    with pytest.raises(ApiError):
        ask(client)
    assert [ask(client), ask(client)] == [500, 301]
    with pytest.raises(Cut):
        ask(client)
    assert [one.path for one in server.asked] == [PATH] * 4


def test_no_connection_is_told_in_words(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where to and why: nobody listens there, the name is none, and nobody takes the connection. No object of Python's is in it."""
    monkeypatch.setattr(module, "CONNECT", 0.2)
    path = Path(server.kubeconfig(tmp_path))
    config = json.loads(path.read_text())

    def words(address: str) -> str:
        config["clusters"][0]["cluster"]["server"] = address
        path.write_text(json.dumps(config))
        with pytest.raises(ApiError) as caught:
            ask(Client(configured(str(path))))
        return str(caught.value)

    with socket.create_server(("127.0.0.1", 0), backlog=0) as busy, socket.socket() as free, socket.socket() as one, socket.socket() as two:
        free.bind(("127.0.0.1", 0))
        nobody, full = free.getsockname()[1], busy.getsockname()[1]
        for waiting in (one, two):
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", full))
        assert words(f"http://127.0.0.1:{nobody}") == f"no connection to 127.0.0.1 port {nobody}: Connection refused"
        assert words("http://no.such.host.invalid:80").startswith("no connection to no.such.host.invalid port 80: ")
        assert words(f"http://127.0.0.1:{full}").startswith("Connection to 127.0.0.1 timed out.")
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{nobody}")
        expected = f"by way of the proxy that HTTPS_PROXY names: no connection to 127.0.0.1 port {nobody}: Connection refused"
        assert words("https://api.example:6443") == expected


def test_a_connection_is_used_again(server: FakeServer, tmp_path: Path) -> None:
    """After an answer that was read to its end, and a watch that ended; not after one that was left."""
    server.answer(PATH, page("1"), watch(b"a"), status(404), watch(b"a", threading.Event()), page("1"))
    client = Client(configured(server.kubeconfig(tmp_path)))
    ask(client)
    with client.watch(PATH, (), 60) as stream:
        assert [stream.read(), stream.read()] == [b"a", b""]
    ask(client)
    with client.watch(PATH, (), 60) as stream:
        assert stream.read() == b"a"
    assert server.connections == 1
    ask(client)
    assert server.connections == 2


def test_a_body_is_sent_as_json(server: FakeServer, tmp_path: Path) -> None:
    """For those who write Events."""
    server.answer("/apis/events.k8s.io/v1/events", Answer(head(201), (b"{}",)))
    client = Client(configured(server.kubeconfig(tmp_path)))
    assert client.ask("POST", "/apis/events.k8s.io/v1/events", body={"reason": "Invalid"}).code == 201
    (asked,) = server.asked
    assert (asked.method, json.loads(asked.body), asked.headers["content-type"]) == ("POST", {"reason": "Invalid"}, "application/json")


def test_silence_has_an_end(server: FakeServer, tmp_path: Path) -> None:
    """Before an answer and in its midst."""
    server.answer(PATH, silent(), watch(b"a", threading.Event()))
    client = Client(configured(server.kubeconfig(tmp_path)))
    with pytest.raises(Silence), client.watch(PATH, (), 0.1):
        pass
    with client.watch(PATH, (), 0.1) as stream:
        assert stream.read() == b"a"
        with pytest.raises(Silence):
            stream.read()


def test_an_answer_without_end_is_given_up(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is sent fills the memory: not a page, nor the body of an error."""
    monkeypatch.setattr(module, "MAX_BODY", 10_000)
    monkeypatch.setattr(module, "MAX_ERROR_BODY", 10_000)
    server.answer(PATH, watch(*[b"x" * 1000] * 50), Answer(head(500), (b"x" * 1000,) * 50))
    client = Client(configured(server.kubeconfig(tmp_path)))
    with pytest.raises(Cut, match="longer than 10000 bytes"):
        ask(client)
    answer = client.ask("GET", PATH)
    assert answer.code == 500
    assert len(answer.body) == 10_001


def test_a_compressed_flood_comes_in_pieces(server: FakeServer, tmp_path: Path) -> None:
    """Some kilobytes can stand for megabytes: no read gives more than a buffer, though nobody asked for compression."""
    flood = gzip.compress(bytes(64 * module.CHUNK))
    assert len(flood) < module.CHUNK
    server.answer(PATH, Answer(head(200, Content_Encoding="gzip"), (flood,)))
    with Client(configured(server.kubeconfig(tmp_path))).watch(PATH, (), 5.0) as stream:
        pieces = list(iter(stream.read, b""))
    assert sum(map(len, pieces)) == 64 * module.CHUNK
    assert max(map(len, pieces)) <= module.CHUNK


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with server.crt, which is its own CA, for 127.0.0.1, and server.key; and other.crt, another CA."""
    require("openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=fake -addext subjectAltName=IP:127.0.0.1"
    for name in ("server", "other"):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
        subprocess.run(["openssl", *command.split(), *files], cwd=folder, check=True, capture_output=True)
    return folder


def serving(certificates: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    return context


def test_in_a_pod(server: FakeServer, tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service account's token and CA; where a file is missing, the error says so; a token that the kubelet rotated is used."""
    server.tls = serving(certificates)
    token, ca = tmp_path / "token", tmp_path / "ca.crt"
    monkeypatch.setattr(module, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(module, "SERVICE_CERT_FILENAME", str(ca))
    client = Client(configured(environ={"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}))
    with pytest.raises(ApiError, match=f"configuration: {token}: No such file"):
        ask(client)
    token.write_text("first\n")
    with pytest.raises(ApiError, match=r"configuration: .*certification"):
        ask(client)
    ca.write_bytes((certificates / "server.crt").read_bytes())
    server.answer(PATH, page("1"), page("1"))
    assert ask(client) == 200
    token.write_text("second\n")
    assert ask(client) == 200
    assert [one.headers["authorization"] for one in server.asked] == ["Bearer first", "Bearer second"]


def test_tls(server: FakeServer, tmp_path: Path, certificates: Path) -> None:
    """A server whose CA the kubeconfig does not have is told nothing, until the CA is put right."""
    server.tls = serving(certificates)
    path = Path(server.kubeconfig(tmp_path, {"token": "t"}, f"https://127.0.0.1:{server.port}"))
    config = json.loads(path.read_text())

    def trust(name: str) -> None:
        data = base64.b64encode((certificates / name).read_bytes()).decode()
        config["clusters"][0]["cluster"]["certificate-authority-data"] = data
        path.write_text(json.dumps(config))

    trust("other.crt")
    client = Client(configured(str(path)))
    server.answer(PATH, page("1"), watch(b"a", threading.Event()))
    with pytest.raises(ApiError, match=r"TLS: .*verify failed"):
        ask(client)
    assert server.asked == []
    trust("server.crt")
    assert ask(client) == 200
    with client.watch(PATH, (), 60) as stream:
        assert stream.read() == b"a"
        threading.Thread(target=client.close).start()
        with pytest.raises(Cut):
            stream.read()


@pytest.mark.parametrize("way", ["in the kubeconfig", "of an exec plugin"])
def test_keys_are_on_no_disk(server: FakeServer, tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """The client's key and certificate, and the CA, where they stand in the kubeconfig or come of a plugin: TLS has them, and no file does.
    What is loaded anew leaves nothing of the old one open."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    server.tls = serving(certificates)
    server.tls.verify_mode = ssl.CERT_REQUIRED
    server.tls.load_verify_locations(certificates / "other.crt")
    key, certificate = ((certificates / f"other.{end}").read_text() for end in ("key", "crt"))
    inline = {"client-key-data": key, "client-certificate-data": certificate}
    user: dict[str, Any] = {name: base64.b64encode(text.encode()).decode() for name, text in inline.items()}
    if way == "of an exec plugin":
        user = plugin(tmp_path, gives(repr({"clientKeyData": key, "clientCertificateData": certificate})))
    path = Path(server.kubeconfig(tmp_path, user, f"https://127.0.0.1:{server.port}"))
    config = json.loads(path.read_text())
    authority = base64.b64encode((certificates / "server.crt").read_bytes()).decode()
    config["clusters"][0]["cluster"]["certificate-authority-data"] = authority
    path.write_text(json.dumps(config))
    gc.collect()  # of clients that other tests had
    client = Client(configured(str(path)))
    server.answer(PATH, *[page("1"), status(401)] * 4, page("1"))
    opened = []
    for _ in range(4):
        assert ask(client) == 200
        assert os.listdir(scratch) == []
        opened.append(sum("memfd:netpol" in name for name in map(_opened, os.listdir("/proc/self/fd"))))
        assert ask(client) == 401
        gc.collect()
    assert opened == [3] * 4
    assert ask(client) == 200
    client.close()


def _opened(descriptor: str) -> str:
    """What is open there; the descriptor of the listing itself is gone by now."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return ""


def test_a_key_that_is_no_base64(server: FakeServer, tmp_path: Path) -> None:
    """It is a mistake in the configuration, nothing is asked without it, and nothing else of it stays open."""
    good = base64.b64encode(b"x").decode()
    client = Client(configured(server.kubeconfig(tmp_path, {"client-certificate-data": good, "client-key-data": "x"})))
    with pytest.raises(ApiError, match=r"^configuration: client-key-data is no base64$"):
        ask(client)
    assert server.asked == []
    gc.collect()
    assert not any("memfd:netpol" in name for name in map(_opened, os.listdir("/proc/self/fd")))


def test_keys_where_the_system_lets_us_have_no_files_in_memory(
    server: FakeServer, tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the package's way is right: it works."""

    def refuse(name: str) -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "memfd_create", refuse)
    server.tls = serving(certificates)
    path = Path(server.kubeconfig(tmp_path, {"token": "t"}, f"https://127.0.0.1:{server.port}"))
    config = json.loads(path.read_text())
    authority = base64.b64encode((certificates / "server.crt").read_bytes()).decode()
    config["clusters"][0]["cluster"]["certificate-authority-data"] = authority
    path.write_text(json.dumps(config))
    server.answer(PATH, page("1"))
    assert ask(Client(configured(str(path)))) == 200


def test_data_that_is_empty_is_not_there(server: FakeServer, tmp_path: Path, certificates: Path) -> None:
    """The file beside it counts."""
    server.tls = serving(certificates)
    path = Path(server.kubeconfig(tmp_path, {"token": "t"}, f"https://127.0.0.1:{server.port}"))
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"] |= {"certificate-authority-data": "", "certificate-authority": str(certificates / "server.crt")}
    path.write_text(json.dumps(config))
    server.answer(PATH, page("1"))
    assert ask(Client(configured(str(path)))) == 200


# -- the end -----------------------------------------------------------------------------------------------------------


def test_close_wakes_who_waits_for_an_answer(server: FakeServer, tmp_path: Path) -> None:
    """Before an answer, in one, and in one after which the connection would end; and nothing is asked afterwards."""
    server.answer("/a", silent())
    server.answer("/b", watch(b"a", threading.Event()))
    server.answer("/c", Answer(head(200, Connection="close"), (b"a", threading.Event())))
    client = Client(configured(server.kubeconfig(tmp_path)))
    ends: list[str] = []

    def follow(path: str) -> None:
        try:
            with client.watch(path, (), 600) as stream:
                while stream.read():
                    pass
        except ApiError as error:
            ends.append(type(error).__name__)

    threads = [threading.Thread(target=follow, args=(path,)) for path in ("/a", "/b", "/c")]
    for thread in threads:
        thread.start()
    server.wait(3)
    client.close()
    for thread in threads:
        thread.join(60)
    assert ends == ["Cut"] * 3
    with pytest.raises(ApiError, match="the client is closed"):
        ask(client)
    assert len(server.asked) == 3
