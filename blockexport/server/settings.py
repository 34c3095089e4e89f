"""What a server is told when it starts."""

import ipaddress
from dataclasses import dataclass

from blockexport.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where to listen, whom to answer, and how much to take.

    Attributes:
        host: address to bind.
        port: port to bind; 0 for a free one.
        api_key: token that every caller must show; None for none.
        allow_anonymous: whether an address beyond this machine may be bound without a token.
        max_body_bytes: largest request.
        max_connections: most connections at a time.
        body_timeout_s: within which the head of a request must have arrived, and then its body.
        request_timeout_s: within which an answer must have ended.
        stall_timeout_s: within which a client must take what it is sent, once buffers are full.
        drain_timeout_s: what running answers get to end when the server stops.
        max_prompts: most prompts of one request.
        max_new_tokens: most tokens of one answer.
        max_pictures: most pictures of one request.
        max_picture_pixels: most pixels of one picture.
        max_output_values: most numbers in the answer to a tensor request.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    allow_anonymous: bool = False
    max_body_bytes: int = 2**23
    max_connections: int = 256
    body_timeout_s: float = 30.0
    request_timeout_s: float = 600.0
    stall_timeout_s: float = 30.0
    drain_timeout_s: float = 30.0
    max_prompts: int = 32
    max_new_tokens: int = 4096
    max_pictures: int = 8
    max_picture_pixels: int = 2**24
    max_output_values: int = 2**22

    def __post_init__(self) -> None:
        if not (0 <= self.port <= 65535):
            msg = f"port is {self.port}; give 1 to 65535, or 0 for a free one"
            raise ConfigError(msg)
        if self.api_key is not None and len(self.api_key) < 8:
            msg = f"the API key has {len(self.api_key)} characters; give at least 8 that cannot be guessed"
            raise ConfigError(msg)
        if self.api_key is None and not self.allow_anonymous and not is_loopback(self.host):
            msg = (
                f"{self.host} can be reached from other machines and no API key is set; "
                "set one (--api-key or BLOCKEXPORT_API_KEY), or say --allow-anonymous"
            )
            raise ConfigError(msg)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; a name other than localhost may lead anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
