"""moto's server of S3, which is not ours: `moto_server.py [FOLDER]` prints the port, and serves until it is killed.

FOLDER becomes a bucket of its name, with the files directly below it as objects.
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # or it tells of each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    for folder in map(Path, sys.argv[1:]):
        bucket = boto3.resource(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        ).Bucket(folder.name)
        bucket.create()
        for file in folder.iterdir():
            bucket.upload_file(str(file), file.name)
    print(port, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
