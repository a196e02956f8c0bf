"""What the Hugging Face hub says of a file: its address, size and SHA-256; and which files are near a wrong name.

Only the metadata comes by way of huggingface_hub, not the bytes: its hf_hub_download compares sizes but no
checksums, and deletes what it has when it is interrupted, so nothing is ever resumed (version 1.33). HF_ENDPOINT,
HF_TOKEN and HF_HUB_OFFLINE are read by the library itself.
"""

from __future__ import annotations

from difflib import get_close_matches

from kitbash_ray.download import Remote
from kitbash_ray.errors import ModelError

#: How many names are suggested for one that is not there.
SUGGESTIONS = 3


def look_up(repo: str, file: str, revision: str | None = None, *, endpoint: str | None = None) -> Remote:
    """The file as the hub knows it now, at the address of its commit. Raises ModelError with one sentence."""
    import httpx
    from huggingface_hub import errors, get_hf_file_metadata, get_token, hf_hub_url

    token = get_token()
    try:
        url = hf_hub_url(repo, file, revision=revision, endpoint=endpoint)
        found = get_hf_file_metadata(url, token=token or False, library_name="kitbash", endpoint=endpoint)
    except errors.HFValidationError as error:
        raise ModelError(f"{repo!r} is no name of a repository: {' '.join(str(error).split())}") from error
    except errors.RemoteEntryNotFoundError as error:
        raise ModelError(f"{repo} has no file {file!r}{_near(repo, file, revision, endpoint)}") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no revision {revision!r}; leave --revision out for the newest.") from error
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repo} is gated: accept its terms on its page, then set HF_TOKEN to a token of your account and pull again."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"The hub has no repository {repo}, or it is private; check the name, or set HF_TOKEN.") from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelError("HF_HUB_OFFLINE forbids the network; unset it to pull a model.") from error
    except errors.HfHubHTTPError as error:
        raise ModelError(_refusal(repo, error.response.status_code)) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ModelError(
            f"The hub cannot be reached ({str(error) or type(error).__name__}); check the network, or HF_ENDPOINT, and pull again."
        ) from error
    pinned = hf_hub_url(repo, file, revision=found.commit_hash or revision, endpoint=endpoint)
    return Remote(pinned, found.size, found.etag, {"Authorization": f"Bearer {token}"} if token else {})


def _refusal(repo: str, status: int) -> str:
    if status == 401:
        return f"The hub has no repository {repo}, or does not know the token; check the name, or set HF_TOKEN."
    if status == 403:
        return f"The hub refuses {repo} (HTTP status {status}); set HF_TOKEN to a token that may read it."
    return f"The hub answered HTTP status {status} for {repo}; try again later."


def _near(repo: str, file: str, revision: str | None, endpoint: str | None) -> str:
    from huggingface_hub import HfApi

    try:
        names = [name for name in HfApi(endpoint=endpoint).list_repo_files(repo, revision=revision) if name.endswith(".gguf")]
    except Exception:  # suggestions are a courtesy: whatever keeps them away must not hide that the file is missing
        return f"; look at the files on the page of {repo}."
    by_lower = {name.lower(): name for name in names}
    near = [by_lower[name] for name in get_close_matches(file.lower(), by_lower, n=SUGGESTIONS, cutoff=0.3)]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; it has {', '.join(sorted(names)[:SUGGESTIONS])}." if names else "; it has no GGUF at all, so choose another."
