"""A bucket of Google Cloud Storage on this machine: a server that speaks its interface.

The real libraries ask it: gcsfs, Google's own, and TensorStore, through which Orbax writes arrays.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import fsspec
from gcp_storage_emulator.server import create_server

BUCKET = "gs://bucket"


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
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    environment = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
    }
    with mock.patch.dict(os.environ, environment):
        yield
    server.stop()
    fsspec.get_filesystem_class("gs").clear_instance_cache()
