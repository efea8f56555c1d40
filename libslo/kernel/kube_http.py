"""One bounded HTTP question to a kubelet or an API server, and what can go wrong with it, by name."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import requests
import urllib3

__all__ = ["KubeError", "KubeHttp", "Place"]

_CONNECT_S = 3.0
_CHUNK_BYTES = 1 << 16
_PAGE_BYTES = 16 << 20  # of 110 pods to a node, and at most 1.5 MB to an object in etcd, a usual answer is below 3 MB
_KINDS = {401: "unauthorized", 403: "forbidden", 410: "gone"}


class KubeError(Exception):
    """A question that was not answered. kind: one word, counted in the status of a source."""

    def __init__(self, kind: str, fact: str) -> None:
        super().__init__(f"{kind}: {fact}")
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Place:
    """Where to ask, and as whom. url: scheme, host and port. token: a file. ca: a file; None is certifi's list of public ones."""

    url: str
    token: Path | None = None
    ca: Path | None = None
    insecure: bool = False


class KubeHttp:
    """Questions to one place. answer_s: how long one answer may take in all. max_bytes: how long it may be.

    The token file is read for every question, because it is replaced under our feet, and sent over https only.
    Nothing of the environment (proxies, .netrc) is used, and no redirection is followed: both could lead the token astray.
    """

    def __init__(self, place: Place, *, answer_s: float = 10.0, max_bytes: int = _PAGE_BYTES) -> None:
        self.place = place
        self._answer_s = answer_s
        self._max_bytes = max_bytes
        self._session = requests.Session()
        self._session.trust_env = False
        self._open: requests.Response | None = None
        if place.insecure:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def get_json(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        """The JSON value at a path. Raises KubeError."""
        end_s = time.monotonic() + self._answer_s
        parts, size = [], 0
        with self._request(path, params, self._answer_s) as response:
            for chunk in _chunks(response):
                size += len(chunk)
                parts.append(chunk)
                if size > self._max_bytes:
                    raise KubeError("too_large", f"{path}: more than {self._max_bytes} bytes")
                if time.monotonic() > end_s:
                    raise KubeError("timeout", f"{path}: no whole answer in {self._answer_s:g} s")
        try:
            return orjson.loads(b"".join(parts))
        except orjson.JSONDecodeError as error:
            raise KubeError("malformed", f"{path}: not JSON: {error}") from error

    def lines(self, path: str, params: Mapping[str, str], longest_s: float) -> Iterator[Any]:
        """JSON values of a stream, one a line, until the server ends it. longest_s: when it should have done so. Raises KubeError."""
        rest, end_s = b"", time.monotonic() + longest_s
        with self._request(path, params, longest_s) as response:
            for chunk in _chunks(response):
                *whole, rest = (rest + chunk).split(b"\n")
                if len(rest) > self._max_bytes:
                    raise KubeError("too_large", f"{path}: an event of more than {self._max_bytes} bytes")
                for line in whole:
                    if line.strip():
                        yield _event(path, line)
                if time.monotonic() > end_s:
                    raise KubeError("timeout", f"{path}: no end after {longest_s:g} s")
        if rest.strip():
            yield _event(path, rest)

    def close(self) -> None:
        """End what is being read, from another thread."""
        response = self._open
        if response is not None:
            try:
                response.raw.shutdown()
            except (OSError, ValueError, RuntimeError, AttributeError):
                pass  # it has just ended by itself
        self._session.close()

    @contextmanager
    def _request(self, path: str, params: Mapping[str, str] | None, quiet_s: float) -> Iterator[requests.Response]:
        place = self.place
        verify: bool | str = not place.insecure if place.insecure or place.ca is None else str(place.ca)
        if isinstance(verify, str) and not Path(verify).is_file():
            raise KubeError("ca", f"{verify}: no such file")
        headers = {"Accept": "application/json"}
        if place.token and place.url.startswith("https:"):
            headers["Authorization"] = f"Bearer {_read_token(place.token)}"
        with _naming_errors():
            response = self._session.get(
                place.url + path, params=params, headers=headers, timeout=(min(_CONNECT_S, quiet_s), quiet_s),
                verify=verify, stream=True, allow_redirects=False,
            )  # fmt: skip
        with response:
            self._open = response
            try:
                if response.status_code != 200:
                    raise KubeError(_KINDS.get(response.status_code, "http"), f"{path}: {response.status_code} {response.reason}")
                yield response
            finally:
                self._open = None


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The body as it comes in: unlike iter_content, which waits for a whole chunk however slowly it drips."""
    while True:
        with _naming_errors():
            chunk = response.raw.read1(_CHUNK_BYTES, decode_content=True)
        if not chunk:
            return
        yield chunk


@contextmanager
def _naming_errors() -> Iterator[None]:
    try:
        yield
    except (requests.exceptions.SSLError, urllib3.exceptions.SSLError) as error:
        raise KubeError("tls", _reason(error)) from error
    except (requests.exceptions.Timeout, urllib3.exceptions.ReadTimeoutError) as error:
        raise KubeError("timeout", _reason(error)) from error
    except requests.exceptions.ConnectionError as error:
        raise KubeError("unreachable", _reason(error)) from error
    except urllib3.exceptions.ProtocolError as error:
        raise KubeError("truncated", _reason(error)) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, ValueError, OSError) as error:
        raise KubeError("http", _reason(error)) from error


def _reason(error: BaseException) -> str:
    """The innermost cause, which says most in fewest words."""
    while (inner := getattr(error, "reason", None) or next((each for each in error.args if isinstance(each, BaseException)), None)) and (
        isinstance(inner, BaseException)
    ):
        error = inner
    return str(error).lower()[:200]


def _event(path: str, line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise KubeError("malformed", f"{path}: not JSON: {error}") from error


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KubeError("token", f"{path}: {(getattr(error, 'strerror', None) or 'not a text').lower()}") from error
    if not token or not token.isprintable() or " " in token:
        raise KubeError("token", f"{path}: holds no token")
    return token
