"""The usual Keras script: load, resize to 224, VGG16, one image at a time.

Weights are random, which takes the same time as trained ones. Usage: python keras_vgg16.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from keras.applications.vgg16 import VGG16, preprocess_input


def main() -> None:
    """Predict every image of a folder and print how many there were."""
    model = VGG16(weights=None, classes=3)
    count = 0
    for path in sorted(Path(sys.argv[1]).iterdir()):
        image = keras.utils.load_img(path, target_size=(224, 224))
        batch = preprocess_input(np.expand_dims(keras.utils.img_to_array(image), axis=0))
        model.predict(batch, verbose=0)
        count += 1
    print(count)


if __name__ == "__main__":
    main()
