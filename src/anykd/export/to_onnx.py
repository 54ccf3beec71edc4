"""ONNX: a program that onnxruntime, and most other runtimes, execute."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from anykd.errors import ModelError, first_line

from .quiet import quiet
from .signature import INPUT, Signature

# Read when onnxruntime is imported, here and in what others do with it in this process: without it
# the library reports its use over the network, and keeps a database of that in the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["load_onnx", "quantise", "require_onnx", "write_onnx"]

_MOST_BYTES = 2**31 - 2**20
"""A protocol buffer holds less than 2 GiB."""


def require_onnx() -> None:
    """Refuse to begin where the packages are missing.

    Raises:
        ModelError: With what to install.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"ONNX files need the package {error.name}, which is not installed",
            hint="pip install 'anykd[export]'",
        ) from error


def write_onnx(
    program: torch.export.ExportedProgram,
    signature: Signature,
    metadata: dict[str, Any],
    path: Path,
) -> None:
    """Write a traced student as one ONNX file.

    Args:
        program: From `trace`.
        signature: Names its input and output.
        metadata: Plain values; each is JSON under its key in the file's metadata.
        path: The file.

    Raises:
        ModelError: If torch's exporter does not know an operation, or the file would be too large.
    """
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > _MOST_BYTES:
        raise ModelError(
            f"the student has {size / 2**30:.1f} GiB of weights, an ONNX file holds less than 2",
            hint="--format torch has no such limit",
        )
    try:
        with quiet():
            made: Any = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=[INPUT],
                output_names=[signature.output],
                # The program is dynamic by itself, with a name that torch has counted up.
                dynamic_shapes=({0: "batch"},),
                verbose=False,
            )
    except Exception as error:
        raise ModelError(
            f"torch.onnx does not export this student: {first_line(error)}",
            hint="--format torch keeps torch's own operations",
        ) from error
    made.model.metadata_props.update(_texts(metadata))
    with quiet():
        made.save(str(path), external_data=False)


def quantise(source: Path, calibration: Sequence[Tensor], path: Path) -> None:
    """Write an ONNX file with 8-bit integers in the place of float32, by static quantisation.

    Convolutions and matrix products, where time and weights are, become integers: weights for each
    output channel, activations by the ranges that the calibration shows. What stands between them
    stays float32, as quantised norms and softmaxes cost accuracy and gain little.

    Args:
        source: The float file.
        calibration: Batches of inputs as the file takes them.
        path: The new one; it has the same input, output and metadata.

    Raises:
        ModelError: If onnxruntime cannot.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = iter(calibration)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    try:
        with quiet(), TemporaryDirectory() as folder:
            onnxruntime.set_default_logger_severity(3)
            ready = Path(folder) / "ready.onnx"
            # Folds batch norms into convolutions; dynamo's files bring their shapes with them.
            quant_pre_process(source, ready, skip_symbolic_shape=True)
            quantize_static(
                ready,
                path,
                Reader(),
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            model = onnx.load(path)
            props = {entry.key: entry.value for entry in onnx.load(source).metadata_props}
            onnx.helper.set_model_props(model, props)
            onnx.save(model, path)
    except Exception as error:
        raise ModelError(
            f"onnxruntime does not quantise this student: {first_line(error)}",
            hint="export without --int8",
        ) from error


def load_onnx(path: Path) -> tuple[Callable[[Tensor], Tensor], dict[str, Any]]:
    """Load an ONNX file on the processor as somebody without anykd does.

    Returns:
        A function from a batch of inputs to outputs, and the metadata of the file.

    Raises:
        ModelError: If onnxruntime cannot run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ModelError(f"onnxruntime does not load {path.name}: {first_line(error)}") from error

    def run(inputs: Tensor) -> Tensor:
        (found,) = session.run(None, {INPUT: inputs.numpy()})
        return torch.from_numpy(found)

    props = session.get_modelmeta().custom_metadata_map
    own = {key: value for key, value in props.items() if key.startswith("anykd.")}
    return run, {key.removeprefix("anykd."): json.loads(value) for key, value in own.items()}


def _texts(metadata: dict[str, Any]) -> dict[str, str]:
    return {f"anykd.{key}": json.dumps(value) for key, value in metadata.items()}
