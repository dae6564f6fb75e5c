"""Imports that are put off: nothing differs from an import but when it happens; and what of the kubernetes package an agent is spared."""

from __future__ import annotations

import base64
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Dict, Optional, get_args  # noqa: UP035

import pytest

from netpol.kube.client import Client, configured
from netpol.kube.later import put_off
from tests.kube.fake import FakeServer, bare, page

# A package that imports all that it has at its start, and says what was read.
PACKAGE = {
    "__init__.py": "from . import big, small\nfrom .user import *",
    "small.py": "import read; read.modules.append(__name__); VALUE = 1",
    "big.py": "import read; read.modules.append(__name__); VALUE = 2",
    "given/__init__.py": "import read; read.modules.append(__name__)\nfrom .deep import Thing, make\nOTHER = 3",
    "given/deep.py": "class Thing:\n def __init__(self, value): self.value = value\n kind = 'thing'\ndef make(value): return Thing(value)",
    "user.py": "from .given import Thing, make\nfrom . import given\nimport pack.given.deep",
}


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The modules of the package that were read, in their order."""
    (tmp_path / "pack" / "given").mkdir(parents=True)
    for name, text in PACKAGE.items():
        (tmp_path / "pack" / name).write_text(text)
    (tmp_path / "read.py").write_text("modules = []")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("read").modules
    for name in [name for name in sys.modules if name == "read" or name.partition(".")[0] == "pack"]:
        del sys.modules[name]


def test_a_module_is_read_when_something_of_it_is_looked_up(read: list[str]) -> None:
    """And not when it is imported; one that is not named is read at once."""
    with put_off(("pack.big", "pack.nothing", "nothing"), {}):
        pack = importlib.import_module("pack")
    assert read == ["pack.small", "pack.given"]
    assert (pack.small.VALUE, pack.big.VALUE) == (1, 2)
    assert read == ["pack.small", "pack.given", "pack.big"]


def test_a_name_is_read_when_it_is_used(read: list[str]) -> None:
    """Each way of using it gives what the real one gives."""
    with put_off((), {"pack.given": ("Thing", "make"), "nothing": ("name",)}):
        pack = importlib.import_module("pack")
    assert read == ["pack.small", "pack.big"] or read == ["pack.big", "pack.small"]
    assert "pack.given" not in sys.modules
    thing = pack.user.make(5)
    assert read[2:] == ["pack.given"]
    real = importlib.import_module("pack.given")
    assert (type(thing), thing.value) == (real.Thing, 5)
    later = pack.user.Thing
    assert later is not real.Thing
    assert (later(7).value, later.kind, isinstance(thing, later), isinstance(7, later)) == (7, "thing", True, False)
    derived = type("derived", (real.Thing,), {})
    assert (issubclass(derived, later), issubclass(int, later), later | None, None | later) == (
        True,
        False,
        real.Thing | None,
        None | real.Thing,
    )
    namespace = {"Thing": later}
    exec("class Derived(Thing): pass", namespace)  # what a package that derives from it does
    assert namespace["Derived"].__mro__[1] is real.Thing
    assert read.count("pack.given") == 1


def test_what_does_not_need_the_module_does_not_read_it(read: list[str]) -> None:
    """A name in an annotation, and as the class of an object that was there before; when the module is there, it is asked."""
    with put_off((), {"pack.given": ("Thing", "make")}):
        later = importlib.import_module("pack").user.Thing
        assert not isinstance(7, later)
    optional = Optional[Dict[str, later]]  # type: ignore[valid-type]  # noqa: UP006, UP045  # those of typing look inside
    assert (isinstance(7, later), issubclass(int, later)) == (False, False)
    assert get_args(get_args(optional)[0])[1] is later
    assert "pack.given" not in read
    thing = importlib.import_module("pack.given").Thing(7)
    assert (isinstance(thing, later), issubclass(type(thing), later), isinstance(7, later)) == (True, True, False)


def test_a_subscript_is_the_real_one(read: list[str], tmp_path: Path) -> None:
    """With names that are put off too, and with others."""
    generic = "from typing import Generic, TypeVar\nT = TypeVar('T')\nclass Thing(Generic[T]): pass\ndef make(): pass\nOTHER = 3"
    (tmp_path / "pack" / "given" / "__init__.py").write_text("from .deep import Thing, make, T")
    (tmp_path / "pack" / "given" / "deep.py").write_text(generic)
    (tmp_path / "pack" / "user.py").write_text("from .given import Thing, T\ndef made() -> Thing[T]: return Thing[int]()")
    with put_off((), {"pack.given": ("Thing", "T")}):
        user = importlib.import_module("pack").user
    assert "pack.given" not in sys.modules
    made = user.made()
    real = importlib.import_module("pack.given")
    assert (type(made), made.__orig_class__) == (real.Thing, real.Thing[int])
    assert user.Thing[user.T].__args__ == (real.T,)


def test_other_names_and_use_at_once(read: list[str], tmp_path: Path) -> None:
    """A name of the module that is not put off, and a class that is derived from while the package is imported: the real ones, at once."""
    (tmp_path / "pack" / "user.py").write_text("from .given import Thing, OTHER\nfrom . import given\nclass Own(Thing): pass")
    with put_off((), {"pack.given": ("Thing",)}):
        pack = importlib.import_module("pack")
        assert "pack.given" in read
    real = importlib.import_module("pack.given")
    assert (pack.user.OTHER, pack.user.Own.__mro__[1], pack.user.given.make(1).value) == (3, real.Thing, 1)
    with pytest.raises(AttributeError):
        pack.user.given.nothing  # noqa: B018  # looking it up is the test


def test_what_is_there_already_stays(read: list[str]) -> None:
    """Somebody has imported it before."""
    real = importlib.import_module("pack.given")
    with put_off(("pack.big",), {"pack.given": ("Thing",)}):
        again = importlib.import_module("pack")
    assert again.user.Thing is real.Thing
    assert sys.modules["pack.given"] is real


def test_a_failure_leaves_nothing_behind(read: list[str], tmp_path: Path) -> None:
    """The package cannot be imported: the finder and its stand-ins are gone all the same."""
    finders = list(sys.meta_path)
    (tmp_path / "pack" / "user.py").write_text("from .given import Thing\nraise ValueError('no')")
    with pytest.raises(ValueError, match="no"), put_off((), {"pack.given": ("Thing",)}):
        importlib.import_module("pack")
    assert sys.meta_path == finders
    assert "pack.given" not in sys.modules


# -- the kubernetes package --------------------------------------------------------------------------------------------

SPARED = (
    "requests",
    "requests_oauthlib",
    "charset_normalizer",
    "oauthlib.common",
    "websocket",
    "dateutil.parser",
    "kubernetes.client.api_response",
    "kubernetes.watch.watch",
    "multiprocessing.pool",
    "pydantic",
)
USES = """
import kubernetes, kubernetes.client.api_client as api, kubernetes.config.kube_config as config
import requests_oauthlib
assert requests_oauthlib.OAuth2Session.__mro__[1].__module__ == "requests.sessions"
assert isinstance(config.OAuth2Session(client_id="x"), requests_oauthlib.OAuth2Session)
assert issubclass(config.oauthlib.oauth2.rfc6749.errors.InvalidClientIdError, Exception)
client = api.ApiClient()
assert client.sanitize_for_serialization({"a": [1, None]}) == {"a": [1, None]} and "pydantic" not in sys.modules
with client.pool as pool:
    assert pool.apply(len, ("four",)) == 4
answer = api.ApiResponse(status_code=200, data="x", raw_data=b"x")
assert type(answer).__mro__[1].__module__ == "pydantic.main" and answer.status_code == 200
assert client.sanitize_for_serialization(sys.modules["pydantic"].SecretStr("secret")) == "secret"
assert api.parse("2026-01-01T00:00:00Z").year == 2026
for name in ("dynamic.DynamicClient", "informer.SharedInformer", "stream.stream", "watch.Watch"):
    module, _, inside = name.partition(".")
    assert hasattr(getattr(kubernetes, module), inside), name
"""


def test_an_agent_does_without_much_of_the_package() -> None:
    """What the client does not need is not imported, 15 MB; and whoever uses it in the same process finds all of it."""
    count = f"print(sorted(set({SPARED!r}) & set(sys.modules)))"
    program = "\n".join(("import sys, netpol.kube.client", count, USES, count))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()) == (0, ["[]", str(sorted(SPARED))]), done.stderr


def test_nor_do_its_requests_need_it(tmp_path: Path) -> None:
    """A question, and an object that is written: answered without any of it."""
    ask = "Client(configured(sys.argv[1])).ask"
    lines = (
        "import sys",
        "from netpol.kube.client import Client, configured",
        f"assert {ask}('GET', '/api/v1/pods').code == 200",
        f"assert {ask}('POST', '/events', body={{'a': ['b', 1, None]}}).code == 201",
        f"print(sorted(set({SPARED!r}) & set(sys.modules)))",
    )
    with FakeServer() as server:
        server.answer("/api/v1/pods", page("1"))
        server.answer("/events", bare(201, b"{}"))
        command = [sys.executable, "-c", "\n".join(lines), server.kubeconfig(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        written = [json.loads(request.body) for request in server.asked if request.method == "POST"]
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert written == [{"a": ["b", 1, None]}]


def token(expires: float) -> str:
    """A JWT that says when it runs out, and nothing else."""
    parts = ({"alg": "none"}, {"exp": int(expires)})
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), "signature"])


def test_an_openid_connect_token_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has run out: the package asks the issuer for another, which is what it needs the session for that was put off."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    fresh = token(time.time() + 3600)
    with FakeServer() as server:
        config = {
            "client-id": "me",
            "client-secret": "my secret",
            "id-token": token(time.time() - 3600),
            "refresh-token": "again",
            "idp-issuer-url": server.url,
        }
        server.answer("/.well-known/openid-configuration", bare(200, json.dumps({"token_endpoint": f"{server.url}/token"}).encode()))
        renewed = {"id_token": fresh, "refresh_token": "another", "access_token": "x", "token_type": "Bearer"}
        server.answer("/token", bare(200, json.dumps(renewed).encode()))
        server.answer("/api/v1/pods", page("1"))
        user = {"auth-provider": {"name": "oidc", "config": config}}
        assert Client(configured(server.kubeconfig(tmp_path, user))).ask("GET", "/api/v1/pods").code == 200
        asked = {request.path: request for request in server.asked}
    assert b"refresh_token=again" in asked["/token"].body
    assert asked["/api/v1/pods"].headers["authorization"] == f"Bearer {fresh}"
