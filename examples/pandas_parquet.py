"""Read Parquet with pandas through headrace: nothing changes but the URL."""

import tempfile
from pathlib import Path

import pandas as pd


def main() -> None:
    """Write with pandas, read through headrace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prices.parquet"
        written = pd.DataFrame({"item": ["lock", "wheel", "gate"], "price": [3.5, 120.0, 48.0]})
        written.to_parquet(path)

        read = pd.read_parquet(f"headrace::file://{path}", columns=["price"])
        print(read)
        assert read["price"].tolist() == written["price"].tolist()


if __name__ == "__main__":
    main()
