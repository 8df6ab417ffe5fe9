"""From bytes to a radiograph, and from a radiograph to what the network sees.

`decode` reads a file, by its content, into a `pneumoscope.domain.Radiograph`; `limits`, `jpeg`,
`raster`, `dicom` and `frames` are its parts. `standardise` is the only preprocessing code, and `lungs`
turns a segmenter's map into a lung field.
"""

from __future__ import annotations
