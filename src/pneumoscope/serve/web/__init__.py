"""The web server: a page and a REST interface over one bundle.

Uploads are kept in memory only and discarded with the response. They are decoded and predicted in separate,
confined processes, so that a malicious file can end no more than its own job.
"""
