"""The registry of kinds, which maps an architecture's name and options to a torch module.

The options of a kind are JSON. They are stored in the card and are part of its fingerprint:

- a backbone: `{}`, or `{"head": "metric"}` for metric learning's head;
- `acir`: `widths` (full, s, s-half, xs), `bits`, `side`, `head` (kan, linear), `darf`, `spots`, `decoder`;
- `ensemble`: `members`, a list of `{architecture, options, mean, std}`; `join`; `weights` of a weighted mean;
  `projection`, the shape (components, dim) of principal components.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ConfigDict, Field, ValidationError, validate_call
from safetensors.torch import load_file
from torch import nn

from shared.encoder.backbones import BACKBONES, COMPOSED, Pooling, backbone
from shared.encoder.cards import IMAGENET_MEAN, IMAGENET_STD, Card, Options, check_views
from shared.encoder.ensemble import Ensemble, Join, Projection
from shared.encoder.hashing import COMPONENTS, MEAN
from shared.encoder.heads import Headed, MetricHead
from shared.encoder.network import Network, fill
from shared.encoder.network import body as trunk
from shared.encoder.tta import Tta, Views
from shared.errors import Invalid
from shared.wording import wrong

_checked = validate_call(config=ConfigDict(strict=True, allow_inf_nan=False))


class Kind(NamedTuple):
    make: Callable[..., nn.Module]  #: called with the options by name, and `empty`
    pooling: Pooling
    mean: tuple[float, ...] = IMAGENET_MEAN  #: default normalisation of the inputs; the card may override it
    std: tuple[float, ...] = IMAGENET_STD


def kind(architecture: str) -> Kind:
    """Return the kind of this name. Raises: `Invalid`, with the known names, for any other."""
    if architecture not in COMPOSED:
        return Kind(partial(_backbone, architecture), backbone(architecture).pooling)
    return _COMPOSED[architecture]


def body(architecture: str, options: Options | None = None, *, empty: bool = False) -> nn.Module:
    """Return the module for inputs (n, channels, side, side), in eval mode: initialised, or `empty` for `fill`.

    Raises: `Invalid` for an unknown architecture, or options that it does not have.
    """
    made = kind(architecture).make
    if "empty" in (options or {}):  # an argument of the registry, not an option
        raise Invalid(f"missing or wrong options of {architecture}: empty")
    try:
        module = made(**(options or {}), empty=empty)
    except ValidationError as error:
        raise Invalid(f"missing or wrong options of {architecture}: {wrong(error)}") from None
    return module.eval().requires_grad_(requires_grad=False)


def assemble(module: nn.Module, mean: Sequence[float], std: Sequence[float], tta: str, side: int) -> nn.Module:
    """Wrap a body into the whole model, which maps grey pixels (n, side, side) in [0, 1] to (n, dim) or `Outputs`."""
    check_views(tta)
    network = Network(module, mean, std).eval()
    if tta == "none":
        return network
    views = Views.named(tta, side)
    if not isinstance(module, Ensemble):
        return Tta(network, views).eval()
    module.views = views  # the ensemble applies the views itself, to average each member before the vectors are joined
    return network


def load_network(card: Card, weights: Path) -> nn.Module:
    """Return the card's whole network with its weights. Raises: `Invalid` for weights that do not fit."""
    module = body(card.architecture, card.kind_options, empty=True)
    state = load_file(weights)
    if card.fitted_hash:
        state = {key: value for key, value in state.items() if key not in (MEAN, COMPONENTS)}
    fill(module, state, card.architecture)
    return assemble(module, card.mean, card.std, card.tta, card.recipe.size)


@_checked
def _backbone(architecture: str, *, head: Literal["metric"] | None = None, empty: bool) -> nn.Module:
    module = trunk(architecture, empty=empty)
    return module if head is None else Headed(module, MetricHead(BACKBONES[architecture].dim))


@_checked
def _acir(  # noqa: PLR0913 - the options of its card
    *,
    widths: Literal["full", "s", "s-half", "xs"],
    bits: Annotated[int, Field(ge=8, le=4096, multiple_of=8)],
    side: int = 224,
    head: Literal["kan", "linear"] = "kan",
    darf: bool = True,
    spots: bool = False,
    decoder: bool = True,
    empty: bool,  # noqa: ARG001 - its computed tables are not in the weights file, so it is always initialised
) -> nn.Module:
    from shared.encoder.acir import WIDTHS, Acir

    return Acir(WIDTHS[widths], bits, 0, side=side, head=head, darf=darf, spots=spots, decoder=decoder)


@_checked
def _ensemble(
    *,
    members: Sequence[dict[str, Any]],
    join: Join = "unit",
    weights: Sequence[float] = (),
    projection: Sequence[Annotated[int, Field(ge=1, le=65_536)]] = (),
    empty: bool,
) -> nn.Module:
    if any("empty" in member for member in members):
        raise Invalid("missing or wrong options of ensemble: members.empty")
    module = Ensemble([_member(**member, empty=empty) for member in members], join, weights)
    if (join == "pca") != (len(projection) == 2):
        raise Invalid("the join pca needs a projection (components, dim); other joins take none")
    if projection:
        module.projection = Projection(projection[0], projection[1])
    return module


@_checked
def _member(
    *,
    architecture: str,
    options: dict[str, Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    empty: bool,
) -> Network:
    known = kind(architecture)
    if architecture == "ensemble":
        raise Invalid("a member of an ensemble cannot be an ensemble")
    mean, std = mean or known.mean, std or known.std
    if not len(mean) == len(std) == len(known.mean):
        raise Invalid(f"a member of an ensemble needs a mean and a deviation for each of {len(known.mean)} channels")
    return Network(body(architecture, options, empty=empty), mean, std)


_COMPOSED: Mapping[str, Kind] = {
    "acir": Kind(_acir, "content", (0.0,) * 3, (1.0,) * 3),
    "ensemble": Kind(_ensemble, "members", (0.0,), (1.0,)),
}
