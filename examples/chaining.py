"""Put headrace in front of any fsspec URL, or inside a chain of them."""

import tempfile
import zipfile
from pathlib import Path

import fsspec

import headrace


def main() -> None:
    """Read one text by three chains."""
    with tempfile.TemporaryDirectory() as folder:
        text = "always enough, never a flood\n" * 1_000
        plain = Path(folder) / "water.txt"
        plain.write_text(text)
        with zipfile.ZipFile(Path(folder) / "water.zip", "w") as archive:
            archive.write(plain, "water.txt")

        chains = [
            f"headrace::file://{plain}",
            f"headrace::zip://water.txt::file://{folder}/water.zip",
            f"zip://water.txt::headrace::file://{folder}/water.zip",
        ]
        for url in chains:
            with fsspec.open(url, "rt") as file:
                assert file.read() == text
            print(f"{len(text):,} characters through {url.split('://')[0]}")

        # And around a filesystem that is there already.
        filesystem = headrace.wrap(fsspec.filesystem("file"))
        assert filesystem.cat_file(str(plain), 0, 6) == b"always"


if __name__ == "__main__":
    main()
