"""Confined processes that read and predict untrusted files.

A file that makes a decoder crash, hang or take too much memory ends one job, not the server. Any interface
can use them; they know nothing of HTTP.
"""
