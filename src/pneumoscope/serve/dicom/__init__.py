"""The DICOM node: receives radiographs, predicts them in confined processes, and sends results back as DICOM.

What the node has accepted is on disk and in its journal before it says so; the process that holds the
network connections never parses what it received.
"""
