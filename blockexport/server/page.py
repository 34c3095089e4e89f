"""The page to watch the server by, and the figures it asks for."""

from importlib.resources import files
from typing import Any

from starlette.responses import HTMLResponse

from blockexport.server.model import ServedModel
from blockexport.server.watch import Watch
from blockexport.serving.service import GenerationService

# The page is one file and asks nobody but this server.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


class Page:
    """Shows what happens."""

    def __init__(self, service: GenerationService | None, model: ServedModel, watch: Watch) -> None:
        self._service = service
        self._model = model
        self._watch = watch
        self._html = files("blockexport.server").joinpath("static/index.html").read_text(encoding="utf-8")

    async def show(self) -> HTMLResponse:
        """The page itself."""
        return HTMLResponse(self._html, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"})

    async def status(self) -> dict[str, Any]:
        """What it shows."""
        state = {} if self._service is None else dict(self._service.state())
        levels = {level["name"]: dict(level) for level in self._model.levels}
        for level in state.pop("levels", ()):
            levels[level["name"]] |= level
        return {
            "model": self._model.name,
            "levels": list(levels.values()),
            "state": state,
            "recent": self._watch.recent(),
        }
