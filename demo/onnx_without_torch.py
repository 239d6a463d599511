"""Find things with a folder that `owl-swin export nano --to FOLDER --runtime onnx` wrote; PyTorch is not needed.

python demo/onnx_without_torch.py FOLDER PICTURE "a dog" "a red mug"
"""

import json
import sys
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image, ImageOps
from tokenizers import Tokenizer

folder, names = Path(sys.argv[1]), sys.argv[3:]
spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
ids = np.array([text.ids for text in tokenizer.encode_batch(names)])
(queries,) = InferenceSession(folder / spec["text_graph"]).run(None, {"ids": ids})

image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
ratio = spec["network"]["image_size"] / max(image.size)
frame = image.resize([max(1, round(side * ratio / 32)) * 32 for side in image.size], Image.Resampling.BILINEAR)
pixels = (np.asarray(frame) / 255 - spec["pixels"]["mean"]) / spec["pixels"]["std"]
session = InferenceSession(folder / spec["image_graphs"][0])
embeds, boxes, _, shift, scale, _ = session.run(None, {"pixels": pixels.transpose(2, 0, 1)[None].astype(np.float32)})

logits = (embeds[0] @ queries.T + shift[0][:, None]) * scale[0][:, None]  # a row a patch, a column a query
calibration = spec["network"]["calibration"]
scores = 1 / (1 + np.exp(-logits * calibration["text_scale"] - calibration["text_bias"]))
for name, of_patches in zip(names, scores.T, strict=True):
    best = of_patches.argmax()
    x, y, width, height = boxes[0, best] * np.tile(image.size, 2)
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    print(f"{of_patches[best]:.3f}", *(f"{side:.0f}" for side in box), name)
