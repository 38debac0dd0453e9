"""Where the models that come with Ramify lie."""

from importlib.util import find_spec
from pathlib import Path

from ramify.local.errors import LocalError


def tiny24() -> Path:
    """The folder with the tiny Game of 24 models: of the installed package, or of the checkout."""
    # The checkout first: beside it an editable install holds a copy of the models as they were when it was made.
    places = [Path(__file__).parents[3] / "infra" / "models" / "tiny24"]
    places += [
        Path(place) / "tiny24" for place in (getattr(find_spec("ramify.models"), "submodule_search_locations", None) or [])
    ]
    for place in places:
        if (place / "generator" / "model.onnx").exists():
            return place
    raise LocalError(f"the tiny24 models are not at {places[0]}: name models with --engine and --verifier-model")
