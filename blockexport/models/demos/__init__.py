"""Small models that were really trained, by the scripts beside their weights, and ship with the package."""

from pathlib import Path

from blockexport.errors import ModelSupportError

DEMOS = {"demo:code-lm": "code_lm", "demo:digits-vit": "digits_vit", "demo:digits-molmo": "digits_molmo"}


def demo_path(name: str) -> Path:
    """Checkpoint folder of a shipped demo model.

    Raises:
        ModelSupportError: there is no demo of that name.
    """
    if name not in DEMOS:
        msg = f"no demo model {name!r}; shipped are {', '.join(sorted(DEMOS))}"
        raise ModelSupportError(msg)
    return Path(__file__).parent / DEMOS[name] / "checkpoint"
