"""The Hugging Face Hub, where there is a network and where there is none."""

import functools
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies


@functools.cache
def use_cache_without_network() -> None:
    """Where the Hub's name cannot be resolved, load from the cache only: huggingface_hub would try for 23 s first, and
    print a line for each try. Behind a proxy names need not be known here."""
    from huggingface_hub import constants

    if not getproxies() and not constants.HF_HUB_OFFLINE:
        try:
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
