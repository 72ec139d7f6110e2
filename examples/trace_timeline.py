"""Record what every op of a scan did, and draw it as a timeline."""

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import headrace


def main() -> None:
    """Trace a scan into a JSON file and a picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "table"
        folder.mkdir()
        for part in range(3):
            table = pa.table({"part": [part] * 50_000, "value": range(50_000)})
            pq.write_table(table, folder / f"{part}.parquet", row_group_size=10_000)

        filesystem = headrace.HeadraceFileSystem(target_protocol="file", scheduler="lite")
        with headrace.trace() as timeline:
            rows = ds.dataset(str(folder), filesystem=filesystem).to_table().num_rows
        timeline.to_json(Path(name) / "timeline.json")
        timeline.to_png(Path(name) / "timeline.png")
        written = json.loads((Path(name) / "timeline.json").read_text())
        picture_bytes = (Path(name) / "timeline.png").stat().st_size
        print(f"{rows:,} rows, {len(written):,} events; a picture of {picture_bytes:,} bytes")
        assert written or filesystem.mode == "off", "without a scheduler there are no events"
        assert picture_bytes > 0


if __name__ == "__main__":
    main()
