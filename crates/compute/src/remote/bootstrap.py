# The first code in a remote task's container: fetches the flow's code and starts it. Only the
# standard library, and a grammar that any Python 3 reads, so that an old one can say that it is.
import os, sys

sys.path[:] = [folder for folder in sys.path if folder]
IMAGE = os.environ.get("FERROFLOW_IMAGE", "of this task")


def end(text, kind="image", sign_again=False, code=121):
    import json

    code = 122 if sign_again else code
    cause = {"kind": kind, "text": text}
    usage = {"cpu_seconds": 0.0, "peak_memory": 0}
    message = {"outcome": None, "exit": {"code": code}, "usage": usage, "cause": cause}
    message["sign_again"] = sign_again
    sys.stderr.write(text + ".\n")
    sys.stderr.flush()
    try:
        with open(os.environ.get("FERROFLOW_TERMINATION_LOG", "/dev/termination-log"), "w") as log:
            log.write(json.dumps(message))
    except OSError:
        pass  # only Kubernetes has this file; elsewhere the exit code says it
    os._exit(code)


def context(url):
    if not url.startswith("https:"):
        return None
    import ssl

    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if os.path.isfile(os.environ.get(name, "")):
            return ssl.create_default_context(cafile=os.environ[name])
    return ssl.create_default_context()


def fetch(what, url, digest):
    import hashlib, http.client, time, urllib.error, urllib.request, zlib

    host = url.split("?")[0].split("/")[2]
    begun = time.time()
    for wait in (0.5, 1, 2, 4, 8, 15, 0):
        try:
            data = urllib.request.urlopen(url, timeout=10, context=context(url)).read()
            if data[:2] == b"\x1f\x8b":
                data = zlib.decompress(data, 31)
            if hashlib.sha256(data).hexdigest() == digest:
                return data
            problem = "%d bytes came that are not what was stored" % len(data)
        except urllib.error.HTTPError as error:
            said = error.read(1000)
            problem = "HTTP %d %s" % (error.code, error.reason)
            if error.code in (401, 403) or b"Expired" in said:
                end("%s may not be fetched from %s any more (%s)" % (what, host, problem), "layer_error", True)
            if error.code < 500 and error.code not in (408, 429):
                break
        except (OSError, http.client.HTTPException, zlib.error) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
            if os.environ.get("FERROFLOW_LAYER") == "batch" and time.time() - begun > 15:
                # Nobody reads what is printed here: ending soon is how it is told; then it starts again.
                end("%s: %s does not answer (%s)" % (what, host, problem), "layer_error", code=123)
        sys.stderr.write("%s did not come from %s: %s\n" % (what, host, problem))
        sys.stderr.flush()
        time.sleep(wait)
    end("%s could not be fetched from %s: %s" % (what, host, problem), "layer_error")


def unpack(data):
    import io, tarfile, tempfile

    folder = os.path.join(os.getcwd(), "metaflow")
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise OSError
    except OSError:
        folder = tempfile.mkdtemp(prefix="metaflow-")
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
            archive.extractall(folder)
    except OSError as error:
        end("the code could not be unpacked into `%s`: %s" % (folder, error), "layer_error")
    return folder


def check_processor(module):
    import platform

    with open(os.path.join(module, "metaflow", "_native.abi3.so"), "rb") as extension:
        built = {62: "x86_64", 183: "aarch64"}.get(int.from_bytes(extension.read(20)[18:], "little"))
    here = platform.machine()
    if built != here:
        end(
            "the image `%s` runs on %s, and the code package has an extension for %s: start the run with an "
            "installation of ferroflow for %s, or choose nodes and an image for %s"
            % (IMAGE, here, built, here, built)
        )


def check_library():
    try:
        if os.confstr("CS_GNU_LIBC_VERSION"):
            return
    except (OSError, ValueError):
        pass
    end("the image `%s` has another C library than glibc (Alpine has musl): choose one such as python:3.11-slim" % IMAGE)


def take_own():
    # One job for many tasks: what is this one's own is in a list, by the job's index.
    url = os.environ.pop("FERROFLOW_CHILDREN_URL", "")
    if url:
        import json

        children = fetch("the list of tasks", url, os.environ.pop("FERROFLOW_CHILDREN_SHA256"))
        index = os.environ.pop("FERROFLOW_CHILD_INDEX", "") or os.environ.get("AWS_BATCH_JOB_ARRAY_INDEX")
        index = index or os.environ["AWS_BATCH_JOB_NODE_INDEX"]
        os.environ.update(json.loads(children.decode())[int(index)])


def main():
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):
        end("the image `%s` has Python %s; a task needs Python 3.11 or newer" % (IMAGE, version))
    take_own()
    take = os.environ.pop
    code = fetch("the code package", take("FERROFLOW_CODE_URL"), take("FERROFLOW_CODE_SHA256"))
    spec = take("FERROFLOW_TASK_SPEC", "")
    if not spec:
        spec = fetch("the task", take("FERROFLOW_TASK_SPEC_URL"), take("FERROFLOW_TASK_SPEC_SHA256")).decode()
    os.chdir(unpack(code))
    module = os.path.join(os.getcwd(), ".mf_code")
    check_processor(module)
    check_library()
    sys.path.insert(0, module)
    try:
        from metaflow import _remote
    except ImportError as error:
        end("the image `%s` (Python %s, %s) cannot load the extension of the code package: %s"
            % (IMAGE, version, os.confstr("CS_GNU_LIBC_VERSION"), error))
    _remote.main(spec)


try:
    main()
except ImportError as error:
    end("the Python of the image `%s` is not complete: %s" % (IMAGE, error))
