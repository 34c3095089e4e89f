"""The engines of one bundle, each opened when it is first used."""

from blockexport.backends.onnxruntime.decoder import OrtDecoder
from blockexport.backends.onnxruntime.single_pass import OrtSinglePass
from blockexport.bundle.reader import Bundle
from blockexport.runtime.kv_cache import KvCache

BACKEND = "onnxruntime"


class Engines:
    """Opens levels and allocates caches for them.

    Args:
        bundle: what to open.
        threads: threads within an operator; 0 lets the backend choose.
    """

    def __init__(self, bundle: Bundle, *, threads: int = 0) -> None:
        self.threads = threads
        self._bundle = bundle
        self._decoders: dict[str, OrtDecoder] = {}
        self._single_pass: dict[str, OrtSinglePass] = {}

    def layout(self, level: str) -> dict[int, tuple[int, int]]:
        """Per kept block of a level, (kv_heads, head_dim)."""
        rows = self._bundle.manifest.model.kv
        return {block: (rows[block].num_heads, rows[block].head_dim) for block in self._bundle.level(level).kept}

    def new_cache(self, level: str, batch: int, capacity_tokens: int) -> KvCache:
        """An empty cache for a level and all levels below it."""
        return KvCache(self.layout(level), batch, capacity_tokens)

    def decoder(self, level: str) -> OrtDecoder:
        """The opened decoder of a level.

        Raises:
            BundleError: the level has no engine that this host can open.
        """
        if level not in self._decoders:
            self._decoders[level] = OrtDecoder(self._bundle.engine_path(level, BACKEND), threads=self.threads)
        return self._decoders[level]

    def single_pass(self, level: str) -> OrtSinglePass:
        """The opened encoder or vision model of a level.

        Raises:
            BundleError: the level has no engine that this host can open.
        """
        if level not in self._single_pass:
            self._single_pass[level] = OrtSinglePass(self._bundle.engine_path(level, BACKEND), threads=self.threads)
        return self._single_pass[level]
