import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real benchmark images, which the project itself does not contain."""
    named = os.environ.get("MIRL_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real benchmark images at {folder}: MIRL_SHARED_DATA names another folder")
    return folder
