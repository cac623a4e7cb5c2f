"""Published weights, fetched once into torch's cache folder."""

import urllib.error
from pathlib import Path

import torch

from mirage_steps.support.errors import UserError


def fetch(url: str, sha256: str, setting: str) -> Path:
    """The local copy of a published file, downloaded on first use, verified, whole or not at all.

    Args:
        url: of the file.
        sha256: of its content.
        setting: config key and value that ask for it, such as ``masks.sam vit_h``.

    Raises:
        UserError: it is not there and cannot be fetched.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), hash_prefix=sha256)
        except (urllib.error.URLError, TimeoutError, ConnectionError, RuntimeError) as error:
            raise UserError(
                f"{setting}: cannot fetch {url} ({error}); download it elsewhere and put it at "
                f"{target}, or set {setting.split()[0]} to its path"
            ) from None
    return target
