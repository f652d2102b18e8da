"""S3 and what speaks as it does (MinIO, R2, Ceph), by s3fs: with limits to its patience, and errors a person can mend.

Credentials, region and endpoint are found as by AWS's own tools: variables (AWS_ENDPOINT_URL, AWS_REGION, ...),
profiles, the machine's role. Each request is tried AWS_MAX_ATTEMPTS times, the pauses doubling; then it is an error.
"""

import asyncio
import hashlib
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import ClientError as ConnectionFault
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync_wrapper
from fsspec.callbacks import NoOpCallback
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from backbone.errors import StorageError, StorageLost

ATTEMPTS = 8
"""Of a request, unless AWS_MAX_ATTEMPTS says otherwise: with botocore's pauses, half a minute in the mean."""

PART = 16 << 20
"""Bytes of a part of an upload; 10,000 parts is S3's limit, and so 168 GB an object."""

AT_A_TIME = 4
"""Parts of an upload that are under way together: the memory it takes beside the data."""

CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN where they expire), AWS_PROFILE, or give "
    "the machine a role, on every node"
)
WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired")
WRONG_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301", "307")
DENIED = ("AccessDenied", "AllAccessDisabled", "403")
NO_CALLBACK = NoOpCallback()
PASSING = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException")
SILENCE = (boto.HTTPClientError, boto.ConnectionError, ResponseParserError, ConnectionFault, TimeoutError)
PLAIN = ("NoSuchKey", "404", "NotFound", "416", "InvalidRange")
"""What s3fs makes Python's own errors of, and the readers understand."""


class S3(S3FileSystem):
    """s3fs without its memory of listings, which others' writes make stale, and which makes no buckets."""

    cachable = False
    retries = 5  # of what cut connections leave half read; requests have botocore's

    def __init__(self, **options: Any) -> None:
        retries = {"mode": "standard", "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS") or ATTEMPTS)}
        # A store that puts the parts of a large object together may be silent for long.
        config = {"retries": retries, "read_timeout": 60}
        super().__init__(use_listings_cache=False, config_kwargs=config, **options)

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        with _told(_place(kwargs)):
            await self.set_session()
            function = getattr(await self.get_s3(kwargs.get("Bucket")), method)
            try:
                return await function(**self._get_s3_method_kwargs(function, *args, **kwargs))
            except boto.ClientError as error:
                if method == "complete_multipart_upload" and await self._has_ended(error, **kwargs):
                    return {}
                raise translate_boto_error(error) from error

    async def _has_ended(self, error: boto.ClientError, Bucket: str, Key: str, MultipartUpload: Any, **_: Any) -> bool:
        """Whether an upload that is not known any more has ended: its answer was lost, and the request tried again.

        The object is then the one of these parts, which its ETag tells: the MD5 of theirs, and their number. Where
        the store encrypts with keys of its own it may be another; then it counts as lost, as it did without asking.
        """
        if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
            return False
        try:
            found = await self._call_s3("head_object", Bucket=Bucket, Key=Key)
            tags = [bytes.fromhex(part["ETag"].strip('"')) for part in MultipartUpload["Parts"]]
        except (OSError, ValueError):  # it is not there, or its parts' tags are of another kind
            return False
        ours = f"{hashlib.md5(b''.join(tags), usedforsecurity=False).hexdigest()}-{len(tags)}"
        return found["ETag"].strip('"') == ours

    call_s3 = sync_wrapper(_call_s3)

    async def _lsdir(self, path: str, *args: Any, **kwargs: Any) -> Any:
        with _told(path):
            await self.set_session()
            return await super()._lsdir(path, *args, **kwargs)

    async def _cat_file(  # ty: ignore[incompatible-method-override]
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """With fsspec's arguments, where s3fs has a version before them."""
        with _told(path):  # in one request: in several, s3fs does not read again what was cut off
            return await super()._cat_file(path, start=start, end=end, max_concurrency=1)

    async def _pipe_file(  # ty: ignore[incompatible-method-override]
        self, path: str, data: bytes, mode: str = "overwrite", **kwargs: Any
    ) -> Any:
        return await super()._pipe_file(path, data, PART, AT_A_TIME, mode, **kwargs)

    async def _bulk_delete(self, pathlist: list[str], **kwargs: Any) -> list[str]:
        """As s3fs's, which does not look at the answer: that one names each file that was not removed.

        Raises:
            StorageError: some were not, at the last of several tries where that may pass.
        """
        if not pathlist:
            return []
        bucket = self.split_path(pathlist[0])[0]
        left = [self.split_path(path)[1] for path in pathlist]
        for pause in (0.1, 1.0, None):
            told = {"Objects": [{"Key": key} for key in left], "Quiet": True}
            errors = (await self._call_s3("delete_objects", kwargs, Bucket=bucket, Delete=told)).get("Errors")
            if not errors:
                return pathlist
            left = [one["Key"] for one in errors]
            if pause is None or any(one.get("Code") not in PASSING for one in errors):
                break
            await asyncio.sleep(pause)
        first = errors[0]
        answer = {"Error": {"Code": first.get("Code", ""), "Message": first.get("Message", "")}}
        refused = boto.ClientError(answer, f"DeleteObjects, of {len(errors)} file(s)")
        url = f"s3://{bucket}/{first['Key']}"
        raise explain(refused, url) or StorageError(f"{url}: {_short(refused)}")

    async def _abort_mpu(self, bucket: str, key: str, mpu: str) -> None:
        with suppress(OSError):  # it must not take the place of what went wrong
            await super()._abort_mpu(bucket, key, mpu)

    async def _put_file(  # ty: ignore[incompatible-method-override]
        self, lpath: str, rpath: str, callback: Any = NO_CALLBACK, mode: str = "overwrite", **kwargs: Any
    ) -> Any:
        return await super()._put_file(lpath, rpath, callback, PART, AT_A_TIME, mode, **kwargs)

    def abandon(self, path: str) -> list[str]:
        """Give up uploads that were begun below `path` and never ended, whose parts are kept and paid for.

        Returns where each was to lie; none where the credentials may not ask.
        """
        bucket, key, _ = self.split_path(path)
        try:
            uploads = [one for one in self._uploads(bucket, f"{key}/") if one["Key"].startswith(f"{key}/")]
            for one in uploads:
                self.call_s3("abort_multipart_upload", Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"])
        except StorageLost:
            raise
        except OSError:  # a right that nothing else needs, or a store without such a list
            return []
        return [f"{bucket}/{one['Key']}" for one in uploads]

    def _uploads(self, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
        """Uploads that were begun and not ended, from all pages of the list."""
        after: dict[str, str] = {}
        while True:
            listed = self.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **after)
            yield from listed.get("Uploads") or []
            marks = listed.get("NextKeyMarker") or "", listed.get("NextUploadIdMarker") or ""
            before, after = after, {"KeyMarker": marks[0], "UploadIdMarker": marks[1]}
            if not listed.get("IsTruncated") or not marks[0] or after == before:  # or a store that knows no markers
                return

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """There are no folders; and whoever mistypes a bucket's name wants no new one."""

    makedirs = sync_wrapper(_makedirs)

    async def _mkdir(self, path: str, acl: Any = "", create_parents: bool = True, **_: Any) -> None:
        """Likewise."""


def open_s3(query: str) -> S3:
    """The file system, with what a URL says after its `?`: region, endpoint_override, scheme, anonymous.

    Raises:
        StorageError: the URL says something else.
    """
    said = dict(parse_qsl(query, keep_blank_values=True))
    unknown = said.keys() - {"region", "endpoint_override", "scheme", "anonymous"}
    if unknown:
        raise StorageError(f"?{query}: there is no {', '.join(sorted(unknown))} in the URL of an s3:// place")
    options: dict[str, Any] = {"anon": said.get("anonymous", "").lower() in ("1", "true")}
    if "region" in said:
        options["client_kwargs"] = {"region_name": said["region"]}
    if endpoint := said.get("endpoint_override"):
        options["endpoint_url"] = endpoint if "://" in endpoint else f"{said.get('scheme', 'https')}://{endpoint}"
    return S3(**options)


def _place(kwargs: dict[str, Any]) -> str:
    return "/".join(str(kwargs[name]) for name in ("Bucket", "Key", "Prefix") if kwargs.get(name))


@contextmanager
def _told(path: str) -> Generator[None]:
    """What went wrong for good, as an error that says what to do; files that are not there remain FileNotFoundError."""
    try:
        yield
    except StorageError:
        raise
    except (boto.BotoCoreError, boto.ClientError, ConnectionFault, OSError) as error:
        told = explain(error, f"s3://{path}")
        if told is None:
            raise
        raise told from error


def explain(error: Exception, url: str) -> StorageError | None:
    """What to tell of an error of botocore's or s3fs's; None where Python's own word for it does."""
    answer = error if isinstance(error, boto.ClientError) else error.__cause__
    if isinstance(answer, boto.ClientError):
        return _of_answer(answer, url)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return StorageError(f"{url}: no credentials ({error}); {CREDENTIALS}")
    if isinstance(error, boto.NoRegionError):
        return StorageError(f"{url}: no region; set AWS_REGION, on every node")
    if isinstance(error, SILENCE):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        return StorageLost(
            f"{url}: the object store ({endpoint}) does not answer ({_short(error)}), tried "
            f"{os.environ.get('AWS_MAX_ATTEMPTS') or ATTEMPTS} times; see that it runs and that AWS_ENDPOINT_URL is "
            "its address, then submit the same again: it goes on"
        )
    if isinstance(error, boto.BotoCoreError):  # a profile that is not there, a bucket's name that cannot be one
        return StorageError(f"{url}: {_short(error)}")
    return None


def _of_answer(error: boto.ClientError, url: str) -> StorageError | None:
    code = str(error.response.get("Error", {}).get("Code", ""))
    about = error.response.get("ResponseMetadata", {})
    status = int(about.get("HTTPStatusCode") or 0)
    if code == "NoSuchBucket":
        bucket = url.removeprefix("s3://").partition("/")[0]
        return StorageError(f"{url}: there is no bucket {bucket}; make it (aws s3 mb s3://{bucket}) or mend the name")
    if code in PLAIN:
        return None
    if code in WRONG_KEYS:
        return StorageError(f"{url}: the credentials are refused ({_short(error)}); {CREDENTIALS}")
    if code in WRONG_REGION:
        region = about.get("HTTPHeaders", {}).get("x-amz-bucket-region", "its region")
        return StorageError(f"{url}: the bucket is in another region; set AWS_REGION={region}, on every node")
    if code in DENIED:
        return StorageError(
            f"{url}: not allowed ({_short(error)}); the credentials need s3:ListBucket on the bucket, and "
            "s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on what lies in it"
        )
    if status >= 500 or status == 429 or code in PASSING:
        return StorageLost(
            f"{url}: the object store fails ({_short(error)}), tried "
            f"{os.environ.get('AWS_MAX_ATTEMPTS') or ATTEMPTS} times; submit the same again when it is well: it goes on"
        )
    return StorageError(f"{url}: {_short(error)}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
