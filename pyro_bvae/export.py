"""A model as two ONNX files, for programs that have neither torch nor Python."""

from __future__ import annotations

import importlib.util
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from pyro.distributions import Independent, Laplace, Normal
from torch import Tensor, nn

from . import __version__
from .vae import VAE, evaluating
from .writing import check_file, replacing

_SCALES = {
    Normal: "Standard deviation of {}, a Normal distribution per {}.",
    Laplace: "Scale of {}, a Laplace distribution per {}: its mean absolute deviation.",
}


def check_exporter() -> None:
    """Refuse to export where the package that torch writes ONNX with is missing.

    Raises:
        ModuleNotFoundError: one sentence that says what to install.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise ModuleNotFoundError(
            "export: onnxscript must be installed; it is not. "
            'Install it: pip install "pyro-bvae[export]".'
        )


def export_onnx(
    vae: VAE, folder: str | Path, metadata: Mapping[str, str] | None = None
) -> list[Path]:
    """Write ``encoder.onnx`` and ``decoder.onnx``: evaluation mode, any batch size, weights within.

    The encoder maps ``x (batch, *x_shape)``, as the model takes it, to ``loc`` and ``scale``, each
    ``(batch, latent_dim)``: mean and standard deviation of q(z|x). The decoder maps ``z (batch,
    latent_dim)`` to the ``mean`` of p(x|z) and, where that is Normal or Laplace, its ``scale``, each
    ``(batch, *x_shape)``. Where the model is conditional the decoder also takes ``labels``, int64
    ``(batch,)``, and so does an encoder that sees them. Both files say what their numbers mean.

    Args:
        vae: the model, which is left as it was.
        folder: where the files go, made where it is missing; files of these names are replaced.
        metadata: more for the files to say, such as the prior's name.

    Returns:
        The paths of encoder and decoder.

    Raises:
        ModuleNotFoundError: onnxscript is not installed.
        ValueError: q(z|x) is no diagonal Normal, or torch cannot write a part as ONNX.
        OSError: nothing can be written there.
    """
    check_exporter()
    paths = [Path(folder) / "encoder.onnx", Path(folder) / "decoder.onnx"]
    for path in paths:
        check_file(path, (".onnx",))
    # Distributions that validate would read values, which a graph does not have.
    with evaluating(vae, seed=0), pyro.validation_enabled(False):
        z = vae.p_z().sample((2,))  # the size of a batch of one would be taken for a constant
        labels = torch.zeros(2, dtype=torch.int64, device=z.device) if vae.n_classes else None
        x = vae.p_x(z, labels).mean
        models = _encoder(vae, x, labels if vae.encode_labels else None), _decoder(vae, z, labels)
    with replacing(paths[0]) as first, replacing(paths[1]) as second:
        for model, temporary in zip(models, (first, second), strict=True):
            for key, value in {"pyro_bvae": __version__, **(metadata or {})}.items():
                model.metadata_props.add(key=key, value=value)
            temporary.write_bytes(model.SerializeToString())
    return paths


class _Parameters(nn.Module):
    """Mean, and scale where there is one, of the distribution that ``part`` of the model returns."""

    def __init__(self, vae: VAE, part: str) -> None:
        super().__init__()
        self.vae, self.part = vae, part

    def forward(self, given: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        distribution = getattr(self.vae, self.part)(given, labels)
        base = _base(distribution)
        mean = distribution.mean
        return (mean, base.scale) if type(base) in _SCALES else (mean,)


def _base(distribution: Any) -> Any:
    """The distribution per latent or per value of x, where these are independent."""
    return distribution.base_dist if isinstance(distribution, Independent) else distribution


def _encoder(vae: VAE, x: Tensor, labels: Tensor | None) -> Any:
    family = type(_base(vae.q_z(x, labels)))
    if family is not Normal:
        raise ValueError(
            "export: q(z|x) must be a diagonal Normal, since the file gives its loc and scale; got "
            f"{family.__name__}. Export a model whose encoder returns (loc, scale)."
        )
    means = {
        "x": "Data as the model takes them: grey values from 0 to 1 (8-bit ones divided by 255), other "
        "numbers unchanged.",
        "labels": f"Class of each row of x, from 0 to {vae.n_classes - 1}.",
        "loc": "Mean of q(z|x), the code of x.",
        "scale": _SCALES[Normal].format("q(z|x)", "latent"),
    }
    return _model("encoder", _Parameters(vae, "q_z"), (x, labels), means)


def _decoder(vae: VAE, z: Tensor, labels: Tensor | None) -> Any:
    means = {
        "z": "Latents: a code of the encoder, or a draw from the prior.",
        "labels": f"Class to decode each row of z as, from 0 to {vae.n_classes - 1}.",
        "mean": "Mean of p(x|z), in the units of x.",
    }
    family = type(_base(vae.p_x(z, labels)))
    if family in _SCALES:
        means["scale"] = _SCALES[family].format("p(x|z)", "value of x")
    return _model("decoder", _Parameters(vae, "p_x"), (z, labels), means)


def _model(
    name: str, module: nn.Module, inputs: tuple[Tensor, Tensor | None], means: dict[str, str]
) -> Any:
    """The ONNX model of ``module``; ``means`` says what its input, labels and outputs mean, in order."""
    given = tuple(part for part in inputs if part is not None)
    names = [key for key in means if key != "labels" or len(given) == 2]
    sizes = tuple({0: torch.export.Dim("batch")} for _ in given)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about parts of its own
            # Left to trace by itself, torch.onnx.export may fix the batch size without a word.
            program = torch.export.export(module, given, dynamic_shapes=sizes, strict=False)
            inward, outward = names[: len(given)], names[len(given) :]
            exported = torch.onnx.export(
                program, input_names=inward, output_names=outward, dynamo=True, verbose=False
            )
            model = cast(Any, exported).model_proto
    except Exception as error:  # of many kinds, where a network does what no graph can hold
        reason = textwrap.shorten(str(error) or type(error).__name__, 100, placeholder=" ...")
        raise ValueError(
            f"export: the {name} must be torch operations on batches of any size; got: {reason}. Write "
            "x.shape[0] for len(x), and no condition on values."
        ) from error
    model.doc_string = f"{name.capitalize()} of a variational autoencoder."
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = means[value.name]
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
        # onnxruntime shows these, and no doc_string of a value.
        model.metadata_props.add(key=value.name, value=means[value.name])
    del model.graph.value_info[:]  # torch's own name for the batch size; runtimes infer shapes
    for node in model.graph.node:
        del node.metadata_props[:]  # where on this machine the code stands
    return model
