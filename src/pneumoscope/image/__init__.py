"""From bytes to a radiograph, and from a radiograph to the input of the network.

`decode` reads a file, by its content, into a `pneumoscope.domain.Radiograph`; `limits` and `levels`, `jpeg`,
`jpeg2000`, `raster`, `tiff`, `web` and `foreign`, and `dicom`, `dicom_header`, `frames`, `lookup` and `greys`
are its parts. `standardise` is the only preprocessing code, and `lungs` turns a segmenter's map into lung
fields.
"""

from __future__ import annotations
