"""A bucket of Google Cloud Storage on this machine: a server that speaks its interface.

The real libraries ask it: gcsfs, Google's own, and TensorStore, through which Orbax writes arrays.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from unittest import mock

import fsspec
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server

BUCKET = "gs://bucket"

_download = objects.download


@contextmanager
def serve_bucket() -> Iterator[None]:
    """Has gs://bucket be an empty bucket here, which only this process and its children see."""
    # Each request would be a line.
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    logging.getLogger("gcsfs").setLevel(logging.ERROR)
    server = create_server("localhost", 0, in_memory=True, default_bucket="bucket")
    server.start()
    while server._api._httpd is None:  # the thread is still opening its port
        time.sleep(0.01)
    address = f"http://localhost:{server._api._httpd.server_port}"
    environment = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        # Nobody is asked who we are, nor what kind of bucket it is.
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(objects, "download", _download_with_generation),
    ):
        file_system = fsspec.get_filesystem_class("gs")
        file_system.clear_instance_cache()
        yield
    server.stop()
    file_system.clear_instance_cache()


def _download_with_generation(request: Any, response: Any, storage: Any) -> None:
    """Answers as Google's servers do, which say a file's generation; the emulator does not.

    TensorStore replaces a file only if it still has the generation that it has read.
    """
    _download(request, response, storage)
    if response.status != HTTPStatus.NOT_FOUND:
        params = request.params
        file = storage.get_file_obj(params["bucket_name"], params["object_id"])
        response["X-Goog-Generation"] = file["generation"]
