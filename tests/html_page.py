"""Parses HTML for tests."""

from __future__ import annotations

from html.parser import HTMLParser

__all__ = ["Page"]

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Balance of tags, ids, every address that a browser would follow, and the text.

    Parameters
    ----------
    text : str
        The whole page; a tag that is closed out of turn fails the test.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.addresses, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in {"src", "href", "xlink:href", "srcset", "data"}:
                self.addresses.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
