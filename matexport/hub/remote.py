"""A repository of a model hub at one commit: which files it has, how large they are, and their bytes from the first on.

Everything is asked by huggingface_hub, with its settings, token and cache, and of the one endpoint that `HF_ENDPOINT`
names. Files are streamed by us: never more bytes of one are taken than were asked for, a transfer that was cut off goes
on where it was, and the first bytes of a file, which huggingface_hub cannot fetch, are kept for when more are needed.
A file that huggingface_hub's own cache has is not fetched again.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matexport.errors import DestinationError, HubError, MissingExtraError, one_line
from matexport.extras import require_extra, spell_install
from matexport.hub.listing import COMMIT, RemoteFile, list_family
from matexport.io.files import explain_write_errors
from matexport.spec.record import Record

#: Connections that are opened for one file, without a new byte, before giving up; and how long is waited between.
MAX_TRIES, PAUSE_SECONDS = 3, 1.0

#: Our folder in that of a repository in huggingface_hub's cache: the first bytes of files, called as what they hold.
_OURS = "matexport"

#: Called with the bytes that have arrived since it was called last.
Arrived = Callable[[int], None]


class Remote(Record, frozen=True):
    """A repository at one commit.

    Attributes:
        files: by name, those of its top folder.
        folders: names of the folders there.
    """

    repo: str
    commit: str
    files: dict[str, RemoteFile]
    folders: frozenset[str]

    def find(self, name: str) -> RemoteFile:
        """One file of the top folder.

        Raises:
            HubError: there is none of that name.
        """
        if name not in self.files:
            raise HubError(f"{self.repo} has no {name} at {self.commit[:12]}: it holds no whole family of matexport")
        return self.files[name]


def require_hub(doing: str) -> None:
    """
    Raises:
        MissingExtraError: huggingface_hub is not installed, or is one that speaks HTTP by another library.
    """
    require_extra("hub", doing, {"huggingface_hub": "huggingface_hub"})
    found = version("huggingface_hub")
    if int(found.partition(".")[0]) < 1:
        raise MissingExtraError(
            f"{doing} needs huggingface_hub 1.0 or later; {found} is installed here, as transformers 4 asks: use an "
            f"environment of its own, without the [export] extra: {spell_install('hub')}"
        )


def check_name(repo: str) -> None:
    """Refuse what cannot be the name of a repository; nobody is asked.

    Raises:
        HubError: saying what is wrong with it.
    """
    from huggingface_hub.utils import validate_repo_id

    with explain_hub_errors(repo, "name a repository"):
        validate_repo_id(repo)


@contextmanager
def use_hub(patience: float = 0) -> Iterator[None]:
    """Have huggingface_hub show no bars and warnings of its own meanwhile, and wait for no answer for ever.

    Some of its requests have no time limit, so that an endpoint that says nothing would hold us.

    Args:
        patience: seconds to wait at least; else those of ``HF_HUB_DOWNLOAD_TIMEOUT``, which is 10 where it is not set.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    seconds = max(patience, constants.HF_HUB_DOWNLOAD_TIMEOUT)

    def limit(request: Any) -> None:
        asked = request.extensions.get("timeout", {})
        limits = {name: asked.get(name) or seconds for name in ("connect", "read", "write", "pool")}
        request.extensions = {**request.extensions, "timeout": limits}

    client, before, shown = get_session(), logging.get_verbosity(), not are_progress_bars_disabled()
    hooks = client.event_hooks
    client.event_hooks = {**hooks, "request": [*hooks["request"], limit]}
    logging.set_verbosity_error()
    if shown:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        client.event_hooks = hooks
        logging.set_verbosity(before)
        if shown:
            enable_progress_bars()


@contextmanager
def explain_hub_errors(repo: str, doing: str) -> Iterator[None]:
    """Turn what huggingface_hub and the network raise in the block into one line for the user.

    Args:
        doing: what is done, such as ``pull it``.

    Raises:
        HubError: the block raised one of these errors.
    """
    from huggingface_hub import errors

    try:
        yield
    except (errors.HTTPError, errors.HFValidationError, errors.EntryNotFoundError, ConnectionError) as error:
        raise HubError(_describe(error, repo, doing)) from None
    except RuntimeError as error:  # of one of its threads, around what went wrong
        if not isinstance(error.__cause__, errors.HTTPError):
            raise
        raise HubError(_describe(error.__cause__, repo, doing)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # an answer that is not what its API promises
        said = f"{_name_endpoint()} answered what is not understood"
        raise HubError(f"cannot {doing}: {said} ({type(error).__name__}: {one_line(error)})") from error


def _describe(error: Exception, repo: str, doing: str) -> str:
    from huggingface_hub import errors, get_token

    hub, given = _name_endpoint(), "was not accepted" if get_token() else "is missing"
    token = f"a token {given} (HF_TOKEN, or `hf auth login`)"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"cannot {doing}: HF_HUB_OFFLINE is set, so {hub} is not asked; unset it"
    if isinstance(error, errors.HFValidationError):
        return f"{repo!r} is no name of a repository, such as someone/small-encoder: {one_line(error)}"
    if isinstance(error, errors.GatedRepoError):
        return f"cannot {doing}: {repo} is gated; ask for access at {hub}/{repo}, and see whether {token}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:  # hubs do not say which
        return f"cannot {doing}: there is no {repo} on {hub}, or it is private, and {token}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"cannot {doing}: {repo} has no such revision; name a branch, a tag or a commit that it has"
    if isinstance(error, errors.EntryNotFoundError):
        return f"cannot {doing}: {repo} does not have a file that it lists"
    if isinstance(error, errors.HfHubHTTPError):
        if status == 403:
            return f"cannot {doing}: {hub} does not allow it (403): the token may not do that with {repo}"
        return f"cannot {doing}: {hub} answered {status} ({error.server_message or error.response.reason_phrase})"
    why = "did not answer in time" if "Timeout" in type(error).__name__ else f"cannot be reached ({one_line(error)})"
    return f"cannot {doing}: {hub} {why}"


def _name_endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def open_remote(repo: str, revision: str | None, doing: str) -> Remote:
    """Look a repository up: the commit that a revision is now, and what its top folder has.

    Raises:
        HubError: it cannot be reached, does not exist, or has too many files.
    """
    from huggingface_hub import HfApi

    with explain_hub_errors(repo, doing):
        commit = HfApi().repo_info(repo, revision=revision).sha
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise ValueError(f"{commit!r} is no commit")
        files, folders = list_family(repo, commit)
    return Remote(repo, commit, files, folders)


def fetch_file(remote: Remote, file: RemoteFile, count: int, arrived: Arrived, *, anew: bool = False) -> Path:
    """The path of a file in the cache that begins with the first `count` bytes of a file of a repository.

    Args:
        count: at most the file's size.
        anew: take nothing that is in the cache, in ours or in huggingface_hub's.

    Raises:
        HubError: the bytes cannot be had.
        DestinationError: the cache cannot be written.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import WeakFileLock

    path = find_cached(remote, file)
    known = None if anew else try_to_load_from_cache(remote.repo, file.name, revision=remote.commit)
    ours = _count_bytes(path) >= count > 0  # first: what huggingface_hub has may have turned out to be broken
    if not ours and isinstance(known, str) and Path(known).is_file() and Path(known).stat().st_size == file.bytes:
        arrived(count)
        return Path(known)
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    doing = f"fetch {file.name} of {remote.repo}"
    with explain_hub_errors(remote.repo, doing), WeakFileLock(path.with_name(f"{path.name}.lock")):
        if anew:
            path.unlink(missing_ok=True)
        _complete(remote, file, path, count, arrived)
        path.touch()  # of a file that is empty
    return path


def find_cached(remote: Remote, file: RemoteFile) -> Path:
    """Where we keep the first bytes of a file, whether there are any or not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=remote.repo, repo_type="model")
    return Path(constants.HF_HUB_CACHE, folder, _OURS, file.content)


def forget_file(path: Path) -> None:
    """Remove what we fetched of a file and turned out not to be it; what huggingface_hub has is not ours to remove."""
    if path.parent.name == _OURS:
        path.unlink(missing_ok=True)


def _complete(remote: Remote, file: RemoteFile, path: Path, count: int, arrived: Arrived) -> None:
    """Fetch what a file in the cache lacks of the first `count` bytes; it only ever grows, since others may read it."""
    there = _count_bytes(path)
    arrived(min(there, count))
    if (free := shutil.disk_usage(path.parent).free) < count - there:
        raise DestinationError(f"{file.name} of {remote.repo} takes {count - there} bytes more; {free} are free")
    tries = 0
    while there < count:
        before, error = there, None
        try:
            _stream(remote, file, path, count, arrived)
        except _CutOffError as cut:
            error = cut.error
        there = _count_bytes(path)
        tries = 0 if there > before else tries + 1
        if there < count and tries >= MAX_TRIES:
            if error is not None and not there:
                raise error
            said = f"{file.name} of {remote.repo} was cut off after {there} of {count} bytes"
            raise HubError(f"{said}; the same command goes on from there")
        if there < count:
            time.sleep(PAUSE_SECONDS * tries)


def _count_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _CutOffError(Exception):
    """The connection broke; what had arrived is in the file."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _stream(remote: Remote, file: RemoteFile, path: Path, count: int, arrived: Arrived) -> None:
    """Add to a file what arrives, up to `count` bytes in all."""
    from huggingface_hub import constants, errors, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    there = _count_bytes(path)
    asked = f"bytes {there}-{count - 1}/{file.bytes}"
    headers = build_hf_headers() | {"Accept-Encoding": "identity", "Range": f"bytes={there}-{count - 1}"}
    request = {
        "url": hf_hub_url(remote.repo, file.name, revision=remote.commit),
        "headers": headers,
        "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT,
        "max_retries": MAX_TRIES,
        "retry_on_exceptions": (),  # which the body of `with` may raise, and cannot be told apart
    }
    try:
        with http_stream_backoff("GET", **request) as response:
            hf_raise_for_status(response)
            skipped = there  # where all of the file comes, whoever wants its first bytes stops reading
            if response.status_code == 206:
                skipped = 0
                if (came := response.headers.get("Content-Range", "no range")) != asked:
                    raise ValueError(f"{asked} were asked, {came[:80]} came")
            with explain_write_errors(path), path.open("ab") as target:
                for (
                    part
                ) in response.iter_bytes():  # as they come: parts of one size would lose the last of a broken one
                    wanted = part[skipped : skipped + count - there]
                    skipped = max(0, skipped - len(part))
                    target.write(wanted)
                    there += len(wanted)
                    arrived(len(wanted))
                    if there >= count:
                        break
    except errors.HfHubHTTPError:
        raise
    except errors.HTTPError as error:
        raise _CutOffError(error) from None
