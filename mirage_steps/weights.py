"""Published weights, downloaded once into the folder that all runs share.

Writes the network and its marker in the layout of ``mirage_steps.networks.fetching``.
"""

from pathlib import Path

from mirage_steps.files.command import log, run
from mirage_steps.networks.fetching import resolve
from mirage_steps.settings import WEIGHTS


def main(*, network: str, setting: str, out: Path, weights: Path = Path(WEIGHTS)) -> None:
    """Fetch a published network, or check the one that is there.

    Args:
        network: vit_b, vit_l, vit_h, inception, or owner/name of the Hugging Face hub.
        setting: Config key that asks for it, such as backbone.model.
        out: Folder for the provenance.
        weights: The shared folder of networks.
    """
    log.info("%s: %s", network, resolve(network, setting, weights))


if __name__ == "__main__":
    run(main)
