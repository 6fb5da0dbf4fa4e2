"""Puts, reads, lists and deletes through the `object_store` crate (as obstore) what a test names.

    tests/clusters/cluster python store_proof.py s3|s3-signed|s3-wrong|azure|gcs

Takes its endpoints from the environment that `cluster env` prints. Prints `proved`, or the refusal.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

BUCKET = "store-proof"
OPEN = {"allow_http": True}


def s3(endpoint: str, key: str, secret: str) -> Any:
    import boto3  # type: ignore[import-not-found]
    from obstore.store import S3Store  # type: ignore[import-not-found]

    keys = {"aws_access_key_id": key, "aws_secret_access_key": secret}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
    try:  # asking first does not help: a bucket that another key made is not listed
        client.create_bucket(Bucket=BUCKET)
    except client.exceptions.BucketAlreadyOwnedByYou:
        print("the bucket is there already", file=sys.stderr)
    return S3Store(
        BUCKET,
        endpoint=endpoint,
        access_key_id=key,
        secret_access_key=secret,
        region="us-east-1",
        client_options=OPEN,
    )


def azure(endpoint: str, account: str, key: str) -> Any:
    from azure.core.exceptions import ResourceExistsError  # type: ignore[import-not-found]
    from azure.storage.blob import BlobServiceClient  # type: ignore[import-not-found]
    from obstore.store import AzureStore

    try:
        BlobServiceClient(endpoint, credential=key).create_container(BUCKET)
    except ResourceExistsError:
        print("the container is there already", file=sys.stderr)
    return AzureStore(
        BUCKET, account_name=account, account_key=key, endpoint=endpoint, client_options=OPEN
    )


def gcs(endpoint: str, account_file: str) -> Any:
    from obstore.store import GCSStore

    body = json.dumps({"name": BUCKET}).encode()
    address = f"{endpoint}/storage/v1/b?project=test"
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request).close()
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise
    return GCSStore(BUCKET, service_account=account_file, client_options=OPEN)


def store_named(name: str) -> Any:
    e = os.environ
    match name:
        case "s3":
            return s3(e["AWS_ENDPOINT_URL_S3"], "any", "any")
        case "s3-signed":
            return s3(e["FERROFLOW_TEST_S3_SIGNED"], "writer", "writer-secret")
        case "s3-wrong":
            return s3(e["FERROFLOW_TEST_S3_SIGNED"], "writer", "not-its-secret")
        case "azure":
            keys = e["AZURE_STORAGE_ACCOUNT_NAME"], e["AZURE_STORAGE_ACCOUNT_KEY"]
            return azure(e["AZURE_STORAGE_ENDPOINT"], *keys)
        case "gcs":
            return gcs(e["STORAGE_EMULATOR_HOST"], e["GOOGLE_SERVICE_ACCOUNT"])
    raise SystemExit(f"there is no store `{name}`")


def prove(store: Any) -> None:
    """Raises at the first thing that a store must do and this one does not."""
    import obstore  # type: ignore[import-not-found]

    folder = f"proof {uuid.uuid4().hex}"
    name, big = f"{folder}/a+b.txt", f"{folder}/big"
    first = store.put(name, b"hello")
    assert bytes(store.get(name).bytes()) == b"hello"
    assert bytes(store.get_range(name, start=1, end=3)) == b"el"
    try:
        store.put(name, b"again", mode="create")
    except obstore.exceptions.AlreadyExistsError:
        assert bytes(store.get(name).bytes()) == b"hello"
    else:
        raise AssertionError("a second create of one name went through")
    change_once(store, name, first)
    create_at_once(store, f"{folder}/epoch")
    url = obstore.sign(store, "GET", name.replace(folder, "signed"), timedelta(minutes=5))
    store.put(name.replace(folder, "signed"), b"by URL")
    with urllib.request.urlopen(url) as response:
        assert response.read() == b"by URL"
    content = os.urandom(12 << 20)
    store.put(big, content, use_multipart=True, chunk_size=5 << 20)
    assert bytes(store.get(big).bytes()) == content
    names = [name, big, f"{folder}/epoch"]
    assert sorted(o["path"] for o in store.list(folder).collect()) == names
    store.delete(names)
    assert store.list(folder).collect() == []


def change_once(store: Any, name: str, known: Any) -> None:
    """A conditional write, which the run's epoch needs (design D9): the second one must lose."""
    import obstore

    condition = {key: known[key] for key in ("e_tag", "version") if known[key] is not None}
    store.put(name, b"changed", mode=condition)
    try:
        store.put(name, b"lost", mode=condition)
    except obstore.exceptions.PreconditionError:
        assert bytes(store.get(name).bytes()) == b"changed"
    else:
        raise AssertionError("a write on a state that is gone went through")


def create_at_once(store: Any, name: str) -> None:
    """Of many who create one name at the same time, one must win."""
    import obstore

    def create(number: int) -> int | None:
        try:
            store.put(name, str(number).encode(), mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(create, range(16)) if number is not None]
    assert len(winners) == 1, f"{len(winners)} of 16 created `{name}`"
    assert bytes(store.get(name).bytes()) == str(winners[0]).encode()


if __name__ == "__main__":
    prove(store_named(sys.argv[1]))
    print("proved")
