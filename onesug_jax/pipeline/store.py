"""The objects below one URL, through fsspec: list, read, write, copy, with readable errors.

One object is written atomically, but several cannot be renamed in one step; `mirror.py` makes
results atomic. fsspec, and gcsfs for `gs://`, are imported with the first URL.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from onesug_jax.errors import UserError
from onesug_jax.files import atomic_path

_THREADS = 32
_EXTRAS = {"gs": "gcs", "gcs": "gcs"}  # scheme -> the extra of onesug_jax with its package


class Gone(UserError):
    """A listed object no longer exists."""


class Store:
    """The objects below `url`, by their names relative to it.

    Raises:
      UserError: no installed package supports this scheme.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        scheme = self.url.partition("://")[0]
        os.environ.setdefault("EPATH_USE_TF", "0")  # else orbax's paths use TensorFlow
        try:
            from fsspec.core import url_to_fs

            options: dict[str, Any] = {"use_listings_cache": False}
            if scheme in ("file", "local"):
                options["auto_mkdir"] = True
            self._fs, self._root = url_to_fs(self.url, **options)
        except ImportError as error:
            extra = _EXTRAS.get(scheme)
            way_out = f"pip install 'onesug_jax[{extra}]'" if extra else f"install it ({error})"
            raise UserError(
                f"{self.url}: {scheme}:// needs a package that is not installed: {way_out}."
            ) from None
        except ValueError as error:
            raise UserError(f"{self.url}: no URL that can be read or written: {error}.") from None

    def sizes(self, folder: str = "") -> dict[str, int]:
        """{name: bytes} of all objects below a folder; {} if it does not exist."""
        with self._explaining("be listed"):
            found = self._fs.find(self._at(folder), detail=True)
        return {name: size for name, (size, _) in self._files(found).items()}

    def versions(self, pattern: str) -> dict[str, tuple[int, str]]:
        """{name: (bytes, version)} of the objects that match a path, folder or glob."""
        with self._explaining("be listed"):
            found = self._fs.glob(self._at(pattern), detail=True)
            for name, info in list(found.items()):
                if info["type"] == "directory":
                    found |= self._fs.find(name, detail=True)
        return self._files(found)

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """The content of small objects; missing ones are left out."""

        def content_of(name: str) -> bytes | None:
            try:
                return self._fs.cat_file(self._at(name))
            except FileNotFoundError:
                return None

        names = list(names)
        contents = zip(names, self._each("be read", content_of, names), strict=True)
        return {name: content for name, content in contents if content is not None}

    def write(self, name: str, content: bytes) -> None:
        """Write an object, or replace it."""
        with self._explaining("be written"):
            self._fs.pipe_file(self._at(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless it exists; False if it does. Only one of several callers wins."""
        with self._explaining("be written"):
            if self._fs.exists(self._at(name)):
                return False
            try:
                self._fs.pipe_file(self._at(name), content, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                if getattr(error, "code", None) == 412:  # gcsfs: precondition failed
                    return False
                raise
        return True

    def upload(self, files: Mapping[str, str]) -> None:
        """Upload local files, {name: path}."""
        self._each(
            "be written", lambda pair: self._fs.put_file(pair[1], self._at(pair[0])), files.items()
        )

    def download(self, files: Mapping[str, str]) -> None:
        """Download objects into local files, {name: path}; each file is written atomically.

        Raises:
          Gone: an object is missing.
        """

        def get(pair: tuple[str, str]) -> None:
            with atomic_path(pair[1]) as new:
                self._fs.get_file(self._at(pair[0]), new)

        self._each("be read", get, files.items())

    def copy(self, names: Mapping[str, str]) -> None:
        """Copy objects inside the bucket, {old name: new name}."""
        self._each(
            "be copied",
            lambda pair: self._fs.cp_file(self._at(pair[0]), self._at(pair[1])),
            names.items(),
        )

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; missing ones are ignored."""

        def remove(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._at(name))

        self._each("be removed", remove, names)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _files(self, found: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
        return {
            name[len(self._root) :].strip("/"): (int(info["size"] or 0), _version(info))
            for name, info in sorted(found.items())
            if info["type"] == "file"
        }

    def _each(self, doing: str, act: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        items = list(items)
        if not items:
            return []
        with self._explaining(doing), ThreadPoolExecutor(min(_THREADS, len(items))) as pool:
            futures = [pool.submit(act, item) for item in items]
            try:
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def _explaining(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (UserError, NotImplementedError):
            raise
        except FileNotFoundError as error:
            raise Gone(
                f"{self.url}: could not {doing}, because something is not there ({_line(error)}). "
                "See that the bucket is there; where another command has just replaced a result, "
                "give the same command again."
            ) from error
        except Exception as error:  # each package has its own exceptions
            raise UserError(
                f"{self.url}: could not {doing}: {_line(error)}. See that the bucket is there and "
                "that you may use it (`gcloud auth application-default login`, or the rights of "
                "the machine's service account), then give the same command again."
            ) from error


def _version(info: Mapping[str, Any]) -> str:
    """A text that changes whenever an object is written."""
    for key in ("generation", "etag", "ETag", "md5Hash"):
        if info.get(key):
            return str(info[key])
    return f"{info.get('mtime') or info.get('created')} {info['size']}"


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return os.linesep.join(text.splitlines()[:1])[:300]
