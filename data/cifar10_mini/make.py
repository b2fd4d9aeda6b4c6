"""Make `images.tar.xz` from all of CIFAR-10 as JPEG: `python -m data.cifar10_mini.make ARCHIVE`.

The rule: of each class, the first 500 training and the first 100 test images by file name. The
archive's members carry no dates, owners or modes, so that the same images give the same bytes.
"""

import io
import lzma
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

IMAGES_PER_CLASS = {"train": 500, "test": 100}


def make(source: Path, destination: Path) -> None:
    """Copy the chosen members of `source`, a tar archive of `{train,test}/<class>/<name>.jpg`."""
    names = defaultdict(list)
    with tarfile.open(source) as archive:
        members = {
            str(Path(member.name)): member for member in archive.getmembers() if member.isfile()
        }
        for name in sorted(members):
            split, class_name, _ = Path(name).parts[-3:]
            names[split, class_name].append(name)
        chosen = [name for key in sorted(names) for name in names[key][: IMAGES_PER_CLASS[key[0]]]]
        wanted = set(chosen)
        contents = {}
        for member in archive.getmembers():  # In the archive's order: a seek back is slow.
            name = str(Path(member.name))
            file = archive.extractfile(member) if name in wanted else None
            if file is not None:
                contents[name] = file.read()

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in chosen:
            member = tarfile.TarInfo("/".join(Path(name).parts[-3:]))
            member.size = len(contents[name])
            archive.addfile(member, io.BytesIO(contents[name]))
    compressed = lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    destination.write_bytes(compressed)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(__file__).parent / "images.tar.xz")
