"""Take any classifier apart that torch.fx can trace, without a word about its architecture.

The graph of a forward pass is searched for its *cuts*: values from which everything behind them is
computed, as nothing older is used there. A skip connection goes around every value inside its
block, so the cuts are what stands between blocks. Each cut is a place where the model can be left
and entered again. Levels, head and tail are segments of the graph between cuts, and run as code
that reads the model's own modules: nothing is copied, and parameters keep their names.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor, fx, nn

from anykd.errors import ModelError, first_line

from .geometry import SAME_RESOLUTION, Geometry, Grid, read_map, read_tokens
from .probe import evaluating, probe_images
from .structure import pick_taps

__all__ = ["TracedBackbone", "drop_classifier", "new_classifier"]

_PASSIVE_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.LayerNorm, torchvision.ops.Permute)
_PASSIVE_CALLS = {"permute", "contiguous", "transpose", "flatten", F.pad, F.dropout, torch.permute}
"""What may stand behind the last block of a level and is no part of it."""

_POOLING_MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POOLING_CALLS = {"mean", torch.mean, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}


class TracedBackbone(nn.Module):
    """A `Backbone` made of an image classifier that knows nothing of backbones.

    The state dict is the classifier's own, behind ``model.``.

    Args:
        model: Maps normalised images (batch, 3, height, width) to logits (batch, classes). It is
            used, not copied.
        image_size: (height, width) in pixels, at which levels are told apart.
        pretrained_cfg: What timm keeps under this name: input size, normalisation, class names.

    Attributes:
        model: The classifier.
        pretrained_cfg: As given.
        classifiers: Path of its last layer, which scores the classes or stands where that was.
        run_piece: Called with the modules that a part of the model runs, a function, and the
            function's arguments, which it calls it with.

    Raises:
        ModelError: If the classifier cannot be traced, or does not fall into four levels or more.
    """

    def __init__(
        self, model: nn.Module, *, image_size: Grid, pretrained_cfg: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.pretrained_cfg = dict(pretrained_cfg or {})
        self.run_piece: Callable[..., Tensor] = _run_once
        with evaluating(model):
            graph = _trace(model)
            self._when_evaluating = _take_apart(model, image_size, graph)
            last = _last_layer(model, graph)
            self.classifiers = () if last is None else (str(last.target),)
            # Functions such as F.dropout have their mode written into the graph.
            graph = _trace(model.train())
            self._when_training = _take_apart(model.eval(), image_size, graph)

    @property
    def _segments(self) -> "_Segments":
        return self._when_training if self.model.training else self._when_evaluating

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits."""
        return self.forward_head(self.forward_stages(x)[1])

    def forward_stages(self, x: Tensor) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor]:
        """Run the model up to its pooling and keep every level; see `Backbone`."""
        segments = self._segments
        values = self._run(segments.pieces, x)
        levels = zip(segments.levels, segments.ends, strict=True)
        return [level.to_map(values[end]) for level, end in levels], values[-1]

    def _run(self, pieces: Sequence["_Piece"], value: Tensor) -> list[Tensor]:
        """What each piece makes of what the one before it made; first, what there was."""
        values = [value]
        for piece in pieces:
            modules = [self.model.get_submodule(path) for path in piece.paths]
            values.append(self.run_piece(modules, piece, self.model, values[-1]))
        return values

    def forward_head(self, final: Tensor, pre_logits: bool = False) -> Tensor:
        """Compute the logits, or the pooled vector that the classifier reads; see `Backbone`."""
        segments = self._segments
        if not pre_logits:
            return segments.logits(self.model, final)
        pooled = segments.pooled(self.model, final)
        return pooled if pooled.ndim == 2 else pooled.mean(dim=(2, 3))  # SqueezeNet scores a map

    def forward_tail(self, stage3_map: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Run stage 4 on from a stage-3 map; see `Backbone`."""
        segments = self._segments
        value = segments.levels[segments.third].from_map(stage3_map, prefix)
        return self._run(segments.pieces[segments.ends[segments.third] :], value)[-1]


def _run_once(modules: Sequence[nn.Module], piece: "_Piece", *args: Any) -> Tensor:
    return piece(*args)


@dataclass(frozen=True)
class _Segments:
    """Parts of a model as functions of the model itself and of what comes in.

    Attributes:
        levels: The geometry of each level.
        third: Index of the level that ends stage 3.
        pieces: Lead from the images to the final feature, from one end of a block to the next.
        ends: How many pieces lead to each level.
        logits: Leads from the final feature to the logits.
        pooled: Leads from there to the pooled vector.
    """

    levels: tuple[Geometry, ...]
    third: int
    pieces: "tuple[_Piece, ...]"
    ends: tuple[int, ...]
    logits: "_Piece"
    pooled: "_Piece"


@dataclass(frozen=True)
class _Piece:
    """A function (model, value) -> value, and the paths of the modules that it runs."""

    function: Callable[[nn.Module, Tensor], Tensor]
    paths: tuple[str, ...]

    def __call__(self, model: nn.Module, value: Tensor) -> Tensor:
        return self.function(model, value)


_Found = tuple[fx.Node, Geometry]


class _Tracer(fx.Tracer):
    """Traces through every module but the smallest."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math, torchvision.ops))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        childless = next(m.children(), None) is None
        return childless or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except Exception as error:
        # Whatever a forward pass does with a value that is not there yet: compare it, iterate it.
        raise ModelError(
            f"{type(model).__name__} cannot be taken apart, as torch.fx cannot trace it: "
            f"{first_line(error)}",
            hint="give it forward_stages and forward_head; see docs/guides/models.md",
        ) from error


def _take_apart(model: nn.Module, image_size: Grid, graph: fx.Graph) -> _Segments:
    """Find levels, final feature and classifier of a graph, of a model in eval mode."""
    values = _Values(model, graph, image_size)
    images = probe_images(image_size, like=next(model.parameters()))
    # A function in train mode draws random numbers; the caller's generator must not notice.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            logits = values.run(images)
        except Exception as error:
            # Whatever a model raises on images that do not fit it, or without what else it wants.
            raise ModelError(
                f"{type(model).__name__} does not take images of {image_size[0]} x "
                f"{image_size[1]} px by themselves: {first_line(error)}",
                hint="choose another image_size",
            ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ModelError(f"{type(model).__name__} is no classifier: it gives no (batch, classes)")
    (images_in,) = (node for node in graph.nodes if node.op == "placeholder")
    output: Any = next(node.args[0] for node in graph.nodes if node.op == "output")
    classifier = _find_classifier(model, graph, logits.shape[1])
    pooled = classifier.all_input_nodes[0] if classifier else output
    cuts = list(_up_to_pooling(model, _cuts(graph, pooled)))
    found, block_ends = _find_levels(model, cuts, values)
    if len(found) < 4:
        raise ModelError(
            f"{type(model).__name__} has {len(found)} levels of features, 4 are needed",
            hint="give it forward_stages and forward_head; see docs/guides/models.md",
        )
    levels = tuple(level for _, level in found)
    columnar = len({level.grid for level in levels}) == 1
    third = pick_taps(len(levels), columnar=columnar)[2]
    # Behind the last block there may be a norm and a rearrangement; the head begins behind them.
    final = next(
        node
        for node in reversed(cuts)
        if (level := values.geometry(node, levels[-1])) and level.grid == levels[-1].grid
    )
    stops = dict.fromkeys([*block_ends, *(node for node, _ in found), final])
    steps = [images_in, *(node for node in cuts[: cuts.index(final) + 1] if node in stops)]
    return _Segments(
        levels,
        third,
        pieces=tuple(_segment(graph, a, b) for a, b in itertools.pairwise(steps)),
        ends=tuple(steps.index(node) for node, _ in found),
        logits=_segment(graph, final, output),
        pooled=_segment(graph, final, pooled),
    )


class _Values(fx.Interpreter):
    """Shapes of all values of a graph, and what they say about positions."""

    def __init__(self, model: nn.Module, graph: fx.Graph, image_size: Grid) -> None:
        super().__init__(model, graph=graph)
        self.model = model
        self.image_size = image_size
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.grids: dict[fx.Node, Grid] = {}
        self._grid: Grid | None = None

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
            if _is_a(n, self.model, nn.Conv2d):
                self._grid = (value.shape[2], value.shape[3])
        if self._grid is not None:
            self.grids[n] = self._grid
        return value

    def geometry(self, node: fx.Node, before: Geometry | None) -> Geometry | None:
        """Read a value as a map, or as tokens of the grid that the last convolution left."""
        shape = self.shapes.get(node, ())
        if node in self.grids and len(shape) == 3:
            return read_tokens(shape, self.grids[node])
        return read_map(shape, self.image_size, before=before)


def _find_classifier(model: nn.Module, graph: fx.Graph, num_classes: int) -> fx.Node | None:
    """The last layer, where it scores the classes; none where an Identity stands in its place."""
    node = _last_layer(model, graph)
    if node is None or _is_a(node, model, nn.Identity):
        return None
    layer: Any = model.get_submodule(str(node.target))
    width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return node if width == num_classes else None


def _last_layer(model: nn.Module, graph: fx.Graph) -> fx.Node | None:
    """SqueezeNet's is a convolution."""
    layers = (nn.Linear, nn.Conv2d, nn.Identity)
    return next((node for node in reversed(graph.nodes) if _is_a(node, model, *layers)), None)


def _cuts(graph: fx.Graph, end: fx.Node) -> Iterator[fx.Node]:
    """Values behind which nothing older is used, up to ``end``; the images themselves left out."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    live = _behind_images(graph) & _before([end])
    reach = 0  # the last place where a value so far is used
    for node in graph.nodes:
        if node not in live:
            continue
        if reach <= position[node] and node.op != "placeholder":
            yield node
        reach = max([reach, *(position[user] for user in node.users if user in live)])


def _behind_images(graph: fx.Graph) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _before(ends: Iterable[fx.Node], start: fx.Node | None = None) -> set[fx.Node]:
    """Everything that some values are computed from, themselves included, back to a start."""
    found: set[fx.Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found and node is not start:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _up_to_pooling(model: nn.Module, cuts: Iterator[fx.Node]) -> Iterator[fx.Node]:
    for node in cuts:
        if _is_one_of(node, model, _POOLING_MODULES, _POOLING_CALLS):
            return
        yield node


def _is_one_of(
    node: fx.Node, model: nn.Module, modules: tuple[type[nn.Module], ...], calls: set[Any]
) -> bool:
    return _is_a(node, model, *modules) or (node.op != "call_module" and node.target in calls)


def _is_a(node: fx.Node, model: nn.Module, *modules: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), modules)


def _find_levels(
    model: nn.Module, cuts: list[fx.Node], values: _Values
) -> tuple[list[_Found], list[fx.Node]]:
    """Four levels or more, if there are any: each resolution's last, else those of the blocks.

    Beside them stand the ends of the blocks among which they were found, if it was among such. The
    last value of a resolution may lie inside the block that shrinks it, behind a first layer
    that widens; so values at the end of a block are preferred, of the outermost first.
    """
    found: list[_Found] = []
    before: Geometry | None = None
    for node in cuts:
        level = values.geometry(node, before)
        if level is not None:
            before = level
            if not _is_one_of(node, model, _PASSIVE_MODULES, _PASSIVE_CALLS):
                found.append((node, level))
    if not found:
        return [], []
    by_depth = [_block_ends(found, model, depth) for depth in range(3)]
    for ends in (*by_depth, found):
        levels = _each_resolution(ends)
        if len(levels) >= 4:
            return levels, [] if ends is found else [node for node, _ in ends]
    for ends in by_depth:
        levels = [end for end in ends if end[1] == found[-1][1] and _blocks(end[0], model)]
        if len(levels) >= 4:
            return levels, [node for node, _ in ends]
    return _each_resolution(found), []


def _each_resolution(ends: list[_Found]) -> list[_Found]:
    """The last of each resolution."""
    levels: list[_Found] = []
    begun = 0
    for node, level in ends:
        if level.layout == "tokens":
            continue
        if not levels or begun >= SAME_RESOLUTION * level.grid[0]:
            levels.append((node, level))
            begun = level.grid[0]
        else:
            levels[-1] = (node, level)
    return levels


def _block_ends(found: list[_Found], model: nn.Module, depth: int) -> list[_Found]:
    """Leave out what is not the last in its block, of as many that lie in each other."""
    last: dict[str, fx.Node] = {}
    for node, _ in found:
        last |= {path: node for path in _blocks(node, model)[depth : depth + 1]}
    return [
        (node, level)
        for node, level in found
        if all(last[path] is node for path in _blocks(node, model)[depth : depth + 1])
    ]


def _blocks(node: fx.Node, model: nn.Module) -> list[str]:
    """Modules around a value, by path: those in a sequence that have parts, outermost first."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return [
        path
        for path in paths
        if isinstance(model.get_submodule(path.rpartition(".")[0]), nn.Sequential | nn.ModuleList)
        and next(model.get_submodule(path).children(), None) is not None
    ]


def _segment(graph: fx.Graph, start: fx.Node, end: fx.Node) -> _Piece:
    """Make a function (model, value of ``start``) -> the value of ``end``."""
    needed = _before([end], start)
    part = fx.Graph()
    copies = {start: part.placeholder("value")}
    for node in graph.nodes:
        if node in needed:
            copies[node] = part.node_copy(node, lambda source: copies[source])
    part.output(copies[end])
    code = part.python_code("self")  # `self` is the model: it is read when the code runs
    scope = dict(code.globals)
    exec(compile(code.src, f"<{start.name} to {end.name}>", "exec"), scope)
    paths = dict.fromkeys(str(node.target) for node in part.nodes if node.op == "call_module")
    return _Piece(scope["forward"], tuple(paths))


def drop_classifier(model: nn.Module) -> None:
    """Take the last layer away from a classifier, which then gives its pooled vector."""
    path, _ = _classifier_of(model)
    _put(model, path, nn.Identity())


def new_classifier(model: nn.Module, num_classes: int) -> None:
    """Put a new, random layer in the place of a classifier's last one."""
    path, layer = _classifier_of(model)
    if isinstance(layer, nn.Conv2d):
        _put(model, path, nn.Conv2d(layer.in_channels, num_classes, kernel_size=1))
    else:
        _put(model, path, nn.Linear(layer.in_features, num_classes))


def _classifier_of(model: nn.Module) -> tuple[str, Any]:
    node = _last_layer(model, _trace(model))
    if node is None:
        raise ModelError(f"{type(model).__name__} has no classifier")
    return str(node.target), model.get_submodule(str(node.target))


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
