"""The few facts of an ELF file that decide how it is loaded (System V ABI, gabi 4.1, chapters 4 and 5)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# e_machine of the ABI's registry, as OCI images spell the architecture (GOARCH).
_ARCHITECTURES = {3: "386", 21: "ppc64le", 22: "s390x", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64"}
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_STRTAB, _DT_SONAME = 5, 14


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    offset: int
    address: int
    size: int


class ElfFile:
    """An ELF file held in memory. Raises ValueError if `data` is none."""

    def __init__(self, data: bytes) -> None:
        if data[:4] != b"\x7fELF":
            raise ValueError("not an ELF file")
        self._data = data
        self._wide = data[4] == 2
        self._order = "<" if data[5] == 1 else ">"
        try:
            self._segments = list(self._read_segments())
        except struct.error as error:
            raise ValueError(f"a damaged ELF file: {error}") from error

    @classmethod
    def read(cls, path: str) -> "ElfFile":
        """The ELF file at `path`. Raises OSError or ValueError."""
        return cls(Path(path).read_bytes())

    @property
    def architecture(self) -> str:
        """The CPU as OCI images name it, such as amd64."""
        (machine,) = self._unpack("H", 18)
        return _ARCHITECTURES.get(machine, f"unknown-{machine}")

    @property
    def interpreter(self) -> str | None:
        """The path of the dynamic loader, or None for a library or a static program."""
        for segment in self._segments:
            if segment.kind == _PT_INTERP:
                return self._data[segment.offset : segment.offset + segment.size].rstrip(b"\0").decode()
        return None

    @property
    def soname(self) -> str | None:
        """The name by which others ask the loader for this library."""
        entries = dict(self._dynamic())
        if _DT_SONAME not in entries or _DT_STRTAB not in entries:
            return None
        start = self._file_offset(entries[_DT_STRTAB]) + entries[_DT_SONAME]
        return self._data[start : self._data.index(b"\0", start)].decode()

    def loadable(self) -> bytes:
        """The file without what is never loaded: symbols and debug information, often two thirds of it.

        These follow the segments in the file, and only the section headers point to them, so it is cut
        behind the last segment and the header's references to sections are cleared.
        """
        count = self._unpack("H", 56 if self._wide else 44)[0]
        table = self._table_offset() + count * (56 if self._wide else 32)
        end = max([table, *(s.offset + s.size for s in self._segments)])
        kept = bytearray(self._data[:end])
        struct.pack_into(self._order + ("Q" if self._wide else "I"), kept, 40 if self._wide else 32, 0)
        struct.pack_into(self._order + "HH", kept, 60 if self._wide else 48, 0, 0)
        return bytes(kept)

    def _unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + layout, self._data, offset)

    def _table_offset(self) -> int:
        return self._unpack("Q", 32)[0] if self._wide else self._unpack("I", 28)[0]

    def _read_segments(self) -> Iterator[_Segment]:
        size, count = self._unpack("HH", 54 if self._wide else 42)
        for index in range(count):
            at = self._table_offset() + index * size
            if self._wide:
                kind, _, offset, address, _, length = self._unpack("IIQQQQ", at)
            else:
                kind, offset, address, _, length = self._unpack("IIIII", at)
            yield _Segment(kind, offset, address, length)

    def _dynamic(self) -> Iterator[tuple[int, int]]:
        layout, step = ("QQ", 16) if self._wide else ("II", 8)
        for segment in self._segments:
            if segment.kind == _PT_DYNAMIC:
                for at in range(segment.offset, segment.offset + segment.size, step):
                    tag, value = self._unpack(layout, at)
                    yield tag, value

    def _file_offset(self, address: int) -> int:
        for segment in self._segments:
            if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
                return segment.offset + address - segment.address
        raise ValueError("a damaged ELF file: its string table is not loaded")
