"""What an archive says about itself to people: `README.md` and `labels.txt`."""

from services.contracts.exports import TOLERANCE, ExportedModel, ExportFormat

_NEEDS = {
    ExportFormat.KERAS: "`keras` with `tensorflow`",
    ExportFormat.SAVEDMODEL: "`tensorflow`",
    ExportFormat.TFLITE: "`ai-edge-litert` (or `tensorflow`, whose interpreter is `tf.lite.Interpreter`)",
    ExportFormat.ONNX: "`onnxruntime`",
}

_LOADING = {
    ExportFormat.KERAS: """\
import keras

model = keras.saving.load_model("model.keras")
probabilities = model.predict(image)[0]
""",
    ExportFormat.SAVEDMODEL: """\
import tensorflow as tf

model = tf.saved_model.load("saved_model")
probabilities = model.serve(image)[0].numpy()
""",
    ExportFormat.TFLITE: """\
from ai_edge_litert.interpreter import Interpreter

model = Interpreter("model.tflite")
model.allocate_tensors()
model.set_tensor(model.get_input_details()[0]["index"], image)
model.invoke()
probabilities = model.get_tensor(model.get_output_details()[0]["index"])[0]
""",
    ExportFormat.ONNX: """\
import onnxruntime

model = onnxruntime.InferenceSession("model.onnx")
probabilities = model.run(["probabilities"], {"image": image})[0][0]
""",
}

_README = """\
# {about.model_name}, version {about.version}

An image classifier with {count} classes, trained by Rekindle on {about.backbone}.

- `{about.file}`: the model. It maps RGB pixels, uint8 `[{shape}]`, to the classes' probabilities.
- `labels.txt`: the classes' names, one on each line, in the order of the probabilities.
- `model.json`: the same for programs, and how an image file becomes pixels.

Needs {needs}, `numpy` and `pillow`:

```python
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

picture = Image.open("picture.jpg")
picture.draft(picture.mode, ({twice}, {twice}))  # large JPEGs are decoded at a lower resolution, as in training
picture = ImageOps.exif_transpose(picture).convert("RGB")
image = np.asarray(picture.resize(({side}, {side}), Image.Resampling.BILINEAR))[np.newaxis]

{loading}
labels = Path("labels.txt").read_text(encoding="utf-8").splitlines()
print(labels[probabilities.argmax()], probabilities.max())
```

Before the archive was made, its model was run on images: no probability differed by more than {tolerance:g} from what
Rekindle serves.
"""


def readme(about: ExportedModel) -> str:
    """`README.md`, with a program that classifies `picture.jpg`."""
    side = about.pixels.width
    return _README.format(
        about=about,
        count=len(about.labels),
        shape=", ".join("batch" if each is None else str(each) for each in about.input.shape),
        needs=_NEEDS[about.format],
        twice=2 * side,
        side=side,
        loading=_LOADING[about.format],
        tolerance=TOLERANCE,
    )


def labels(about: ExportedModel) -> str:
    """`labels.txt`; of a label with line breaks, too, it has one line."""
    return "".join(f"{' '.join(label.splitlines())}\n" for label in about.labels)
