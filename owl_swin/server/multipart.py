"""multipart/form-data, read whole and strictly: a body that is cut off is refused, not read in part."""

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from owl_swin.server.problems import Problem

MOST_PARTS = 256
# Of a form whose files go to disk, the bytes of all other parts together.
MOST_PLAIN_BYTES = 2**20


@dataclass(slots=True)
class Part:
    """One field of a form. ``filename`` is what the client calls the file; it is never a path here."""

    name: str = ""
    filename: str | None = None
    content: bytes = b""


@dataclass
class _Reader:
    """Collects what the parser calls out."""

    parts: list[Part] = field(default_factory=list)
    ended: bool = False
    name: bytes = b""
    value: bytes = b""
    chunks: list[bytes] = field(default_factory=list)

    def on_part_begin(self) -> None:
        if len(self.parts) >= MOST_PARTS:
            raise Problem("invalid_multipart", f"the form has more than {MOST_PARTS} parts")
        self.parts.append(Part())
        self.chunks = []

    def on_header_begin(self) -> None:
        self.name = self.value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def on_header_end(self) -> None:
        name = self.name.lower()
        if name == b"content-disposition":
            _, options = parse_options_header(self.value)
            part = self.parts[-1]
            part.name = options.get(b"name", b"").decode("utf-8", "replace")
            if b"filename" in options:
                part.filename = options[b"filename"].decode("utf-8", "replace")
        elif name in (b"content-encoding", b"content-transfer-encoding") and self.value.strip().lower() not in (
            b"",
            b"binary",
            b"identity",
            b"7bit",
            b"8bit",
        ):
            raise Problem("encoded_body", "a part of the form is encoded; send it as it is")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.chunks.append(data[start:end])

    def on_part_end(self) -> None:
        self.parts[-1].content = b"".join(self.chunks)
        self.chunks = []

    def on_end(self) -> None:
        self.ended = True


class PlainGauge:
    """Watches a form pass by whose reader writes files to disk, and holds all other parts in memory without a bound."""

    def __init__(self, content_type: str):
        _, options = parse_options_header(content_type)
        self._reader = _Reader()
        callbacks = {name: getattr(self._reader, name) for name in dir(_Reader) if name.startswith("on_header")}
        callbacks |= {"on_part_begin": self._begin, "on_part_data": self._data}
        self._parser = MultipartParser(options.get(b"boundary", b""), callbacks)  # type: ignore[arg-type]
        self._n_bytes = 0

    def write(self, data: bytes) -> None:
        """The next bytes of the form; too many that belong to no file, or what is no form, raise Problem."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Problem("invalid_multipart", f"the form is damaged: {error}") from None

    def _begin(self) -> None:
        self._reader.parts = [Part()]

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._reader.parts[0].filename is None:
            self._n_bytes += end - start
            if self._n_bytes > MOST_PLAIN_BYTES:
                raise Problem("body_too_large", f"the fields of a form have at most {MOST_PLAIN_BYTES} bytes here")


def read_multipart(body: bytes, content_type: str) -> list[Part]:
    """The parts of a form, in order; a body that is no whole form raises Problem."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise Problem("invalid_multipart", "the Content-Type of the form names no boundary")
    reader = _Reader()
    callbacks = {name: getattr(reader, name) for name in dir(_Reader) if name.startswith("on_")}
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Problem("invalid_multipart", f"the form is damaged: {error}") from None
    if not reader.ended:
        raise Problem("invalid_multipart", "the form is cut off: its closing boundary is missing")
    if any(not part.name for part in reader.parts):
        raise Problem("invalid_multipart", "a part of the form has no name")
    return reader.parts
