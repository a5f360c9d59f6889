"""What a page calls a model."""

from vitslim.names import ALIASES
from vitslim.report.documents import RunConfig

_SHORT = {name: alias for alias, name in ALIASES.items()}


def conversion_title(config: RunConfig) -> str | None:
    """What was made of which model, as in ``deit_small → skipat + evo_vit``; None where the model is not known."""
    name = base_title(config)
    if name is None:
        return None
    methods = " + ".join(one.method for one in config.conversions)
    return f"{name} → {methods}" if methods else f"{name}, dense"


def base_title(config: RunConfig) -> str | None:
    """The dense model's alias or name; one that was built by hand is told by its class and shape."""
    name = config.base_name
    if name is None or not name.startswith(":"):
        return None if name is None else _SHORT.get(name, name)
    options = config.base.get("options") or {}
    shape = [f"{options[key]} {words}" for key, words in (("depth", "blocks"), ("embed_dim", "wide")) if key in options]
    return name[1:] + (f" ({', '.join(shape)})" if shape else "")
