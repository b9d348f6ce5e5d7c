"""The objects below one URL, through fsspec: list, read, write, copy, and what failed in words.

An object appears whole or not at all, and objects cannot be renamed as one; what that means for
results is `mirror.py`'s. fsspec, and gcsfs for `gs://`, are imported with the first URL.
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
_EXTRAS = {"gs": "gcs", "gcs": "gcs"}  # scheme -> what of onesug_jax[...] brings its package


class Gone(UserError):
    """An object that was listed is not there any more."""


class Store:
    """The objects below `url`, by their names relative to it.

    Raises:
      UserError: no package speaks this scheme.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        scheme = self.url.partition("://")[0]
        os.environ.setdefault("EPATH_USE_TF", "0")  # or orbax's paths would go by TensorFlow
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
        """{name: bytes} of all objects below a folder; {} where there is none."""
        with self._explaining("be listed"):
            found = self._fs.find(self._at(folder), detail=True)
        names = {name[len(self._root) :].strip("/"): one for name, one in found.items()}
        return {n: int(one["size"] or 0) for n, one in names.items() if one["type"] == "file"}

    def versions(self, pattern: str) -> dict[str, tuple[int, str]]:
        """{name: (bytes, which version of it)} of the objects that a path, folder or glob means."""
        with self._explaining("be listed"):
            found = self._fs.glob(self._at(pattern), detail=True)
            for name, one in list(found.items()):
                if one["type"] == "directory":
                    found |= self._fs.find(name, detail=True)
        return {
            name[len(self._root) :].strip("/"): (int(one["size"] or 0), _version(one))
            for name, one in sorted(found.items())
            if one["type"] == "file"
        }

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """The content of those of these small objects that are there."""

        def one(name: str) -> bytes | None:
            try:
                return self._fs.cat_file(self._at(name))
            except FileNotFoundError:
                return None

        names = list(names)
        found = zip(names, self._each("be read", one, names), strict=True)
        return {name: content for name, content in found if content is not None}

    def write(self, name: str, content: bytes) -> None:
        """An object with this content, in place of what is there."""
        with self._explaining("be written"):
            self._fs.pipe_file(self._at(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless it is there; False where it is. One of several callers wins."""
        with self._explaining("be written"):
            if self._fs.exists(self._at(name)):
                return False
            try:
                self._fs.pipe_file(self._at(name), content, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                if getattr(error, "code", None) == 412:  # gcsfs: a precondition did not hold
                    return False
                raise
        return True

    def upload(self, files: Mapping[str, str]) -> None:
        """Local files, as {name: path}."""
        self._each(
            "be written", lambda pair: self._fs.put_file(pair[1], self._at(pair[0])), files.items()
        )

    def download(self, files: Mapping[str, str]) -> None:
        """Objects into local files, as {name: path}; each file appears when it is complete.

        Raises:
          Gone: one is not there.
        """

        def one(pair: tuple[str, str]) -> None:
            with atomic_path(pair[1]) as new:
                self._fs.get_file(self._at(pair[0]), new)

        self._each("be read", one, files.items())

    def copy(self, names: Mapping[str, str]) -> None:
        """Copies of objects, as {old name: new name}, made where they lie."""
        self._each(
            "be copied",
            lambda pair: self._fs.cp_file(self._at(pair[0]), self._at(pair[1])),
            names.items(),
        )

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; those that are gone already are passed over."""

        def one(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._at(name))

        self._each("be removed", one, names)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

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
        except Exception as error:  # each package has its own
            raise UserError(
                f"{self.url}: could not {doing}: {_line(error)}. See that the bucket is there and "
                "that you may use it (`gcloud auth application-default login`, or the rights of "
                "the machine's service account), then give the same command again."
            ) from error


def _version(info: Mapping[str, Any]) -> str:
    """What changes when an object is written again."""
    for key in ("generation", "etag", "ETag", "md5Hash"):
        if info.get(key):
            return str(info[key])
    return f"{info.get('mtime') or info.get('created')} {info['size']}"


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return os.linesep.join(text.splitlines()[:1])[:300]
