"""A connection to an API server: configuration, authentication and TLS by the `kubernetes` package, bytes by urllib3.

Nothing of that package's API classes and models is used: requests are raw paths, answers are bytes. Importing this module takes 0.1 s
and 8 MB, so only what is about to run does it. It would be 0.3 s and 24 MB with pydantic, requests, oauthlib and what else the package
imports for uses that are not ours: that waits until it is used (`netpol.kube.later`), which is never, but for the renewal of OpenID
Connect tokens.

Invariants
- A request never goes out without the credentials that the configuration names: a token file that cannot be read or an exec plugin
  that fails is an `ApiError`, and not an anonymous request.
- Credentials are as fresh as they can be: token files are read for each request, exec plugins run again when what they gave runs out,
  and all of the configuration is loaded anew after an answer 401 or a failed TLS handshake.
- Keys and certificates that stand in a configuration, or that an exec plugin gave, are written to no disk (`netpol.kube.inline`).
- Nothing is retried or redirected here, and every wait for the network has an end.
- Who waited for the configuration while it could not be loaded is told the same, and does not have it loaded once more: an exec plugin
  that hangs holds up everybody as long as it holds up one.
- `close` may be called from any thread, wakes whoever waits for an answer and ends an exec plugin; from then on every request is an
  `ApiError`. A name look-up or a connection attempt (`CONNECT` seconds) under way are not woken; nothing is asked after them.
"""

from __future__ import annotations

import base64
import http.client
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, cast

import urllib3
from msgspec import Struct

from netpol import __version__
from netpol.errors import ApiError, Cut, Silence
from netpol.kube.buffer import Buffer
from netpol.kube.inline import close_all, in_memory
from netpol.kube.later import put_off
from netpol.kube.plugin import Plugin

# What the package imports besides what we need of it: for models and other uses of it, and for the renewal of OpenID Connect tokens.
with put_off(
    (
        "kubernetes.dynamic",
        "kubernetes.informer",
        "kubernetes.leaderelection",
        "kubernetes.stream",
        "kubernetes.watch",
        "oauthlib",
        "oauthlib.oauth2",
    ),
    {
        "dateutil.parser": ("parse",),
        "kubernetes.client.api_response": ("ApiResponse", "T"),
        "multiprocessing.pool": ("ThreadPool",),
        "pydantic": ("SecretStr",),
        "requests_oauthlib": ("OAuth2Session",),
    },
):
    from kubernetes.client import ApiClient, Configuration
    from kubernetes.client.exceptions import ApiException
    from kubernetes.config import ConfigException
    from kubernetes.config.dateutil import parse_rfc3339
    from kubernetes.config.exec_provider import ExecProvider
    from kubernetes.config.incluster_config import (
        SERVICE_CERT_FILENAME,
        SERVICE_HOST_ENV_NAME,
        SERVICE_TOKEN_FILENAME,
        InClusterConfigLoader,
    )
    from kubernetes.config.kube_config import ConfigNode, KubeConfigLoader, KubeConfigMerger

CONNECT = 5.0  # seconds for a connection and its TLS handshake
ANSWER = 60.0  # seconds of silence before an answer, or in it, where nothing else is asked for
CHUNK = 256 << 10
POOL = 8  # connections that are kept
# A page of 500 objects has at most some MB; anything near this is none.
MAX_BODY = 256 << 20
MAX_ERROR_BODY = 64 << 10
# What an exec plugin gave is renewed this long before it runs out.
MARGIN = timedelta(seconds=30)
UNAUTHORIZED = 401
PROTOBUF = "application/vnd.kubernetes.protobuf"

Query = tuple[tuple[str, str], ...]


class Answer(Struct, frozen=True):
    """An answer, whole. `retry_after` is in seconds."""

    code: int
    body: bytes
    retry_after: float | None = None


# -- configuration -----------------------------------------------------------------------------------------------------


class Credentials(NamedTuple):
    """A configuration that is ready for use, and what of it changes with time."""

    configuration: Configuration
    token_file: str | None = None
    expires: datetime | None = None


# Who loads it gives up when the Event is set.
Load = Callable[[threading.Event], Credentials]


def configured(kubeconfig: str | None = None, context: str | None = None, environ: Mapping[str, str] = os.environ) -> Load:
    """How to load the configuration: the kubeconfig given, or else $KUBECONFIG, the pod's service account, or ~/.kube/config.

    kubeconfig -- one path or several, as in $KUBECONFIG; context -- which of its contexts, where not its current one.
    """
    paths = kubeconfig or environ.get("KUBECONFIG")
    if not paths and context is None and environ.get(SERVICE_HOST_ENV_NAME):
        return lambda _: _in_cluster(environ)
    return lambda closing: _from_kubeconfig(paths or "~/.kube/config", context, closing)


def _in_cluster(environ: Mapping[str, str]) -> Credentials:
    _read_token(SERVICE_TOKEN_FILENAME)  # its error names the file
    configuration = Configuration()
    loader = InClusterConfigLoader(SERVICE_TOKEN_FILENAME, SERVICE_CERT_FILENAME, try_refresh_token=False, environ=environ)
    loader.load_and_set(configuration)
    return Credentials(configuration, SERVICE_TOKEN_FILENAME)


def _from_kubeconfig(paths: str, context: str | None, closing: threading.Event) -> Credentials:
    config = KubeConfigMerger(paths).config
    if config is None:
        raise ConfigException(f"there is no such file: {paths}")
    loader = KubeConfigLoader(config, active_context=context, config_base_path=None)
    names = loader.current_context["context"]
    users = config.value.get("users") or []
    user = next((node for node in users if names.get("user") and node["name"] == names["user"]), None)
    if names.get("user") and user is None:
        raise ConfigException(f"the context {loader.current_context['name']!r} names the user {names['user']!r}, which is not there")
    details = user["user"] if user is not None and user.safe_get("user") else None
    token_file, expires = None, None
    if details is not None:
        folder = os.path.dirname(os.path.abspath(details.path)) if details.path else ""
        # What the package would read once, or fail at in silence, is done here and put in its place.
        if details.safe_get("tokenFile"):
            token_file = os.path.join(folder, details.value.pop("tokenFile"))
            details.value["token"] = _read_token(token_file)
        elif details.safe_get("exec") and not details.safe_get("token"):
            expires = _run_plugin(details, folder, config["clusters"].get_with_name(names["cluster"])["cluster"], closing)
    configuration = Configuration()
    held = in_memory(config["clusters"].get_with_name(names["cluster"])["cluster"].value, "certificate-authority")
    # They are read for each connection, and so as long as the configuration is in use.
    weakref.finalize(configuration, close_all, held)
    if details is not None:
        held += in_memory(details.value, "client-certificate", "client-key")
    loader.load_and_set(configuration)
    return Credentials(configuration, token_file, expires)


def _run_plugin(user: ConfigNode, folder: str, cluster: ConfigNode, closing: threading.Event) -> datetime | None:
    """Puts what an exec plugin gives in the place of its mention; until when it is good, if it says so."""
    # The package reads what to run. It would run it without an end, so that is ours.
    said = ExecProvider(user["exec"], folder, cluster)
    status = Plugin(said.args, said.env, said.cwd, said.api_version, said.cluster.value if said.cluster else None).run(closing)
    command = user["exec"]["command"]
    if status.get("token"):
        user.value["token"] = status["token"]
    elif status.get("clientCertificateData") and status.get("clientKeyData"):
        for key, field in (("client-certificate-data", "clientCertificateData"), ("client-key-data", "clientKeyData")):
            user.value[key] = base64.b64encode(status[field].encode()).decode()
    else:
        raise ConfigException(f"exec: {command} gave neither a token nor a certificate with its key")
    del user.value["exec"]
    expires = status.get("expirationTimestamp")
    return parse_rfc3339(expires) if expires else None


def _read_token(path: str) -> str:
    with open(path) as file:
        token = file.read().strip()
    if not token:
        raise ConfigException(f"the token file {path} is empty")
    return token


# -- connections -------------------------------------------------------------------------------------------------------


class _Sockets:
    """The sockets of all connections that are open, so that another thread can wake who waits for one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self.closed = False

    def add(self, sock: socket.socket) -> None:
        with self._lock:
            if not self.closed:
                self._open.add(sock)
                return
        sock.close()
        raise ConnectionAbortedError("the client is closed")

    def close(self) -> None:
        with self._lock:
            self.closed = True
            sockets = list(self._open)
        for sock in sockets:
            with suppress(OSError):
                # Not ssl's own shutdown, which would have the reader go on without TLS.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Response(http.client.HTTPResponse):
    """The standard library's, but that one read brings all that has come: a server puts each object of a watch in a chunk of its own, and
    what stands above this class costs more for a chunk than what stands in it."""

    fp: Buffer  # type: ignore[assignment]  # of its class only what Buffer has is used

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self.fp = Buffer(sock.makefile("rb", 0), CHUNK)
        self._sock = sock

    def read1(self, n: int = -1) -> bytes:
        parts = [super().read1(n)]
        if len(parts[0]) < n and self.chunked and not self.isclosed():
            self._gather()
            # Chunks that are nothing but that, which is all that a watch is made of, cost the class above ten times as much. Others wait
            # for the next read: what has come is not held back for them.
            taken, self.chunk_left = self.fp.chunks(cast(int, self.chunk_left), n - len(parts[0]))
            parts += taken
        return b"".join(parts)

    def _get_chunk_left(self) -> int | None:
        """The library's, which takes a size with a minus for one, and all that waits for the chunk."""
        left: int | None = super()._get_chunk_left()  # type: ignore[misc]  # its stub leaves it out
        if left is not None and left < 0:
            raise http.client.IncompleteRead(b"")
        return left

    def _gather(self) -> None:
        """Reads what has come, and waits for nothing: a server sends each object of a watch in a TLS record of its own."""
        timeout = self._sock.gettimeout()
        self._sock.settimeout(0)
        try:
            self.fp.gather()
        finally:
            self._sock.settimeout(timeout)


def _pools(sockets: _Sockets) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """urllib3's pools, whose connections make their sockets known."""

    class Plain(urllib3.connection.HTTPConnection):
        response_class = _Response

        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    class Secure(urllib3.connection.HTTPSConnection):
        response_class = _Response

        def connect(self) -> None:
            super().connect()
            sockets.add(getattr(self.sock, "socket", self.sock))  # TLS inside TLS, by way of a proxy, has its socket inside

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


class Stream:
    """An answer that goes on: its status is known, and whether it is in protobuf; its bytes come as they come."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self.code = response.status
        self.protobuf = response.headers.get("Content-Type", "").partition(";")[0].strip().lower() == PROTOBUF
        self.retry_after = _retry_after(response)

    def read(self, most: int = CHUNK) -> bytes:
        """What came, at least a byte; nothing at its end. Raises Cut or Silence."""
        try:
            return self._response.read1(most, decode_content=True) or b""
        except _FAILURES as error:
            raise _in_words(error) from error

    def rest(self, limit: int = MAX_ERROR_BODY) -> bytes:
        """All of it, or a byte more than the limit."""
        parts, size = [], 0
        while size <= limit and (part := self.read(min(CHUNK, limit + 1 - size))):
            parts.append(part)
            size += len(part)
        return b"".join(parts)


class Client:
    """See the module. May be used by several threads at once.

    load -- what `configured` gives; the first request, or `open`, calls it.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._sockets = _Sockets()
        self._closing = threading.Event()
        self._failed: tuple[float, str] | None = None  # when the configuration could not be loaded last, and why
        self._api: ApiClient | None = None
        self._token_file: str | None = None
        self._expires: datetime | None = None

    @property
    def server(self) -> str:
        """The address of the API server."""
        since = time.monotonic()
        with self._lock, _configuring():
            return str(self._ready(since).configuration.host)

    def close(self) -> None:
        """Ends every request, now and from now on."""
        self._closing.set()
        self._sockets.close()
        with suppress(AttributeError):
            self._api.close()  # type: ignore[union-attr]  # there may be none yet

    def ask(
        self,
        method: str,
        path: str,
        query: Query = (),
        body: Mapping[str, Any] | None = None,
        *,
        compressed: bool = False,
        silence: float = ANSWER,
    ) -> Answer:
        """A request and its whole answer, whatever its status. `compressed`: it may come so, which is for long answers.

        Raises ApiError where there is no answer, or not all of it.
        """
        with self._request(method, path, query, body, {"Accept-Encoding": "gzip"} if compressed else {}, silence) as stream:
            good = stream.code < 300
            whole = stream.rest(MAX_BODY if good else MAX_ERROR_BODY)
            if good and len(whole) > MAX_BODY:
                raise Cut(f"the answer is longer than {MAX_BODY} bytes")
            return Answer(stream.code, whole, stream.retry_after)

    @contextmanager
    def watch(self, path: str, query: Query, silence: float, *, protobuf: bool = False) -> Iterator[Stream]:
        """A request whose answer is read as it comes; `silence` is how many seconds may pass without a byte. `protobuf`: it may come so,
        from a server that can; any other answers in JSON."""
        headers = {"Accept": f"{PROTOBUF},application/json"} if protobuf else {}
        with self._request("GET", path, query, None, headers, silence) as stream:
            yield stream

    @contextmanager
    def _request(
        self, method: str, path: str, query: Query, body: Mapping[str, Any] | None, headers: dict[str, str], silence: float
    ) -> Iterator[Stream]:
        headers = {"Accept": "application/json", **headers, **({"Content-Type": "application/json"} if body is not None else {})}
        since = time.monotonic()
        with self._lock, _configuring():
            api = self._ready(since)
            parameters = api.param_serialize(method, path, None, list(query), headers, body, auth_settings=["BearerToken"])
        try:
            response = api.call_api(*parameters, _request_timeout=(CONNECT, silence)).response
        except _FAILURES as error:
            if isinstance(error, ApiException):  # TLS: a certificate may have changed
                self._forget(api)
            raise _in_words(error) from error
        try:
            if response.status == UNAUTHORIZED:
                self._forget(api)
            yield Stream(response)
        finally:
            response.close()  # where it was read to its end, its connection is back in the pool, and stays open

    def _ready(self, since: float) -> ApiClient:
        """The package's client, with credentials that are good now, for a request of that time."""
        if self._sockets.closed:
            raise ApiError("the client is closed")
        expired = self._expires is not None and datetime.now(timezone.utc) >= self._expires - MARGIN
        if self._api is None or expired:
            if self._failed is not None and self._failed[0] >= since:
                raise ApiError(self._failed[1])
            try:
                with _configuring():
                    self._api = self._open()
            except ApiError as error:
                self._failed = time.monotonic(), str(error)
                raise
        elif self._token_file is not None:
            _put_token(self._api.configuration, _read_token(self._token_file))
        return self._api

    def _open(self) -> ApiClient:
        configuration, self._token_file, self._expires = self._load(self._closing)
        if self._token_file is not None:
            _put_token(configuration, _read_token(self._token_file))
        _check(configuration.api_key.get("BearerToken", ""))
        # The package's default is urllib3's, which tries three times more and waits in between.
        configuration.retries = False
        configuration.connection_pool_maxsize = POOL
        api = ApiClient(configuration)
        api.user_agent = f"netpol/{__version__}"
        pools = api.rest_client.pool_manager
        if pools.pool_classes_by_scheme is urllib3.poolmanager.pool_classes_by_scheme:  # not so for SOCKS, which has its own
            pools.pool_classes_by_scheme = _pools(self._sockets)
        return api

    def _forget(self, api: ApiClient) -> None:
        """The configuration is loaded anew for the next request."""
        with self._lock:
            if self._api is api:
                self._api = None


def _check(token: str) -> None:
    """What no header can hold is found here, and not by an error that would show it."""
    if not (token.isascii() and token.isprintable()):
        raise ConfigException("the token holds characters that no token has")


def _put_token(configuration: Configuration, token: str) -> None:
    _check(token)
    configuration.refresh_api_key_hook = None  # the package's would put the first one back
    configuration.api_key["BearerToken"] = f"Bearer {token}"


def _retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Seconds of a Retry-After header; API servers send no dates there."""
    text = response.headers.get("Retry-After", "").strip()
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


# -- words -------------------------------------------------------------------------------------------------------------


@contextmanager
def _configuring() -> Iterator[None]:
    """Whatever goes wrong with a configuration, as an ApiError: the package meets bad input with exceptions of any kind."""
    try:
        yield
    except ApiError:
        raise
    except ConfigException as error:
        raise ApiError(f"configuration: {error}") from error
    except OSError as error:
        raise ApiError(f"configuration: {error.filename}: {error.strerror}" if error.filename else f"configuration: {error}") from error
    except Exception as error:
        raise ApiError(f"configuration: {type(error).__name__}: {error}") from error


_FAILURES = (ApiException, urllib3.exceptions.HTTPError, OSError, ValueError)


def _in_words(error: Exception) -> ApiError:
    """What urllib3 and the socket raise, of _FAILURES."""
    if isinstance(error, ApiException):  # what the package makes of urllib3's SSLError
        return ApiError(f"TLS: {str(error.reason).partition(chr(10))[2] or error.reason}")
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # its own words begin with the connection as Python shows it
        why = error.__cause__.strerror if isinstance(error.__cause__, OSError) else None
        return ApiError(f"no connection to {error.conn.host} port {error.conn.port}: {why or error}")
    if isinstance(error, urllib3.exceptions.ProxyError) and isinstance(error.original_error, urllib3.exceptions.HTTPError):
        return ApiError(f"by way of the proxy that HTTPS_PROXY names: {_in_words(error.original_error)}")
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return ApiError(str(error.args[-1]))
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return Silence("the API server said nothing for too long")
    if isinstance(error, urllib3.exceptions.ProtocolError | urllib3.exceptions.SSLError | urllib3.exceptions.DecodeError):
        return Cut(f"the answer broke off: {error.args[-1]}")
    return ApiError(str(error))
