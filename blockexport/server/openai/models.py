"""`/v1/models`."""

from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException

from blockexport.server.model import ServedModel


class Models:
    """Says what is served: the one model, and its levels."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def _card(self) -> dict[str, Any]:
        spec = self._model.spec
        return {
            "id": self._model.name,
            "object": "model",
            "created": 0,
            "owned_by": "blockexport",
            "max_model_len": spec.context_tokens or None,
            "architecture": spec.architecture,
            "digest": spec.digest,
            "levels": [dict(level) for level in self._model.levels],
        }

    async def index(self) -> dict[str, Any]:
        """All models."""
        return {"object": "list", "data": [self._card()]}

    async def card(self, name: str) -> dict[str, Any]:
        """One model.

        Raises:
            HTTPException: it is not served.
        """
        if name != self._model.name:
            message = f"model {name[:100]!r} is not served here; ask for {self._model.name!r}"
            raise HTTPException(HTTPStatus.NOT_FOUND, message)
        return self._card()
